"""From the ledger's rows to events: what has come since the last look is observed (`gateway.complete.arrivals`).

The ledger is the only memory. A study that is not observed is loaded when something comes for it: what was decided
upon before counts as decided, so that after a restart, or days later, a repetition is told from a late image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from gateway.complete import arrivals as arriving
from gateway.complete.arrivals import Arrivals
from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    CountAnswered,
    Decided,
    Ended,
    Event,
    Image,
    InstanceArrived,
    InstancesListed,
    RequestEnded,
)
from gateway.ledger import associations, commitments, counts, instances
from gateway.ledger import series as series_rows
from gateway.ledger.records import AssociationRow, InstanceRow, SeriesRow
from gateway.ledger.states import UNDECIDED, Ending, SeriesState
from medseg.dicom.classes import IMAGES
from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance
from medseg.errors import UnreadableInstance

logger = logging.getLogger(__name__)

#: How long a study is observed after its last event; it can always be loaded again.
FORGET_S = 600.0
Key = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Came:
    """A counting instance as the ledger has it. here: its file was not deleted by retention."""

    path: str
    sop_instance_uid: str
    sop_class_uid: str
    calling_ae: str
    called_ae: str | None
    here: bool


class Watch(Generic[T]):
    """What is arriving, kept up to date from the ledger by `look`.

    describe: what is kept of an instance, for `described`; it is given None where the instance cannot be read.
    restored: series that are arriving, and of which all was decided upon before: what had been lost was sent again.
    """

    def __init__(self, spool: Path, describe: Callable[[Came, Instance | None], T]) -> None:
        self._spool, self._describe = spool, describe
        self.arrivals = Arrivals()
        self._came: dict[Key, dict[str, Came]] = {}
        self._described: dict[Key, dict[str, tuple[Came, T]]] = {}
        self._listed: dict[Key, Sequence[T]] = {}
        self.revisions: dict[Key, int] = {}
        self.restored: set[Key] = set()
        self._seen: dict[Key, tuple[int, float]] = {}
        self._first_at: dict[Key, float] = {}
        self._last_list = 0
        self._counted: dict[tuple[str, str, str], float] = {}
        self._started = False

    def update(self, db: Connection, now_s: float, wall_s: float) -> None:
        """Observe what is new. now_s and wall_s: the same moment by the monotonic clock and in seconds since 1970.

        At the first look, what came before we started keeps its age for the cap, and quiet times start anew.
        """
        still_open = {row.id for row in associations.open_associations(db)}
        self._open(db, still_open, now_s)
        unsettled = series_rows.series_in(db, *UNDECIDED)
        self._drop_reopened(unsettled)
        self._drop_erased({(row.study_uid, row.series_uid): row.first_at for row in unsettled})
        known = set(self.arrivals.studies)
        for row in unsettled:
            key = row.study_uid, row.series_uid
            self._first_at[key] = row.first_at
            if self._seen.get(key) != (row.revision, row.last_at):
                if row.study_uid not in self.arrivals.studies:
                    self._load(db, row.study_uid, now_s, wall_s)
                self._feed(db, key, now_s, wall_s)
                self._seen[key], self.revisions[key] = (row.revision, row.last_at), row.revision
        for over in associations.associations(db, self.arrivals.associations.keys() - still_open):
            self._observe(_ended(over), now_s)
        self._hear_lists(db, self.arrivals.studies.keys() - known, now_s, wall_s)
        self._hear_counts(db, now_s, wall_s)
        self._started = True
        undecided = {(study_uid, series_uid) for study_uid, several in self.undecided() for series_uid in several}
        self.restored = {
            (row.study_uid, row.series_uid) for row in unsettled if row.state == SeriesState.ARRIVING
        } - undecided

    def recall(self, db: Connection, study_uid: str, now_s: float, wall_s: float) -> None:
        """Observe a study of which nothing is undecided."""
        if study_uid not in self.arrivals.studies:
            self._load(db, study_uid, now_s, wall_s)

    def undecided(self) -> Iterator[tuple[str, list[str]]]:
        """Studies with their series of which something was not decided upon."""
        for study_uid, study in self.arrivals.studies.items():
            undecided = [uid for uid, series in study.series.items() if series.undecided]
            if undecided:
                yield study_uid, undecided

    def described(self, study_uid: str, series_uid: str) -> Sequence[T]:
        """What `describe` says of each counting instance of a series, in no order; the same list until that changes."""
        key = study_uid, series_uid
        if key not in self._listed:
            before = self._described.get(key, {})
            came = self._came.get(key, {})
            self._described[key] = {
                uid: known if (known := before.get(uid)) and known[0] == now else (now, self._look_at(now))
                for uid, now in came.items()
            }
            self._listed[key] = [what for _, what in self._described[key].values()]
        return self._listed[key]

    def describe_anew(self) -> None:
        """What `describe` says has changed."""
        self._described.clear()
        self._listed.clear()

    def mark_decided(self, study_uid: str, series_uid: str, now_s: float) -> None:
        """A decision on a series was carried out."""
        self._observe(Decided(study_uid, series_uid), now_s)

    def forget(self, now_s: float) -> None:
        """Drop the studies of which nothing is expected soon."""
        for study_uid, study in self.arrivals.studies.items():
            if all(not series.undecided and now_s - series.last_s > FORGET_S for series in study.series.values()):
                self._drop(study_uid)

    def _drop(self, study_uid: str) -> None:
        self.arrivals = arriving.forget(self.arrivals, study_uid)
        tables = self._came, self._described, self._listed, self.revisions, self._seen, self._first_at, self._counted
        several: tuple[dict[Any, Any], ...] = tables
        for known in several:
            for key in [key for key in known if key[0] == study_uid]:
                del known[key]

    def _drop_erased(self, first_at: dict[Key, float]) -> None:
        """Drop the studies that were taken out of the ledger: what comes for them now is new.

        first_at: of the series that are not settled. A series with something undecided is among them, and a series that
        is the same as before began when it did.
        """
        undecided = {(study_uid, series_uid) for study_uid, several in self.undecided() for series_uid in several}
        anew = {key for key, at in first_at.items() if self._first_at.get(key, at) != at}
        for study_uid in {study_uid for study_uid, _ in anew | (undecided - first_at.keys())}:
            self._drop(study_uid)

    def _drop_reopened(self, unsettled: Sequence[SeriesRow]) -> None:
        """Drop the studies of which a series is to be decided upon anew: all of it counts as new."""
        for row in unsettled:
            study = self.arrivals.studies.get(row.study_uid)
            series = None if study is None else study.series.get(row.series_uid)
            if row.taken_at is None and series is not None and series.decided_s is not None:
                self._drop(row.study_uid)

    def _observe(self, event: Event, now_s: float) -> None:
        self.arrivals = arriving.observe(self.arrivals, event, now_s)

    def _open(self, db: Connection, ids: set[str], now_s: float) -> None:
        for row in associations.associations(db, ids - self.arrivals.associations.keys()):
            self._observe(AssociationOpened(row.id, row.calling_ae), now_s)

    def _load(self, db: Connection, study_uid: str, now_s: float, wall_s: float) -> None:
        """What was decided upon before."""
        for series_uid, (at, last_id) in series_rows.taken(db, study_uid).items():
            before = instances.first_instances(db, study_uid, series_uid, last_id)
            for row in before:
                self._observe(_arrived(row, Image(row.sha256)), _moment(row.received_at, now_s, wall_s))
            if before:
                key = study_uid, series_uid
                self._note(db, key, instances.counting_instances(db, *key))
                self.mark_decided(study_uid, series_uid, _moment(at, now_s, wall_s))

    def _feed(self, db: Connection, key: Key, now_s: float, wall_s: float) -> None:
        study = self.arrivals.studies.get(key[0])
        known = study.series[key[1]].images if study and key[1] in study.series else {}
        rows = instances.counting_instances(db, *key)
        came = self._note(db, key, rows)
        new = [row for row in rows if (image := known.get(row.sop_instance_uid)) is None or image.digest != row.sha256]
        self._open(db, {row.association_id for row in new if row.association_id}, now_s)
        for row in new:
            instance = self._instance(came[row.sop_instance_uid])
            described = self._describe(came[row.sop_instance_uid], instance)
            self._described.setdefault(key, {})[row.sop_instance_uid] = came[row.sop_instance_uid], described
            image = Image(row.sha256)
            if instance is not None and row.sop_class_uid in IMAGES:  # where a screen save says it lies is no slice
                image = Image.from_header(instance.header, row.sha256)
            self._observe(_arrived(row, image), now_s if self._started else _moment(row.received_at, now_s, wall_s))
        if rows and (not new or not self._started):  # a repetition; or the quiet time starts anew
            series = self.arrivals.studies[key[0]].series[key[1]]
            self._observe(_arrived(rows[-1], series.images[rows[-1].sop_instance_uid]), now_s)

    def _hear_lists(self, db: Connection, new: Iterable[str], now_s: float, wall_s: float) -> None:
        """Commitment lists: those that came since the last look, and all that touch studies that are observed anew."""
        came = {row.id: row for row in commitments.lists_after(db, self._last_list)}
        touching = {row.id: row for study_uid in new for row in commitments.lists_of(db, study_uid)}
        for list_id, row in sorted((touching | came if self._started else touching).items()):
            uids = {item.sop_instance_uid for item in commitments.items(db, list_id)}
            elsewhere = {
                uid
                for uid, studies in commitments.studies_of(db, uids).items()
                if studies.isdisjoint(self.arrivals.studies)
            }
            at_s = now_s if self._started and list_id in came else _moment(row.asked_at, now_s, wall_s)
            self._observe(InstancesListed(frozenset(uids - elsewhere)), at_s)
        self._last_list = max(came, default=self._last_list)

    def _hear_counts(self, db: Connection, now_s: float, wall_s: float) -> None:
        for row in counts.counts(db):
            key = row.study_uid, row.series_uid, row.source
            if row.study_uid in self.arrivals.studies and self._counted.get(key) != row.at:
                event = CountAnswered(row.source, row.study_uid, row.series_uid or None, row.value)
                for at in (row.since_at, row.at):
                    self._observe(event, _moment(at, now_s, wall_s))
                self._counted[key] = row.at

    def _note(self, db: Connection, key: Key, rows: Sequence[InstanceRow]) -> dict[str, Came]:
        """rows: the counting instances of a series."""
        before = self._came.get(key, {})
        known = {row.id: came for row in rows if (came := before.get(row.sop_instance_uid)) and _is(came, row)}
        ids = {row.association_id for row in rows if row.id not in known and row.association_id}
        called = {row.id: row.called_ae for row in associations.associations(db, ids)} if ids else {}
        if not len(before) == len(known) == len(rows):
            self._listed.pop(key, None)
        self._came[key] = {
            row.sop_instance_uid: known.get(row.id)
            or Came(
                row.path,
                row.sop_instance_uid,
                row.sop_class_uid,
                row.calling_ae,
                called.get(row.association_id or ""),
                row.deleted_at is None,
            )
            for row in rows
        }
        return self._came[key]

    def _look_at(self, came: Came) -> T:
        return self._describe(came, self._instance(came))

    def _instance(self, came: Came) -> Instance | None:
        if not came.here:
            return None
        opener: Callable[[], Any] = partial((self._spool / came.path).open, "rb")
        try:
            return read_instance(opener, came.sop_instance_uid)
        except UnreadableInstance as error:
            facts = {"event": "instance.unreadable", "sop_instance": came.sop_instance_uid}
            logger.warning("%s", error, extra=facts)
            return None


def _is(came: Came, row: InstanceRow) -> bool:
    return came.path == row.path and came.here == (row.deleted_at is None)


def _ended(over: AssociationRow) -> Ended:
    if over.ending is not Ending.RELEASED:
        return AssociationAborted(over.id)
    return RequestEnded(over.id) if over.receiver == associations.REQUESTS else AssociationReleased(over.id)


def _arrived(row: InstanceRow, image: Image) -> InstanceArrived:
    return InstanceArrived(
        row.study_uid, row.series_uid, row.sop_instance_uid, image, row.calling_ae, row.association_id or ""
    )


def _moment(wall: float, now_s: float, wall_s: float) -> float:
    """A moment of the wall clock by the monotonic one; never in the future."""
    return now_s - max(0.0, wall_s - wall)
