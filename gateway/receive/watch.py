"""From the ledger's rows to events: what has come since the last look is observed (`gateway.receive.arrivals`).

The ledger is the only memory. A study that is not observed is loaded when something comes for it: what was decided
upon before counts as taken, so that after a restart, or days later, a repetition is told from a late image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import Dataset
from sqlalchemy import Connection, Row

from gateway import moves
from gateway.receive import arrivals as arriving
from gateway.receive.arrivals import Arrivals
from gateway.receive.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    Event,
    Image,
    InstanceArrived,
    Taken,
)
from medseg.dicom.headers import read_instance
from medseg.errors import UnreadableInstance

logger = logging.getLogger(__name__)

#: How long a study is observed after its last event; it can always be loaded again.
FORGET_S = 600.0
Key = tuple[str, str]


class Watch:
    """What is arriving, kept up to date from the ledger by `look`.

    headers: of the first instance of each observed series that could be read, with who sent it to whom.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self.arrivals = Arrivals()
        self.headers: dict[Key, tuple[Dataset, str, str | None]] = {}
        self.revisions: dict[Key, int] = {}
        self._seen: dict[Key, tuple[int, float]] = {}
        self._started = False

    def look(self, db: Connection, now_s: float, wall_s: float) -> None:
        """Observe what is new. now_s and wall_s: the same moment by the monotonic clock and in seconds since 1970.

        At the first look, what came before we started keeps its age for the cap, and quiet times start anew.
        """
        still_open = {row.id for row in moves.open_associations(db)}
        self._open(db, still_open, now_s)
        for row in moves.unsettled_series(db):
            key = row.study_uid, row.series_uid
            if self._seen.get(key) != (row.revision, row.last_at):
                if row.study_uid not in self.arrivals.studies:
                    self._load(db, row.study_uid, now_s, wall_s)
                self._feed(db, key, now_s, wall_s)
                self._seen[key], self.revisions[key] = (row.revision, row.last_at), row.revision
        for row in moves.associations(db, self.arrivals.associations.keys() - still_open):
            ended = AssociationReleased if row.ending == "released" else AssociationAborted
            self._observe(ended(row.id), now_s)
        self._started = True

    def fresh(self) -> Iterator[tuple[str, list[str]]]:
        """Studies with their series of which something was not taken."""
        for study_uid, study in self.arrivals.studies.items():
            series = [uid for uid, one in study.series.items() if one.fresh]
            if series:
                yield study_uid, series

    def take(self, study_uid: str, series_uid: str, now_s: float) -> None:
        """A decision on a series was carried out."""
        self._observe(Taken(study_uid, series_uid), now_s)

    def forget(self, now_s: float) -> None:
        """Drop the studies of which nothing is expected soon."""
        for study_uid, study in self.arrivals.studies.items():
            if all(not one.fresh and now_s - one.last_s > FORGET_S for one in study.series.values()):
                self.arrivals = arriving.forget(self.arrivals, study_uid)
                for known in (self.headers, self.revisions, self._seen):
                    for key in [key for key in known if key[0] == study_uid]:
                        del known[key]

    def _observe(self, event: Event, now_s: float) -> None:
        self.arrivals = arriving.observe(self.arrivals, event, now_s)

    def _open(self, db: Connection, ids: set[str], now_s: float) -> None:
        for row in moves.associations(db, ids - self.arrivals.associations.keys()):
            self._observe(AssociationOpened(row.id, row.calling_ae), now_s)

    def _load(self, db: Connection, study_uid: str, now_s: float, wall_s: float) -> None:
        """What was decided upon before."""
        for series_uid, (at, revision) in moves.taken(db, study_uid).items():
            before = moves.first_instances(db, study_uid, series_uid, revision)
            for row in before:
                self._observe(_arrived(row, Image(row.sha256)), _moment(row.received_at, now_s, wall_s))
            if before:
                self._header(db, before[0])
                self.take(study_uid, series_uid, _moment(at, now_s, wall_s))

    def _feed(self, db: Connection, key: Key, now_s: float, wall_s: float) -> None:
        study = self.arrivals.studies.get(key[0])
        known = study.series[key[1]].images if study and key[1] in study.series else {}
        found = moves.counting_instances(db, *key)
        new = [row for row in found if (image := known.get(row.sop_instance_uid)) is None or image.digest != row.sha256]
        self._open(db, {row.association_id for row in new if row.association_id}, now_s)
        for row in new:
            header = self._header(db, row)
            image = Image(row.sha256) if header is None else Image.from_header(header, row.sha256)
            self._observe(_arrived(row, image), now_s if self._started else _moment(row.received_at, now_s, wall_s))
        if found and (not new or not self._started):  # a repetition; or the quiet time starts anew
            series = self.arrivals.studies[key[0]].series[key[1]]
            self._observe(_arrived(found[-1], series.images[found[-1].sop_instance_uid]), now_s)

    def _header(self, db: Connection, row: Row[Any]) -> Dataset | None:
        try:
            header = read_instance(partial((self._spool / row.path).open, "rb"), row.sop_instance_uid).header
        except UnreadableInstance as error:
            logger.warning("%s", error, extra={"event": "instance.unreadable", "sop_instance": row.sop_instance_uid})
            return None
        key = row.study_uid, row.series_uid
        if key not in self.headers:
            called = [one.called_ae for one in moves.associations(db, [row.association_id or ""])]
            self.headers[key] = header, row.calling_ae, called[0] if called else None
        return header


def _arrived(row: Row[Any], image: Image) -> InstanceArrived:
    return InstanceArrived(
        row.study_uid, row.series_uid, row.sop_instance_uid, image, row.calling_ae, row.association_id or ""
    )


def _moment(wall: float, now_s: float, wall_s: float) -> float:
    """A moment of the wall clock by the monotonic one; never in the future."""
    return now_s - max(0.0, wall_s - wall)
