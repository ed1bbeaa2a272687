"""A peer that answers as it is told to, and keeps what it is sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import SegmentationStorage
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES, evt
from pynetdicom.dimse_messages import C_STORE_RSP, N_ACTION_RSP
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from tests.gateway.receiving import CAREFUL

SEG, SR = str(SegmentationStorage), str(Comprehensive3DSRStorage)
REASON, KO = str(EnhancedSRStorage), str(KeyObjectSelectionDocumentStorage)
COMMIT, FIND = StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind


@dataclass
class FakePacs:
    """What a peer got, and how it answers. Each of these may be changed while it runs."""

    answer: Callable[[str], int | None] = lambda _: 0x0000  # status by SOP Instance UID; None aborts
    reject: tuple[int, int, int] | None = None
    committed: Callable[[str], int | None] = lambda _: None  # failure reason by SOP Instance UID; None: committed
    renames: Callable[[str], str | None] = lambda _: None  # SOP Instance UID that it answers with, by ours
    finds: Collection[str] = ()
    action_status: int = 0x0000
    reports: bool = True
    aborts: bool = False  # when it is asked for storage commitment
    port: int = 0
    associations: int = 0
    got: list[tuple[str, bytes]] = field(default_factory=list)
    received: list[Dataset] = field(default_factory=list)  # the same, decoded
    asked: list[Dataset] = field(default_factory=list)

    def uids(self) -> list[str]:
        return [uid for uid, _ in self.got]

    def of(self, modality: str) -> list[Dataset]:
        return [dataset for dataset in list(self.received) if dataset.Modality == modality]

    def requested(self, event: evt.Event) -> None:
        self.associations += 1
        if self.reject is not None:
            event.assoc.acse.send_reject(*self.reject)
            event.assoc.is_rejected = True
            event.assoc.kill()

    def stored(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        status = self.answer(uid)
        if status is None:
            event.assoc.abort()
            return 0x0110
        self.got.append((uid, event.request.DataSet.getvalue()))
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.received.append(dataset)
        return status

    def acted(self, event: evt.Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        if self.aborts:
            event.assoc.abort()
        return self.action_status, None

    def sent(self, event: evt.Event) -> None:
        if isinstance(event.message, C_STORE_RSP):
            command = event.message.command_set
            command.AffectedSOPInstanceUID = (
                self.renames(command.AffectedSOPInstanceUID) or command.AffectedSOPInstanceUID
            )
        if isinstance(event.message, N_ACTION_RSP) and self.reports and self.action_status == 0:
            threading.Thread(target=self._report, args=(event.assoc, self.asked[-1]), daemon=True).start()

    def report(self, asked: Dataset) -> Dataset:
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        committed, failed = [], []
        for item in asked.ReferencedSOPSequence:
            reason = self.committed(str(item.ReferencedSOPInstanceUID))
            if reason is None:
                committed.append(item)
            else:
                item.FailureReason = reason
                failed.append(item)
        if committed:
            report.ReferencedSOPSequence = committed
        if failed:
            report.FailedSOPSequence = failed
        return report

    def _report(self, assoc: Any, asked: Dataset) -> None:
        report = self.report(asked)
        kind = 2 if "FailedSOPSequence" in report else 1
        assoc.send_n_event_report(report, kind, COMMIT, StorageCommitmentPushModelInstance)

    def found(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        assert event.identifier.QueryRetrieveLevel == "IMAGE"
        assert event.identifier.StudyInstanceUID and event.identifier.SeriesInstanceUID
        self.asked.append(event.identifier)
        if event.identifier.SOPInstanceUID in self.finds:
            yield 0xFF00, event.identifier
        yield 0x0000, None


@contextlib.contextmanager
def listening(
    pacs: FakePacs,
    classes: Collection[str] = (SEG, SR, REASON, KO, Verification),
    syntaxes: Sequence[str] = DEFAULT_TRANSFER_SYNTAXES,
) -> Iterator[FakePacs]:
    """Let it listen on a port of loopback, the one it had before if it had one."""
    ae = AE("PACS")
    for sop_class in classes:
        ae.add_supported_context(sop_class, list(syntaxes))
    handlers: list[Any] = [
        (evt.EVT_REQUESTED, pacs.requested),
        (evt.EVT_C_STORE, pacs.stored),
        (evt.EVT_N_ACTION, pacs.acted),
        (evt.EVT_DIMSE_SENT, pacs.sent),
        *CAREFUL,
        (evt.EVT_C_FIND, pacs.found),
    ]
    server = ae.start_server(("127.0.0.1", pacs.port), block=False, evt_handlers=handlers)
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        server.shutdown()
