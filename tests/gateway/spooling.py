"""Series in a spool and its ledger, without a network."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import text

from gateway.dimse.store import AssociationInfo, Ending, StoreRequest
from gateway.ledger.ledger import Ledger
from gateway.receive.comparison import Comparison
from gateway.receive.spool import Spool
from medseg.dicom.phantom import make_series
from tests.gateway.receiving import NEVER_FULL, encode


def phantom(seed: int = 0, slices: int = 6, **changes: Any) -> list[Dataset]:
    """A small CT series that somebody else made."""
    series = make_series(spacing_mm=(3.0, 2.0, 2.0), shape=(slices, 32, 32), seed=seed)
    for one in series:
        for keyword, value in ({"Manufacturer": "Phantom"} | changes).items():
            setattr(one, keyword, value)
    return series


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
    with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        yield Inbox(Spool(folder / "spool", ledger, NEVER_FULL), ledger)


class Clock:
    """Both clocks; the monotonic one starts at any number."""

    def __init__(self) -> None:
        self.now_s, self.wall_s = 1000.0, time.time() + 2.0

    def after(self, seconds: float) -> tuple[float, float]:
        self.now_s += seconds
        self.wall_s += seconds
        return self.now_s, self.wall_s
