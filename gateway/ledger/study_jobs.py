"""Jobs of a study: of a bundle of several channels, each of which is a series, or one volume of a series.

They name no series themselves; `job_channel` has those of their channels. Of each study and bundle one at most is live.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Exists, and_, delete, exists, insert, select, update

from gateway.ledger import stages
from gateway.ledger.claims import NO_LEASE
from gateway.ledger.records import JobChannelRow, JobRow, SeriesRow
from gateway.ledger.states import LIVE, JobState, SeriesState
from gateway.ledger.tables import job, job_channel, of_job, series
from gateway.settings.model import Mode

LATER = "other images came after the job was made: another job has them"


@dataclass(frozen=True)
class NewChannel:
    """A channel of a job to be made. volume: which of the series, from 1 on."""

    name: str
    series_uid: str
    revision: int
    volume: int


@dataclass(frozen=True)
class NewStudyJob:
    """A job to be done, or that lacks something. terms: its rule's, JSON. code, error: what it lacks."""

    study_uid: str
    bundle: str
    rule: str
    mode: Mode
    state: JobState
    due: float
    terms: str
    channels: tuple[NewChannel, ...]
    code: str | None = None
    error: str | None = None


def make_job(db: Connection, new: NewStudyJob, at: float) -> int:
    """A job of a study, which takes the place of the one before that is not over. Returns its id.

    One that was held, since it lacked something, becomes the job.
    """
    before = live_job(db, new.study_uid, new.bundle)
    own = {name: getattr(new, name) for name in ("rule", "mode", "state", "due", "terms", "error")}
    facts: dict[str, Any] = own | {"error_code": new.code, "ready_at": at}
    facts["revision"] = sum({one.series_uid: one.revision for one in new.channels}.values()) or 1
    if before is not None and before.state == JobState.HELD:
        db.execute(update(job).where(job.c.id == before.id).values(**facts))
        _set_channels(db, before.id, new)
        return before.id
    if before is not None:
        cancel_job(db, before, at)
    facts |= {"study_uid": new.study_uid, "bundle": new.bundle, "created_at": at, "attempt": 0}
    job_id = int(db.execute(insert(job).returning(job.c.id), facts).scalar_one())
    _set_channels(db, job_id, new)
    return job_id


def _set_channels(db: Connection, job_id: int, new: NewStudyJob) -> None:
    db.execute(delete(job_channel).where(job_channel.c.job_id == job_id))
    of = {"job_id": job_id, "study_uid": new.study_uid}
    for place, one in enumerate(new.channels, 1):
        db.execute(insert(job_channel), asdict(one) | of | {"place": place})


def cancel_job(db: Connection, row: JobRow, at: float, why: str = LATER) -> None:
    """A job that is not over is not to be done any more."""
    over = {"state": JobState.CANCELLED, "finished_at": at, "error": why} | NO_LEASE
    db.execute(update(job).where(job.c.id == row.id).values(**over))
    stages.job_ended(db, JobState.CANCELLED, "series_changed")


def live_job(db: Connection, study_uid: str, bundle: str) -> JobRow | None:
    """The job of a study that is not over."""
    live = and_(of_job(job, study_uid, None), job.c.bundle == bundle, job.c.state.in_(LIVE))
    return JobRow.one_or_none(db, select(job).where(live))


def latest_job(db: Connection, study_uid: str, bundle: str) -> JobRow | None:
    """The latest job of a study and bundle; None where there never was one."""
    mine = select(job).where(of_job(job, study_uid, None), job.c.bundle == bundle)
    return JobRow.one_or_none(db, mine.order_by(job.c.id.desc()).limit(1))


def channels_of(db: Connection, job_id: int) -> list[JobChannelRow]:
    """The series of a job, channel by channel."""
    of = select(job_channel).where(job_channel.c.job_id == job_id)
    return JobChannelRow.all(db, of.order_by(job_channel.c.place))


def channels_in(db: Connection, study_uids: Collection[str]) -> list[JobChannelRow]:
    """The channels of all jobs of some studies, the latest job's first."""
    of = select(job_channel).where(job_channel.c.study_uid.in_(study_uids))
    return JobChannelRow.all(db, of.order_by(job_channel.c.job_id.desc(), job_channel.c.place))


def inputs(db: Connection, job_id: int) -> list[SeriesRow]:
    """The series that a job is for, each once."""
    mine = exists().where(_its(), job_channel.c.job_id == job_id)
    return SeriesRow.all(db, select(series).where(mine.correlate(series)))


def take_as_they_are(db: Connection, job_id: int, of: Iterable[SeriesRow]) -> None:
    """A job is for its series as they are now."""
    for row in of:
        mine = and_(job_channel.c.job_id == job_id, job_channel.c.series_uid == row.series_uid)
        db.execute(update(job_channel).where(mine).values(revision=row.revision))


def has_changed(db: Connection, job_id: int) -> bool:
    """Whether a series is not any more what a job is for."""
    other = and_(_its(), job_channel.c.job_id == job_id, job_channel.c.revision != series.c.revision)
    return bool(db.execute(select(exists().where(other))).scalar())


def undecided(job_id: Any) -> Exists:
    """Whether more has come for a series of a job, by a column, or its id, on which nothing is decided: a condition."""
    return exists().where(_its(), job_channel.c.job_id == job_id, series.c.state != SeriesState.COMPLETE)


def is_undecided(db: Connection, job_id: int) -> bool:
    return bool(db.execute(select(undecided(job_id))).scalar())


def _its() -> Any:
    same_study = series.c.study_uid == job_channel.c.study_uid
    return and_(same_study, series.c.series_uid == job_channel.c.series_uid)
