"""Jobs: made of a complete series, or begun on its first slices; claimed, kept, ended, tried again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, exists, insert, null, or_, select, true, update

from gateway.ledger import patients, stages, study_jobs, unanswered
from gateway.ledger.claims import NO_LEASE, Claim, claim_first, lease, move, under
from gateway.ledger.instances import lost_instances
from gateway.ledger.records import JobRow, SeriesRow
from gateway.ledger.series import series_row
from gateway.ledger.states import LIVE, JobState, SeriesState
from gateway.ledger.tables import job, of_job, of_series, series
from gateway.settings.model import Mode
from medseg.errors import MedsegError


def claim_job(db: Connection, owner: str, now: float, until: float) -> Claim | None:
    """Take the job that is due first: one in the queue, or one whose worker let its lease run out.

    One whose series is still arriving is only taken where there is no other; one for whose series more has come, not
    before that is decided upon: another job may have it then.
    """
    first = select(job.c.id).where(_claimable(now)).order_by(job.c.revision == 0, job.c.due, job.c.id)
    values = lease(job, JobState.RUNNING, owner, now, until) | {"started_at": now}
    claim = claim_first(db, job, first, values)
    if claim is not None:
        stages.job_claimed(db, claim.id, now)
    return claim


def _claimable(now: float) -> ColumnElement[bool]:
    ready = and_(job.c.state.in_((JobState.WAITING, JobState.QUEUED)), job.c.ready_at <= now)
    its = and_(series.c.study_uid == job.c.study_uid, series.c.series_uid == job.c.series_uid)
    decided = or_(
        exists().where(its, series.c.state == SeriesState.COMPLETE).correlate(job),
        and_(job.c.series_uid.is_(None), ~study_jobs.undecided(job.c.id).correlate(job)),
    )
    free = or_(ready, and_(job.c.state == JobState.RUNNING, job.c.lease_until < now))
    return and_(free, or_(job.c.revision == 0, decided), ~patients.stopped(job.c.study_uid).correlate(job))


def claim_beside(db: Connection, of: JobRow, owner: str, now: float, until: float) -> Claim | None:
    """Take another job on the series of a job, for the same images, whatever else is due: they are at hand."""
    first = select(job.c.id).where(_claimable(now), _beside(of), job.c.revision == of.revision).order_by(job.c.id)
    claim = claim_first(db, job, first, lease(job, JobState.RUNNING, owner, now, until) | {"started_at": now})
    if claim is not None:
        stages.job_claimed(db, claim.id, now)
    return claim


def has_others(db: Connection, of: JobRow) -> bool:
    """Whether more is to be done with the series of a job."""
    return bool(db.execute(select(exists().where(_beside(of), job.c.state.in_(LIVE)))).scalar())


def _beside(of: JobRow) -> ColumnElement[bool]:
    return and_(of_job(job, of.study_uid, of.series_uid), job.c.series_uid.is_not(None), job.c.id != of.id)


def awaited(db: Connection, now: float, *, arriving: bool, but: JobRow | None = None) -> bool:
    """Whether a job could be claimed whose series is complete, or still `arriving`. but: on another series than its."""
    wanted = job.c.revision == 0 if arriving else job.c.revision > 0
    if but is not None:
        wanted = and_(wanted, ~of_job(job, but.study_uid, but.series_uid))
    return bool(db.execute(select(exists().where(_claimable(now), wanted))).scalar())


def renew_job(db: Connection, claim: Claim, until: float) -> bool:
    """Keep a job for longer."""
    return move(db, job, JobState.RUNNING, claim, {"lease_until": until})


def end_job(
    db: Connection, claim: Claim, state: JobState, now: float, *, code: str | None, error: str | None, failed: int = 0
) -> bool:
    """A job is done, failed or cancelled. failed: 1 where this attempt was at fault."""
    ended = {"state": state, "finished_at": now, "error_code": code, "error": error}
    without_result = None if state == JobState.DONE else job_under(db, claim)
    moved = move(db, job, JobState.RUNNING, claim, ended | {"failures": job.c.failures + failed} | NO_LEASE)
    if moved:
        stages.job_ended(db, state, code)
    if moved and without_result is not None:
        unanswered.ask_of_job(db, without_result)
    return moved


def requeue_job(db: Connection, claim: Claim, ready_at: float, *, code: str, error: str, failed: int = 1) -> bool:
    """A job is to be tried again, not before `ready_at`. failed: 0 where this attempt was not at fault."""
    again = {"state": UNCLAIMED, "ready_at": ready_at, "error_code": code, "error": error}
    moved = move(db, job, JobState.RUNNING, claim, again | {"failures": job.c.failures + failed} | NO_LEASE)
    if moved:
        stages.job_requeued(db, code)
    return moved


def give_way(db: Connection, claim: Claim, ready_at: float, why: MedsegError | None = None) -> bool:
    """A job gives way to another: it is claimed again, not before `ready_at` unless its series is complete before.

    why: there is nothing to begin with, as far as is known yet.
    """
    again: dict[str, Any] = {"ready_at": case((job.c.revision == 0, ready_at), else_=job.c.ready_at)}
    reason = {} if why is None else {"error_code": why.code, "error": str(why)}
    return move(db, job, JobState.RUNNING, claim, {"state": UNCLAIMED} | again | reason | NO_LEASE)


#: The state of a job that nobody works on.
UNCLAIMED = case((job.c.revision == 0, JobState.WAITING), else_=JobState.QUEUED)


@dataclass(frozen=True)
class NewJob:
    """A job to be done. bundle: a name or a folder; empty for the default bundle that fits. terms: its rule's, JSON."""

    study_uid: str
    series_uid: str
    revision: int
    bundle: str
    rule: str
    mode: Mode
    state: JobState
    due: float
    terms: str = "{}"


