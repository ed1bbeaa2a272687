"""A series in the spool as a source of slices, whether it is all here or still arriving."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from gateway import moves
from gateway.ledger import Ledger
from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance, Slice
from medseg.dicom.series import Series
from medseg.dicom.slices import expand
from medseg.dicom.sources import to_series
from medseg.errors import GeometryRefused
from medseg.progress import Cancelled, check, never

POLL_S = 0.1


class SpoolSource:
    """The instances of a series that count, as they come: a `medseg.dicom.series.SliceSource`.

    What cannot be part of any volume (a localizer) is in `series` and gives no slice.

    revision: of the series in the ledger, when it was last looked at.
    """

    def __init__(
        self, ledger: Ledger, spool: Path, study_uid: str, series_uid: str, *, cancelled: Cancelled = never
    ) -> None:
        self._ledger, self._spool, self._of, self._cancelled = ledger, spool, (study_uid, series_uid), cancelled
        self._read: dict[str, Instance] = {}
        self.revision = 0

    @property
    def series(self) -> Series:
        """The series as far as it was read: at least one instance."""
        return to_series(tuple(self._read.values()))

    @property
    def expected(self) -> int | None:
        with self._ledger.read() as db:
            expected: int | None = moves.series_row(db, *self._of).expected
        return expected

    def instances(self) -> Iterator[Instance | None]:
        """What is here, then what comes while the series is arriving; ends when that is complete.

        None: nothing new has come; asked again, it waits before it looks. A corrected instance takes the place of
        what it corrects: it is given, too. Raises UnreadableInstance, and Interrupted once `cancelled` says so.
        """
        given: set[str] = set()
        while True:
            check(self._cancelled)
            looked_s = time.monotonic()
            with self._ledger.read() as db:
                row = moves.series_row(db, *self._of)
                found = moves.counting_instances(db, *self._of)
            for one in found:
                if one.path not in given:
                    given.add(one.path)
                    instance = read_instance(partial((self._spool / one.path).open, "rb"), one.sop_instance_uid)
                    self._read[one.sop_instance_uid] = instance
                    yield instance
            self.revision = row.revision
            if row.state == "complete":
                return
            yield None
            time.sleep(max(looked_s + POLL_S - time.monotonic(), 0.0))

    def __iter__(self) -> Iterator[Slice | None]:
        for instance in self.instances():
            if instance is None:
                yield None
                continue
            with suppress(GeometryRefused):
                yield from expand(instance)


def read_series(
    ledger: Ledger, spool: Path, study_uid: str, series_uid: str, revision: int, cancelled: Cancelled = never
) -> Series | None:
    """A complete series as it was at a revision; None where it has changed since. Raises as `SpoolSource` does."""
    with ledger.read() as db:
        row = moves.series_row(db, study_uid, series_uid)
    if row.revision != revision:
        return None
    source = SpoolSource(ledger, spool, study_uid, series_uid, cancelled=cancelled)
    for _ in source.instances():
        pass
    return source.series if source.revision == revision else None
