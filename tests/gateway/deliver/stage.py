"""A peer that answers as it is told to, and an outbox with results for it, by a clock that is set by hand."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import SegmentationStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RSP, N_ACTION_RSP
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)
from sqlalchemy import insert, text

from gateway.deliver.outbox import Outbox
from gateway.dimse.scu import RequestorTimeouts
from gateway.ledger import tables
from gateway.ledger.ledger import Ledger
from gateway.settings.model import Deliver, Gateway, GatewaySettings, Peer
from tests.gateway.receiving import CAREFUL, make_ct, write_file

SEG, SR = str(SegmentationStorage), str(Comprehensive3DSRStorage)
COMMIT, FIND = StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind
QUICK = RequestorTimeouts(connect_s=5, acse_s=5, dimse_s=10, report_s=10)


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
    asked: list[Dataset] = field(default_factory=list)

    def uids(self) -> list[str]:
        return [uid for uid, _ in self.got]

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
def serving(pacs: FakePacs, classes: Collection[str] = (SEG, SR, Verification)) -> Iterator[FakePacs]:
    """Let it listen on a port of loopback, the one it had before if it had one."""
    ae = AE("PACS")
    for sop_class in classes:
        ae.add_supported_context(sop_class)
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


class Clock:
    """Seconds since 1970, by hand."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@dataclass
class Stage:
    """An outbox with its ledger and spool."""

    ledger: Ledger
    settings: GatewaySettings
    clock: Clock
    outbox: Outbox

    @property
    def spool(self) -> Path:
        return self.settings.gateway.spool

    def result(self, *kinds: str, to: Collection[str] = ("pacs",), predecessor: int | None = None) -> list[str]:
        """A result with small objects of those kinds; their SOP Instance UIDs."""
        classes = {"seg": SEG, "sr": SR}
        made = []
        for kind in kinds:
            instance = make_ct(SOPClassUID=classes[kind])
            instance.file_meta.MediaStorageSOPClassUID = classes[kind]
            made.append((kind, write_file(instance, self.spool / f"{instance.SOPInstanceUID}.dcm")))
        self.deliver(made, to, predecessor)
        return [str(path.stem) for _, path in made]

    def deliver(
        self, objects: Collection[tuple[str, Path]], to: Collection[str] = ("pacs",), predecessor: int | None = None
    ) -> None:
        """Put the files of a result into the outbox."""
        now = self.clock.now

        def prepare(db: Any) -> None:
            study, one = str(generate_uid()), str(generate_uid())
            first = None if predecessor is None else db.execute(tables.result.select()).first()
            names = {"study_uid": first.study_uid if first else study, "series_uid": first.series_uid if first else one}
            if first is None:
                times = {"first_at": now, "last_at": now, "complete_at": now}
                row = names | times | {"instances": 1, "revision": 1, "state": "complete"}
                db.execute(insert(tables.series), row)
            work = names | {"revision": 1, "bundle": "b", "rule": "r", "mode": "on", "state": "done", "attempt": 1}
            times = {"due": now, "ready_at": now, "created_at": now, "finished_at": now}
            job = db.execute(insert(tables.job).returning(tables.job.c.id), work | times).scalar_one()
            came = names | {"job_id": job, "result_key": f"k{job}", "bundle": "b", "bundle_version": "1"}
            more = {"facts": "{}", "created_at": now, "predecessor_id": predecessor}
            result = db.execute(insert(tables.result).returning(tables.result.c.id), came | more).scalar_one()
            for kind, path in objects:
                header, content = dcmread(path, stop_before_pixels=True), path.read_bytes()
                thing = {
                    "result_id": result,
                    "kind": kind,
                    "sop_class_uid": str(header.SOPClassUID),
                    "sop_instance_uid": str(header.SOPInstanceUID),
                    "path": path.relative_to(self.spool).as_posix(),
                    "size_bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                row_id = db.execute(
                    insert(tables.result_object).returning(tables.result_object.c.id), thing
                ).scalar_one()
                for name in to:
                    way = {"object_id": row_id, "destination": name, "state": "queued", "attempt": 0}
                    db.execute(insert(tables.delivery), way | {"ready_at": now, "created_at": now})

        self.ledger.write(prepare)

    def rows(self) -> dict[str, Any]:
        """SOP Instance UID to delivery; to the last destination where there are several."""
        query = "SELECT o.sop_instance_uid AS uid, d.* FROM delivery d JOIN result_object o ON o.id = d.object_id"
        with self.ledger.read() as db:
            return {row.uid: row for row in db.execute(text(query))}

    def states(self) -> list[str]:
        with self.ledger.read() as db:
            return list(db.execute(text("SELECT state FROM delivery ORDER BY id")).scalars())

    def open(self, **changes: Any) -> None:
        """Another outbox on the same ledger."""
        chosen: dict[str, Any] = {"clock": self.clock, "chance": lambda: 0.5, "timeouts": QUICK} | changes
        self.outbox = Outbox(self.ledger, self.settings, **chosen)

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


@contextlib.contextmanager
def staged(folder: Path, *ports: int, **deliver: Any) -> Iterator[Stage]:
    """An outbox for peers called pacs, pacs2, ... at those ports."""
    names = ["pacs", *(f"pacs{number}" for number in range(2, len(ports) + 1))]
    peers = tuple(Peer(name, "PACS", "127.0.0.1", port) for name, port in zip(names, ports, strict=True))
    gateway = Gateway(spool=folder / "spool", database=f"sqlite:///{folder}/ledger.db")
    settings = GatewaySettings(gateway=gateway, deliver=Deliver(**deliver), peers=peers)
    gateway.spool.mkdir(exist_ok=True)
    clock = Clock()
    with Ledger(gateway.database) as ledger:
        outbox = Outbox(ledger, settings, clock=clock, chance=lambda: 0.5, timeouts=QUICK)
        yield Stage(ledger, settings, clock, outbox)
