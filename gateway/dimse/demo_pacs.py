"""A small PACS, for demonstrations: it keeps what it is sent in a folder, and commits to what it keeps.

Nothing of it is durable, and anybody may send: it listens on loopback, as long as it is needed.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import SegmentationStorage
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.dimse_messages import N_ACTION_RSP
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from gateway.dimse.commitment import UNCOMPRESSED
from gateway.dimse.reactor.requestor import no_answer_lost
from medseg.names import uid_name

NO_SUCH_OBJECT_INSTANCE = 0x0112  # Failure Reason (PS3.3 C.14.1.1)


class SmallPacs:
    """Storage, Verification and Storage Commitment SCP on a free port of loopback; a context manager."""

    def __init__(self, folder: Path, ae_title: str) -> None:
        """folder: where files go, by SOP Instance UID; it exists."""
        self.ae_title, self._folder = ae_title, folder
        self._received: dict[str, float] = {}
        self._committed: set[str] = set()
        self._asked: Dataset | None = None
        self._lock = threading.Lock()
        ae = ApplicationEntity(ae_title)
        ae.supported_contexts = [
            build_context(sop_class, list(UNCOMPRESSED))
            for sop_class in (Verification, SegmentationStorage, Comprehensive3DSRStorage, StorageCommitmentPushModel)
        ]
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, no_answer_lost),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._act),
            (evt.EVT_DIMSE_SENT, self._sent),
        ]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None  # since it does not block
        self._server, self.port = server, int(server.server_address[1])

    def __enter__(self) -> SmallPacs:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def received(self) -> dict[str, float]:
        """When each object came (s, monotonic), by SOP Instance UID."""
        with self._lock:
            return dict(self._received)

    def committed(self) -> frozenset[str]:
        """SOP Instance UIDs of what it has committed to, by a report that the other side took."""
        with self._lock:
            return frozenset(self._committed)

    def file(self, sop_instance_uid: str) -> Path:
        """Where it keeps an object."""
        return self._folder / f"{uid_name(sop_instance_uid)}.dcm"

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.file(uid).write_bytes(event.encoded_dataset())
        with self._lock:
            self._received[uid] = time.monotonic()
        return 0x0000

    def _act(self, event: Any) -> tuple[int, None]:
        self._asked = event.action_information
        return 0x0000, None

    def _sent(self, event: Any) -> None:
        """The answer to a request for commitment is about to leave: its report follows on the same association (PS3.4
        J.3.3), once the reactor has nothing more to send."""
        if isinstance(event.message, N_ACTION_RSP) and self._asked is not None:
            threading.Thread(target=self._report, args=(event.assoc, self._asked), daemon=True).start()

    def _report(self, assoc: Any, asked: Dataset) -> None:
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        kept = [item for item in asked.ReferencedSOPSequence if item.ReferencedSOPInstanceUID in self.received()]
        lost = [item for item in asked.ReferencedSOPSequence if item not in kept]
        if kept:
            report.ReferencedSOPSequence = Items(kept)
        for item in lost:
            item.FailureReason = NO_SUCH_OBJECT_INSTANCE
        if lost:
            report.FailedSOPSequence = Items(lost)
        answer, _ = assoc.send_n_event_report(
            report, 2 if lost else 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        if answer.get("Status") == 0x0000:
            with self._lock:
                self._committed |= {str(item.ReferencedSOPInstanceUID) for item in kept}