def make_job(db: Connection, new: NewJob, at: float) -> int:
    """The one job for a series, see `make_jobs`. Returns its id."""
    return make_jobs(db, [new], at)[0]


def make_jobs(db: Connection, new: Sequence[NewJob], at: float) -> list[int]:
    """The jobs for a series, one for each bundle: they take the place of whatever was to be done with it before.
    Returns their ids.

    Where the same was begun while the series was arriving, that becomes the job, and goes on if it runs.
    """
    begun = [_same_begun(db, one) for one in new]
    cancel_jobs(db, new[0].study_uid, new[0].series_uid, at, but=[number for number in begun if number is not None])
    return [
        _insert(db, one, {"ready_at": at, "created_at": at}) if number is None else _take_up(db, number, one, at)
        for one, number in zip(new, begun, strict=True)
    ]


def _take_up(db: Connection, begun: int, new: NewJob, at: float) -> int:
    fixed: dict[str, Any] = {"revision": new.revision, "due": new.due, "ready_at": at, "started_at": at}
    state = case((job.c.state == JobState.WAITING, JobState.QUEUED), else_=job.c.state)
    for name in ("error_code", "error"):  # why it was not begun with; that an attempt failed is kept
        fixed[name] = case((job.c.failures > 0, job.c[name]), else_=null())
    db.execute(update(job).where(job.c.id == begun).values(state=state, **fixed))
    stages.job_claimed(db, begun, at)
    return begun


def _insert(db: Connection, new: NewJob, facts: Mapping[str, Any]) -> int:
    return int(db.execute(insert(job).returning(job.c.id), asdict(new) | {"attempt": 0} | dict(facts)).scalar_one())


def _same_begun(db: Connection, new: NewJob) -> int | None:
    """The job that was begun on the first slices of a series, where it is of the same rule and bundle."""
    begun = and_(
        of_series(job, new.study_uid, new.series_uid),
        job.c.state.in_((JobState.WAITING, JobState.RUNNING)),
        job.c.revision == 0,
    )
    same = [getattr(job.c, name) == getattr(new, name) for name in ("bundle", "rule", "terms", "mode")]
    if new.state != JobState.QUEUED:
        return None
    return db.execute(select(job.c.id).where(begun, *same)).scalar_one_or_none()


def begin_jobs(db: Connection, new: Sequence[NewJob], at: float) -> list[int]:
    """Jobs for a series that is still arriving, one for each bundle; none where it has, or had, some already. Returns
    their ids."""
    if not new or db.execute(select(exists().where(of_series(job, new[0].study_uid, new[0].series_uid)))).scalar():
        return []
    facts = {"state": JobState.WAITING, "revision": 0, "ready_at": at, "created_at": at}
    return [_insert(db, one, facts) for one in new]


def cancel_jobs(
    db: Connection, study_uid: str, series_uid: str, at: float, *, begun: bool = False, but: Collection[int] = ()
) -> None:
    """Whatever was to be done with a series is not, any more, `but` some jobs. begun: only what was begun on its first
    slices."""
    old = and_(
        of_series(job, study_uid, series_uid),
        job.c.state.in_(LIVE),
        job.c.revision == 0 if begun else true(),
        job.c.id.not_in(but),
    )
    over = {"state": JobState.CANCELLED, "finished_at": at, "error": LATER} | NO_LEASE
    for _ in range(db.execute(update(job).where(old).values(**over)).rowcount):
        stages.job_ended(db, JobState.CANCELLED, "series_changed")


LATER = "images came after the job was made: another job has them, or no rule wants them"
CHANGED = "its series changed after the job was made: it is for the series as it is now"


#: Why a job failed that makes a person's retry mean: without what is missing.
ACCEPTED = ("images_lost", "less_complete")
LOST = "{} of its images are lost: send them again, then run the job again; or run it again without them"


def job_row(db: Connection, job_id: int) -> JobRow:
    return JobRow.one(db, select(job).where(job.c.id == job_id))


def find_job(db: Connection, job_id: int) -> JobRow | None:
    """None where there is no such job."""
    return JobRow.one_or_none(db, select(job).where(job.c.id == job_id))


