"""A series in the spool as a source of slices, whether it is all here or still arriving."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gateway.ledger import instances as instances_rows
from gateway.ledger import series as series_rows
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import InstanceRow, SeriesRow
from gateway.ledger.states import SeriesState
from medseg.dicom.classes import IMAGES, class_name, made_by_medseg
from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance, Slice
from medseg.dicom.series import LeftOut, Series
from medseg.dicom.slices import expand
from medseg.dicom.sources import to_series
from medseg.errors import GeometryRefused, UnreadableInstance
from medseg.progress import Cancelled, check, never

logger = logging.getLogger(__name__)

POLL_S = 0.1


class SpoolSource:
    """The instances of a series that count, as they come: a `medseg.dicom.series.SliceSource`.

    What cannot be part of any volume (a localizer) is in `series` and gives no slice. What is no image that can be
    segmented (a report, a screen save), or was made by medseg, is left out, and so is what came as bytes that nobody
    can read.

    revision: of the series in the ledger, when it was last looked at.
    """

    def __init__(
        self, ledger: Ledger, spool: Path, study_uid: str, series_uid: str, *, cancelled: Cancelled = never
    ) -> None:
        self._ledger, self._spool, self._of, self._cancelled = ledger, spool, (study_uid, series_uid), cancelled
        self._read: dict[str, Instance] = {}
        self._series: Series | None = None
        self._others: dict[str, LeftOut] = {}
        self._missing: tuple[LeftOut, ...] = ()
        self.revision = 0

    @property
    def series(self) -> Series:
        """The series as far as it was read. Raises UnreadableInstance where nothing of it could be."""
        if not self._read:
            raise UnreadableInstance(f"series {self._of[1]}", "no image of it can be read")
        if self._series is None:
            series = to_series([self._read[uid] for uid in sorted(self._read)])  # they came in no order
            self._series = replace(series, left_out=self._left_out())
        return self._series

    @property
    def expected(self) -> int | None:
        with self._ledger.read() as db:
            return series_rows.series_row(db, *self._of).expected

    def instances(self) -> Iterator[Instance | None]:
        """What is here, then what comes while the series is arriving; ends when that is complete.

        None: nothing new has come; asked again, it waits before it looks. A corrected instance takes the place of
        what it corrects: it is given, too. Raises UnreadableInstance where the file of an image is not what was filed,
        and Interrupted once `cancelled` says so.
        """
        given: set[str] = set()
        while True:
            check(self._cancelled)
            looked_s = time.monotonic()
            with self._ledger.read() as db:
                row = series_rows.series_row(db, *self._of)
                counting = instances_rows.counting_instances(db, *self._of)
            if (missing := _missing(row)) != self._missing:
                self._missing, self._series = missing, None
            for each in counting:
                if each.path not in given:
                    given.add(each.path)
                    self._read.pop(each.sop_instance_uid, None)
                    self._others.pop(each.sop_instance_uid, None)
                    self._series = None
                    instance = _read_object(self._spool, each)
                    if isinstance(instance, LeftOut):
                        self._others[each.sop_instance_uid] = instance
                    else:
                        self._read[each.sop_instance_uid] = instance
                        yield instance
            self.revision = row.revision
            if row.state == SeriesState.COMPLETE:
                return
            yield None
            time.sleep(max(looked_s + POLL_S - time.monotonic(), 0.0))

    def _left_out(self) -> tuple[LeftOut, ...]:
        alike = Counter(self._others.values())
        others = (replace(kind, count=count) for kind, count in sorted(alike.items(), key=str))
        return (*others, *self._missing)

    def __iter__(self) -> Iterator[Slice | None]:
        for instance in self.instances():
            if instance is None:
                yield None
                continue
            with suppress(GeometryRefused):
                yield from expand(instance)


def read_image(spool: Path, row: InstanceRow) -> Instance | None:
    """An instance that may be segmented; None where it is none, or was sent so that it cannot be read."""
    read = _read_object(spool, row)
    return read if isinstance(read, Instance) else None


def _read_object(spool: Path, row: InstanceRow) -> Instance | LeftOut:
    """An instance that may be segmented, or why it is none."""
    if row.sop_class_uid not in IMAGES:
        return _beside(f"{class_name(row.sop_class_uid)}: not of the images of its series")
    file = spool / row.path
    opener: Callable[[], Any] = partial(file.open, "rb")
    try:
        instance = read_instance(opener, row.sop_instance_uid)
    except UnreadableInstance as error:
        if not _is_as_sent(file, row):
            raise
        facts = {"event": "instance.unreadable", "sop_instance": row.sop_instance_uid}
        logger.warning("left out of its series: %s", error, extra=facts)
        return LeftOut("unreadable", 1, "objects", error.why)
    if made_by_medseg(instance.header):
        return _beside("made by medseg")
    return instance if "Rows" in instance.header else LeftOut("unreadable", 1, "objects", "no image attributes")


def _beside(why: str) -> LeftOut:
    return LeftOut("not_an_image", 1, "objects", why, lost=False)


def _missing(row: SeriesRow) -> tuple[LeftOut, ...]:
    """What its sender says there is of a series, and never came."""
    if row.expected is None or row.expected <= row.instances:
        return ()
    why = f"the sender says that there are {row.expected}, {row.instances} came"
    return (LeftOut("announced", row.expected - row.instances, "objects", why, here=False),)


def _is_as_sent(file: Path, row: InstanceRow) -> bool:
    try:
        with file.open("rb") as stream:
            stream.seek(row.offset_bytes)
            return bool(hashlib.file_digest(stream, "sha256").hexdigest() == row.sha256)
    except OSError:
        return False


def read_series(
    ledger: Ledger, spool: Path, study_uid: str, series_uid: str, revision: int, cancelled: Cancelled = never
) -> Series | None:
    """A complete series as it was at a revision; None where it has changed since. Raises as `SpoolSource` does."""
    with ledger.read() as db:
        row = series_rows.series_row(db, study_uid, series_uid)
    if row.revision != revision:
        return None
    source = SpoolSource(ledger, spool, study_uid, series_uid, cancelled=cancelled)
    for _ in source.instances():
        pass
    return source.series if source.revision == revision else None
