"""Series in a spool and its ledger, without a network."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import text

from gateway.dimse.store import AssociationInfo, Ending, StoreRequest
from gateway.ledger.ledger import Ledger
from gateway.receive.comparison import Comparison
from gateway.receive.spool import Spool
from tests.gateway.ledgers import new_ledger
from tests.gateway.receiving import NEVER_FULL, encode


@dataclass
class Inbox:
    """A spool that is filled as the SCP does it."""

    spool: Spool
    ledger: Ledger

    @property
    def folder(self) -> Path:
        return self.spool.folder

    def open(self, calling_ae: str = "SENDER", called_ae: str = "MEDSEG") -> AssociationInfo:
        peer = AssociationInfo(uuid.uuid4().hex, calling_ae, called_ae, "127.0.0.1")
        self.spool.opened(peer)
        return peer

    def store(self, peer: AssociationInfo, datasets: Sequence[Dataset]) -> None:
        for one in datasets:
            request = StoreRequest(peer, one.SOPClassUID, one.SOPInstanceUID, ExplicitVRLittleEndian, 0)
            incoming = self.spool.begin(request)
            incoming.write(memoryview(encode(one)))
            incoming.finish()

    def store_file(self, peer: AssociationInfo, content: bytes) -> None:
        """A file's data set, in its transfer syntax."""
        meta = dcmread(BytesIO(content), specific_tags=[]).file_meta
        begin = 144 + meta.FileMetaInformationGroupLength
        uids = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
        incoming = self.spool.begin(StoreRequest(peer, *map(str, uids), 0))
        incoming.write(memoryview(content)[begin:])
        incoming.finish()

    def compare(self) -> None:
        """Decide on the versions that wait to be compared, as a thread beside the director does."""
        while Comparison(self.ledger, self.folder).step():
            pass

    def send(self, datasets: Sequence[Dataset], ending: Ending = Ending.RELEASED, **names: str) -> None:
        """Over an association of its own."""
        peer = self.open(**names)
        self.store(peer, datasets)
        self.spool.closed(peer, ending)

    def rows(self, table: str) -> list[Any]:
        with self.ledger.read() as db:
            return list(db.execute(text(f"SELECT * FROM {table} ORDER BY 1")))


@contextmanager
def inbox(folder: Path) -> Iterator[Inbox]:
    with new_ledger(folder) as ledger:
        yield Inbox(Spool(folder / "spool", ledger, NEVER_FULL), ledger)
