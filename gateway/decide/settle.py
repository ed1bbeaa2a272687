"""A study with images of two patients, settled: by itself, or by a person. What it means for jobs, results, deliveries.

- merge: all images are of the patient that is named. Each result is made under that identity; one that was made under
  another is made anew, and names the one that it replaces.
- split: each image is of whom it names. Each patient's part of a series is a result's part of its own.
- By itself, once the images that count all say the same: a correction has come to its end.

What was not sent yet under an identity that does not hold any more is not sent. What archives have got stays there: a
later result names it as replaced (IHE RAD PIR leaves it to them to correct their copies).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, exists, select, update

from gateway.ledger import instances, patients, series
from gateway.ledger import jobs as jobs_rows
from gateway.ledger.jobs import NewJob
from gateway.ledger.states import SAYING, DeliveryState, InstanceState, JobState, SeriesState
from gateway.ledger.tables import delivery, instance, of_series, patient_conflict, result, result_object
from medseg.errors import UsageError


@dataclass(frozen=True)
class SettledPatients:
    """jobs: ids of those that make results anew. gone: series for which none can, since images of it were deleted."""

    jobs: tuple[int, ...]
    gone: tuple[str, ...]


def close(db: Connection, study_uid: str, at: float) -> None:
    """Let go on a study, if its images all say the same by now."""
    if not patients.close(db, study_uid, at):
        return
    said = patients.known(db, study_uid)
    for row, keys in _current(db, study_uid):
        if len(patients.groups((*said, *keys))) > 1:
            _withdraw(db, row)


def merge(db: Connection, study_uid: str, letter: str, at: float) -> SettledPatients:
    """All images of a study are of the patient of that letter. Raises UsageError."""
    known = _several(db, study_uid)
    names = patients.letters(known)
    mine = [key for key, name in names.items() if name == letter.upper()]
    if not mine:
        expected = " or ".join(sorted(set(names.values())))
        raise UsageError(f"expected the letter of a patient, {expected}: `medseg studies show` tells who these are")
    patients.settle(db, study_uid, patients.fullest(mine), at)
    return _made_anew(db, study_uid, at, frozenset(mine))


def split(db: Connection, study_uid: str, at: float) -> SettledPatients:
    """Each image of a study is of the patient that it names. Raises UsageError."""
    _several(db, study_uid)
    patients.settle(db, study_uid, None, at)
    return _made_anew(db, study_uid, at, None)


def _several(db: Connection, study_uid: str) -> tuple[str, ...]:
    known = patients.known(db, study_uid)
    if not db.execute(select(exists().where(patient_conflict.c.study_uid == study_uid))).scalar():
        raise UsageError(f"study {study_uid} is not here, or is of one patient: there is nothing to settle")
    return known


def _made_anew(db: Connection, study_uid: str, at: float, winner: frozenset[str] | None) -> SettledPatients:
    """Jobs for the results that were made under another identity. What is held or arriving is decided upon anyway."""
    jobs: list[int] = []
    gone: list[str] = []
    for row, keys in list(_current(db, study_uid)):
        wanted = _wanted(db, row) if winner is None else [winner]
        made = patients.groups(keys)
        if len(made) == len(wanted) and all(any(set(one) <= set(some) for some in wanted) for one in made):
            continue
        _withdraw(db, row)
        of = series.series_row(db, study_uid, row.series_uid)
        if of.state != SeriesState.COMPLETE:
            continue
        if instances.deleted_instances(db, study_uid, row.series_uid):
            gone.append(row.series_uid)
            continue
        before = jobs_rows.job_row(db, row.job_id)
        same = {name: getattr(before, name) for name in ("bundle", "rule", "mode", "terms")}
        new = NewJob(study_uid, row.series_uid, of.revision, state=JobState.QUEUED, due=at, **same)
        jobs.append(jobs_rows.make_job(db, new, at))
    return SettledPatients(tuple(jobs), tuple(gone))


def _wanted(db: Connection, row: Row[Any]) -> list[frozenset[str]]:
    """Whose the parts of a series are where each image is of whom it names."""
    mine = of_series(instance, row.study_uid, row.series_uid)
    real = instance.c.state.in_((*SAYING, InstanceState.SUPERSEDED))
    said = {one for one in db.execute(select(instance.c.patient).where(mine, real)).scalars() if one}
    return [frozenset(group) for group in patients.groups(patients.known(db, row.study_uid)) if said & set(group)]


def _current(db: Connection, study_uid: str) -> Iterator[tuple[Row[Any], list[str]]]:
    """The current results of a study, with whose their stacks are."""
    later = result.alias()
    mine = and_(result.c.study_uid == study_uid, ~exists().where(later.c.predecessor_id == result.c.id))
    for row in db.execute(select(result).where(mine)).all():
        keys = [source["patient"] for source in json.loads(row.sources)]
        yield row, [key for key in keys if key]


def _withdraw(db: Connection, row: Row[Any]) -> None:
    """What of a result was not sent yet is not."""
    objects = select(result_object.c.id).where(result_object.c.result_id == row.id)
    waiting = and_(delivery.c.object_id.in_(objects), delivery.c.state == DeliveryState.QUEUED)
    db.execute(update(delivery).where(waiting).values(state=DeliveryState.CANCELLED))
