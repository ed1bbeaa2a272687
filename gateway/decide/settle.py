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
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.ledger import deliveries, gatherings, instances, patients, reasons, results, series
from gateway.ledger import jobs as jobs_rows
from gateway.ledger.jobs import NewJob
from gateway.ledger.records import ResultRow
from gateway.ledger.states import JobState, SeriesState
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
    for row in reasons.current_reasons(db, [study_uid]):
        reasons.anew(db, row, at)
    for row, keys in _current(db, study_uid):
        if len(patients.groups((*said, *keys))) > 1:
            deliveries.withdraw(db, row.id)


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
    if patients.conflict(db, study_uid) is None:
        raise UsageError(f"study {study_uid} is not here, or is of one patient: there is nothing to settle")
    return known


def _made_anew(db: Connection, study_uid: str, at: float, winner: frozenset[str] | None) -> SettledPatients:
    """Jobs for the results that were made under another identity. What is held or arriving is decided upon anyway."""
    anew: dict[str, list[NewJob]] = defaultdict(list)
    gone: list[str] = []
    for reason in reasons.current_reasons(db, [study_uid]):
        reasons.anew(db, reason, at)
    for row, keys in list(_current(db, study_uid)):
        if (job_id := row.job_id) is None:  # it is withdrawn
            continue
        wanted = _wanted(db, row) if winner is None else [winner]
        made = patients.groups(keys)
        if len(made) == len(wanted) and all(any(set(group) <= set(part) for part in wanted) for group in made):
            continue
        deliveries.withdraw(db, row.id)
        before = jobs_rows.job_row(db, job_id)
        if row.series_uid is None:  # of several channels: its study is looked at again
            gatherings.say(db, study_uid, before.bundle, {"anew": True}, at)
            continue
        of = series.series_row(db, study_uid, row.series_uid)
        if of.state != SeriesState.COMPLETE:
            continue
        if instances.deleted_instances(db, study_uid, row.series_uid):
            gone.append(row.series_uid)
            continue
        new = NewJob(
            study_uid,
            row.series_uid,
            of.revision,
            bundle=before.bundle,
            rule=before.rule,
            terms=before.terms,
            mode=before.mode,
            state=JobState.QUEUED,
            due=at,
        )
        anew[row.series_uid].append(new)
    jobs = [job_id for new_jobs in anew.values() for job_id in jobs_rows.make_jobs(db, new_jobs, at)]
    return SettledPatients(tuple(jobs), tuple(dict.fromkeys(gone)))


def _wanted(db: Connection, row: ResultRow) -> list[frozenset[str]]:
    """Whose the parts of a series are where each image is of whom it names."""
    said = instances.patients_ever(db, row.study_uid, row.series_uid)
    return [frozenset(group) for group in patients.groups(patients.known(db, row.study_uid)) if said & set(group)]


def _current(db: Connection, study_uid: str) -> Iterator[tuple[ResultRow, list[str]]]:
    """The current results of a study, with whose their stacks are."""
    for row in results.current_results(db, study_uid):
        keys = [source["patient"] for source in json.loads(row.sources)]
        yield row, [key for key in keys if key]
