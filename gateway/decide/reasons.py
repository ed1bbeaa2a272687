"""Why nothing of a study was segmented, by a rule: from what the ledger knows of its series, jobs and results.

    jobs of the rule, the last of each series ── failed, or passed over ────────┐
    series held that it takes ── not known to be complete ──────────────────────┼──> failures ──> a reason
    what a bundle of several channels lacks ────────────────────────────────────┘
    a result of any of that, or a withdrawal of one ──────────────────────────────> none is needed

No failures are localizers, series that no rule takes, and, where a rule names no bundle, series that none fits: it
takes what fits one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.ledger import events, gatherings, results, study_jobs
from gateway.ledger import series as series_rows
from gateway.ledger.jobs import jobs_of
from gateway.ledger.records import JobRow, ResultRow, UnansweredRow
from gateway.ledger.states import JobState, SeriesState
from gateway.settings.model import Mode
from medseg.dicom.reason import Reason
from medseg.errors import DoesNotFit


@dataclass(frozen=True)
class Failure:
    """What was not segmented. series: their UIDs. bundle: a name or a folder; empty for the one that fits."""

    series: tuple[str, ...]
    bundle: str
    code: str
    why: str


def failures(db: Connection, of: UnansweredRow) -> tuple[Failure, ...]:
    """What failed of a study by a rule; nothing where anything of it was segmented."""
    jobs = jobs_of(db, [of.study_uid])
    found = [*_of_jobs(db, of, jobs), *_of_held(db, of), *_of_channels(db, of, jobs)]
    meant = tuple(one for one in found if not _is_none(one))
    named = {uid for one in meant for uid in one.series}
    return () if _is_answered(db, of, jobs, named) else meant


def _is_none(one: Failure) -> bool:
    return one.code == Reason.LOCALIZER or (not one.bundle and one.code == DoesNotFit.code)


def _is_answered(db: Connection, of: UnansweredRow, jobs: Sequence[JobRow], named: set[str]) -> bool:
    """Whether the study has a result, or a withdrawal, of that rule; or of a series, by whatever rule."""
    rules = {job.id: job.rule for job in jobs}
    rows = {row.id: row for row in results.results_of(db, [of.study_uid])}
    current = results.current_results(db, of.study_uid)
    return any(row.series_uid in named or rules.get(_job_of(row, rows)) == of.rule for row in current)


def _job_of(row: ResultRow, rows: Mapping[int, ResultRow]) -> int:
    """The job of a result, or of the one that it withdraws."""
    while row.job_id is None and row.predecessor_id is not None:
        row = rows[row.predecessor_id]
    return row.job_id or 0


def _of_jobs(db: Connection, of: UnansweredRow, jobs: Sequence[JobRow]) -> Iterator[Failure]:
    """jobs: of the study, newest first."""
    last: dict[str, list[JobRow]] = defaultdict(list)  # by series: those that were made for it as it was at last
    of_study: dict[str, JobRow] = {}  # by bundle
    for job in jobs:
        if job.series_uid is None:
            of_study.setdefault(job.bundle, job)
            continue
        made = last[job.series_uid]
        if not made or (made[0].revision, made[0].rule) == (job.revision, job.rule):
            made.append(job)
    for job in (*(job for made in last.values() for job in made), *of_study.values()):
        if job.rule == of.rule and job.mode is Mode.ON and _came_to_nothing(job):
            channels = [one.series_uid for one in study_jobs.channels_of(db, job.id)]
            uids = tuple(dict.fromkeys(channels)) if job.series_uid is None else (job.series_uid,)
            yield Failure(uids, job.bundle, job.error_code or "", job.error or "")


def _came_to_nothing(job: JobRow) -> bool:
    """Whether a job ended without a result, and no other took its place."""
    return (
        job.state == JobState.FAILED
        or (job.state == JobState.CANCELLED and job.error_code is not None)
        or job.lacks_something
    )


def _of_held(db: Connection, of: UnansweredRow) -> Iterator[Failure]:
    """Series that the rule takes, of which it is not known that they are complete."""
    held = {row.series_uid for row in series_rows.series_of(db, of.study_uid) if row.state == SeriesState.HELD}
    last = {row.series_uid: json.loads(row.detail) for row in events.of_studies(db, (events.HELD,), [of.study_uid])}
    for uid, detail in last.items():
        if uid in held and detail.get("rule") == of.rule:
            why = f"series {uid}: not known to be complete: {detail['why']}"
            yield Failure((uid,), next(iter(json.loads(of.bundles)), ""), "held", why)


def _of_channels(db: Connection, of: UnansweredRow, jobs: Sequence[JobRow]) -> Iterator[Failure]:
    """Bundles of several channels that fit nothing of the study: no job tells that."""
    with_job = {job.bundle for job in jobs if job.series_uid is None}
    alone = {job.series_uid for job in jobs}
    wanted = set(json.loads(of.bundles)) - with_job
    others = [row for row in series_rows.series_of(db, of.study_uid) if row.series_uid not in alone]
    for row in gatherings.of_studies(db, [of.study_uid]):
        if row.bundle in wanted and row.code is not None and row.due_at is None:
            yield Failure(tuple(one.series_uid for one in others), row.bundle, row.code, row.why or "")
