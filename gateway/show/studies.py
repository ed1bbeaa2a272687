"""Studies as people look at them: what came, why it counts as complete, what was made of it, and where that is.

    Study ── Series ── Job ── Result ── Delivery         each with its state, its times and the next step to take

One reading for `medseg status` and for the pages. UIDs and numbers; never who the patient is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.ledger import events, gatherings, instances, patients, series, study_jobs
from gateway.ledger.jobs import jobs_of
from gateway.ledger.records import ResultRow
from gateway.ledger.results import results_of
from gateway.ledger.states import ConflictState, JobState, ResultKind, SeriesState
from gateway.settings.model import Mode
from gateway.show import next_steps
from gateway.show.objects import Delivery, Object, between, objects_by_result
from gateway.show.reasons import ReasonView, reasons_by_study
from medseg.names import uid_name

_NOT_STARTED = JobState.WAITING, JobState.HELD, JobState.QUEUED


@dataclass(frozen=True)
class WithdrawalView:
    """When a person withdrew a result, and who is told."""

    at: float
    objects: tuple[Object, ...]
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True)
class ResultView:
    """What a job came to. current: no later result replaced it. withdrawn: by a person, and who is told. flags: what a
    reader must know. timings_s: by step."""

    id: int
    bundle: str
    bundle_version: str
    current: bool
    created_at: float
    flags: tuple[str, ...]
    timings_s: dict[str, float]
    objects: tuple[Object, ...]
    deliveries: tuple[Delivery, ...]
    withdrawn: WithdrawalView | None


@dataclass(frozen=True)
class ChannelView:
    """A channel of a job, and the series that it is. volume: which of that series, from 1 on."""

    job: int
    name: str
    series_uid: str
    volume: int


@dataclass(frozen=True)
class JobView:
    """A bundle on a series, or on the channels of a study. bundle: empty for the default one that fits. started_at: of
    the latest attempt, or when the series was complete, if that was later. queue_s, infer_s: before and after that."""

    id: int
    rule: str
    bundle: str
    mode: Mode
    state: JobState
    attempt: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    error_code: str | None
    error: str | None
    next_step: str
    queue_s: float | None
    infer_s: float | None
    result: ResultView | None
    channels: tuple[ChannelView, ...]


@dataclass(frozen=True)
class SeriesView:
    """received: instances that count; expected: where somebody said how many there are. last_at: of the last image that
    was new; one that is sent again moves no time. passed_over: why no job was made of it as it is now; passed_by: what
    of it is not segmented, and how many. last_image_to_seg_s: until a destination had the current result. jobs: the
    latest first. channel_of: those of the study of which it is a channel, the latest first."""

    series_uid: str
    received: int
    expected: int | None
    state: SeriesState
    first_at: float
    last_at: float
    complete_at: float | None
    complete_by: str | None
    passed_over: str | None
    passed_by: dict[str, int]
    next_step: str
    receive_s: float | None
    wait_complete_s: float | None
    last_image_to_seg_s: float | None
    jobs: tuple[JobView, ...]
    channel_of: tuple[ChannelView, ...]


@dataclass(frozen=True)
class PatientView:
    """A patient whom images of a study name, by a letter: who sent the first of them, when, and how many count."""

    letter: str
    calling_ae: str
    first_at: float
    instances: int


@dataclass(frozen=True)
class Conflict:
    """Images of several patients in a study. state: open (work on it is stopped), or how it was settled. merged_to: the
    letter of the patient whose all images are."""

    state: ConflictState
    since_at: float
    settled_at: float | None
    merged_to: str | None
    patients: tuple[PatientView, ...]
    next_step: str


@dataclass(frozen=True)
class Gathering:
    """What a bundle of several channels lacks in a study. until: when that is held, or done without what is optional;
    None where the time is over."""

    bundle: str
    since_at: float
    until: float | None
    code: str
    why: str


@dataclass(frozen=True)
class StudyView:
    """A study, its series in the order they came. heard_at: when anything came, also what had come before.

    conflict: None where its images never named several patients. jobs: of several of its series, the latest first.
    gatherings: what such jobs wait for. reasons: why nothing was segmented, the latest first.
    """

    study_uid: str
    received: int
    first_at: float
    last_at: float
    heard_at: float
    series: tuple[SeriesView, ...]
    conflict: Conflict | None = None
    jobs: tuple[JobView, ...] = ()
    gatherings: tuple[Gathering, ...] = ()
    reasons: tuple[ReasonView, ...] = ()


def latest(db: Connection, limit: int, before: float | None = None) -> tuple[StudyView, ...]:
    """The studies of which something was heard last, those first. before: only those older than that moment."""
    return _read(db, series.latest_studies(db, limit, before))


def study(db: Connection, study_uid: str) -> StudyView | None:
    """A study; None where there is nothing of it."""
    return next(iter(_read(db, [study_uid])), None)


def named(db: Connection, name: str) -> StudyView | None:
    """The study whose UID is none, by the name that stands for it (`medseg.names.uid_name`)."""
    if not name.startswith("x"):
        return None
    return next((study(db, uid) for uid in series.studies(db) if uid_name(uid) == name), None)


def _read(db: Connection, study_uids: Sequence[str]) -> tuple[StudyView, ...]:
    passed_over = _passed_over(db, study_uids)
    jobs, conflicts = _jobs(db, study_uids), _conflicts(db, study_uids)
    gathered = _gatherings(db, study_uids, jobs)
    told = reasons_by_study(db, study_uids)
    last_image = instances.last_images(db, study_uids)
    heard_at: dict[str, float] = defaultdict(float)
    stopped = {uid for uid, conflict in conflicts.items() if conflict.state is ConflictState.OPEN}
    views: dict[str, list[SeriesView]] = defaultdict(list)
    for row in series.series_of(db, *study_uids):
        key = row.study_uid, row.series_uid
        last_at = last_image.get(key, row.last_at)
        heard_at[row.study_uid] = max(heard_at[row.study_uid], row.last_at)
        made = tuple(jobs.get(key, ()))
        of_study = jobs.get((row.study_uid, None), ())
        channel_of = {job.id: one for job in of_study for one in job.channels if one.series_uid == row.series_uid}
        over = passed_over.get(key)
        using = [*made, *(job for job in of_study if job.id in channel_of)]
        still = over is not None and row.state is not SeriesState.ARRIVING and over.is_latest(using)
        why, code = (over.why, over.code) if over is not None and still else (None, "")
        views[row.study_uid].append(
            SeriesView(
                row.series_uid, row.instances, row.expected, row.state, row.first_at, last_at, row.complete_at,
                row.complete_by, why, json.loads(row.passed_by),
                next_steps.for_series(row, stopped=row.study_uid in stopped) or next_steps.for_passed_over(code),
                between(row.first_at, last_at), between(last_at, row.complete_at),
                between(last_at, _seg_stored_at(made)), made, tuple(channel_of.values()),
            )
        )  # fmt: skip
    return tuple(
        StudyView(
            uid,
            sum(each.received for each in views[uid]),
            min(each.first_at for each in views[uid]),
            max(each.last_at for each in views[uid]),
            heard_at[uid],
            tuple(views[uid]),
            conflicts.get(uid),
            tuple(jobs.get((uid, None), ())),
            gathered[uid],
            told[uid],
        )
        for uid in study_uids
        if uid in views
    )


def _conflicts(db: Connection, study_uids: Sequence[str]) -> dict[str, Conflict]:
    conflicts = {}
    for row in patients.conflicts(db, study_uids):
        letters = patients.letters(patients.known(db, row.study_uid))
        conflicts[row.study_uid] = Conflict(
            row.state, row.since_at, row.settled_at, letters.get(row.winner or ""),
            tuple(
                PatientView(patient.letter, patient.calling_ae, patient.first_at, patient.instances)
                for patient in patients.described(db, row.study_uid)
            ),
            next_steps.for_conflict(row),
        )  # fmt: skip
    return conflicts


@dataclass(frozen=True)
class _PassedOver:
    """When, by which job if there was one, and why a series was passed over. code: of the error, if there was one."""

    at: float
    job_id: int | None
    why: str
    code: str = ""

    def is_latest(self, made: Sequence[JobView]) -> bool:
        """Whether no job was made of the series afterwards."""
        if self.job_id and made:
            return self.job_id == made[0].id
        return all(job.created_at <= self.at for job in made)


def _passed_over(db: Connection, study_uids: Sequence[str]) -> dict[tuple[str, str], _PassedOver]:
    """What was told last of each series that was passed over."""
    passed_over: dict[tuple[str, str], _PassedOver] = {}
    for row in events.of_studies(db, (events.PASSED_OVER, events.HELD), study_uids):
        detail = json.loads(row.detail)
        over = _PassedOver(row.at, row.job_id, detail["why"], detail.get("code", ""))
        passed_over[row.study_uid or "", row.series_uid or ""] = over
    return passed_over


def _gatherings(
    db: Connection, study_uids: Sequence[str], jobs: Mapping[tuple[str, str | None], Sequence[JobView]]
) -> dict[str, tuple[Gathering, ...]]:
    """What is missing in each study, but where a job is held for it, which tells the same."""
    gathered: dict[str, tuple[Gathering, ...]] = dict.fromkeys(study_uids, ())
    for row in gatherings.of_studies(db, study_uids):
        held = [job.state for job in jobs.get((row.study_uid, None), ()) if job.bundle == row.bundle][:1]
        if row.code is not None and held != [JobState.HELD]:
            one = Gathering(row.bundle, row.since_at, row.due_at, row.code, row.why or "")
            gathered[row.study_uid] = (*gathered[row.study_uid], one)
    return gathered


def _jobs(db: Connection, study_uids: Sequence[str]) -> dict[tuple[str, str | None], list[JobView]]:
    """By study, and series; None for those of several."""
    results = _results(db, study_uids)
    channels: dict[int, list[ChannelView]] = defaultdict(list)
    for one in study_jobs.channels_in(db, study_uids):
        channels[one.job_id].append(ChannelView(one.job_id, one.name, one.series_uid, one.volume))
    jobs: dict[tuple[str, str | None], list[JobView]] = defaultdict(list)
    for row in jobs_of(db, study_uids):
        jobs[row.study_uid, row.series_uid].append(
            JobView(
                row.id, row.rule, row.bundle, row.mode, row.state, row.attempt, row.created_at, row.started_at,
                row.finished_at, row.error_code, row.error, next_steps.for_job(row),
                None if row.state in _NOT_STARTED else between(row.ready_at, row.started_at),
                between(row.started_at, row.finished_at),
                results.get(row.id),
                tuple(channels[row.id]),
            )
        )  # fmt: skip
    return jobs


def _results(db: Connection, study_uids: Sequence[str]) -> dict[int, ResultView]:
    """Results by their job."""
    rows = results_of(db, study_uids)
    replaced = {row.predecessor_id for row in rows}
    objects, deliveries = objects_by_result(db, study_uids)
    withdrawn = {
        row.predecessor_id: WithdrawalView(row.created_at, tuple(objects[row.id]), tuple(deliveries[row.id]))
        for row in rows
        if row.kind is ResultKind.WITHDRAWAL
    }
    return {
        row.job_id: _result(row, row.id not in replaced, objects[row.id], deliveries[row.id], withdrawn.get(row.id))
        for row in rows
        if row.job_id is not None
    }


def _result(
    row: ResultRow,
    current: bool,
    objects: Iterable[Object],
    deliveries: Iterable[Delivery],
    withdrawn: WithdrawalView | None,
) -> ResultView:
    records = json.loads(row.facts)
    timings_s: dict[str, float] = defaultdict(float)
    for record in records:
        for step, seconds in record.get("timings_s", {}).items():
            timings_s[step] += seconds
    flags = {flag["message"]: None for record in records for flag in record.get("flags", ())}
    return ResultView(
        row.id, row.bundle, row.bundle_version, current, row.created_at, tuple(flags), dict(timings_s),
        tuple(objects), tuple(deliveries), withdrawn,
    )  # fmt: skip


def _seg_stored_at(jobs: Iterable[JobView]) -> float | None:
    """When a destination first had the segmentation of the current result."""
    current = [job.result for job in jobs if job.result and job.result.current]
    ways = [delivery for result in current for delivery in result.deliveries if delivery.kind.is_segmentation]
    return min((delivery.stored_at for delivery in ways if delivery.stored_at is not None), default=None)