def job_under(db: Connection, claim: Claim) -> JobRow | None:
    """The job of a claim; None where the claim has run out, or the job was purged."""
    return JobRow.one_or_none(db, select(job).where(under(job, JobState.RUNNING, claim)))


def has_job(db: Connection, job_id: int) -> bool:
    """Whether a job is in the ledger; one whose study was purged is not."""
    return bool(db.execute(select(exists().where(job.c.id == job_id))).scalar())


def jobs_in(db: Connection, *states: JobState) -> list[JobRow]:
    """The jobs in some states, the oldest first."""
    return JobRow.all(db, select(job).where(job.c.state.in_(states)).order_by(job.c.id))


def jobs_of(db: Connection, study_uids: Collection[str]) -> list[JobRow]:
    """The jobs of some studies, newest first."""
    return JobRow.all(db, select(job).where(job.c.study_uid.in_(study_uids)).order_by(job.c.id.desc()))


def latest_job(db: Connection, study_uid: str, series_uid: str) -> JobRow | None:
    """The latest job of a series; None where it never had one."""
    mine = select(job).where(of_series(job, study_uid, series_uid))
    return JobRow.one_or_none(db, mine.order_by(job.c.id.desc()).limit(1))


def made_last(db: Connection, study_uid: str, series_uid: str) -> list[JobRow]:
    """The jobs of a series, one for each bundle, that were made for it as it was at last; newest first."""
    last = latest_job(db, study_uid, series_uid)
    if last is None:
        return []
    same = and_(of_series(job, study_uid, series_uid), job.c.revision == last.revision, job.c.rule == last.rule)
    return JobRow.all(db, select(job).where(same).order_by(job.c.id.desc()))


def release_held(db: Connection, job_id: int, at: float) -> bool:
    """A held job may run; False where it is not held, or lacks something."""
    held = and_(job.c.id == job_id, job.c.state == JobState.HELD, job.c.error_code.is_(None))
    return db.execute(update(job).where(held).values(state=JobState.QUEUED, ready_at=at)).rowcount == 1


def keep_job(db: Connection, claim: Claim, now: float) -> None:
    """The series of a job has changed, and no other job was made of it: this one is for the series as it is now, once
    that is decided upon. Where images of it are lost, somebody has to look.
    """
    mine = job_under(db, claim)
    if mine is None:
        return
    lost = sum(lost_instances(db, one) for one in _inputs(db, mine) if one.state == SeriesState.COMPLETE)
    if lost:
        end_job(db, claim, JobState.FAILED, now, code="images_lost", error=LOST.format(lost))
    else:
        _take_as_they_are(db, mine)
        requeue_job(db, claim, now, code="series_changed", error=CHANGED, failed=0)


def _inputs(db: Connection, row: JobRow) -> list[SeriesRow]:
    """The series that a job is for."""
    if row.series_uid is None:
        return study_jobs.inputs(db, row.id)
    return [series_row(db, row.study_uid, row.series_uid)]


def _take_as_they_are(db: Connection, row: JobRow) -> None:
    """A job is for its series as they are now."""
    inputs = _inputs(db, row)
    db.execute(update(job).where(job.c.id == row.id).values(revision=sum(one.revision for one in inputs)))
    study_jobs.take_as_they_are(db, row.id, inputs)


def retry_job(db: Connection, job_id: int, at: float) -> str:
    """A failed job may run again, as if it never had, on its series as it is now: what had been lost may have been sent
    again. Returns why it may not, or an empty text."""
    row = find_job(db, job_id)
    if row is None or row.state != JobState.FAILED:
        return f"job {job_id} {'is not there' if row is None else f'is {row.state}'}: only a failed job is run again"
    arriving = any(one.state != SeriesState.COMPLETE for one in _inputs(db, row))
    later = and_(of_job(job, row.study_uid, row.series_uid), job.c.id > job_id)
    same = job.c.bundle == row.bundle  # those of other bundles of its rule are made with it
    later = and_(later, same if row.series_uid is None else or_(same, job.c.revision > row.revision))
    if (arriving and row.revision) or db.execute(select(exists().where(later))).scalar():
        return f"job {job_id} is not run again: another job has the images of its series, or will have them"
    if not arriving:
        _take_as_they_are(db, row)
    again = {
        "state": JobState.WAITING if arriving else JobState.QUEUED,
        "may_lack": int(row.may_lack or row.error_code in ACCEPTED),
        "ready_at": at,
        "failures": 0,
        "tried_from": None,
        "finished_at": None,
        "error_code": None,
        "error": None,
    }
    db.execute(update(job).where(job.c.id == job_id).values(**again))
    return ""


def latest_jobs(db: Connection, limit: int) -> list[JobRow]:
    """The latest jobs, newest first."""
    return JobRow.all(db, select(job).order_by(job.c.id.desc()).limit(limit))
