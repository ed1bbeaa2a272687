"""What was decided once, decided again: series asked anew, jobs run or dismissed by hand.

A series that is sent again brings nothing new, and what was decided upon it stands. Where the rules of now make
something else of it, or it came to nothing, it is asked anew: by itself once it has come again, or by hand. Asked anew,
a series is as if it had just come: quiet times, rules, a job that takes the place of the one before.

Each function takes a connection inside a transaction, as `Ledger.write` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, func, select, update

from gateway.ledger import events, instances, jobs, patients, study_jobs
from gateway.ledger import series as series_rows
from gateway.ledger.jobs import NewJob
from gateway.ledger.records import JobRow, SeriesRow
from gateway.ledger.states import JobState, SeriesState
from gateway.ledger.study_jobs import NewStudyJob
from gateway.ledger.tables import job, of_series, series

DISMISSED = "dismissed"
#: What makes two jobs of a series the same work.
_WORK = ("bundle", "rule", "terms", "mode")


def sent_again(db: Connection, before: float) -> list[SeriesRow]:
    """The series of which images came again, the last of them before a moment, after all was decided."""
    again = and_(
        series.c.state == SeriesState.COMPLETE, series.c.last_at > series.c.taken_at, series.c.last_at <= before
    )
    return SeriesRow.all(db, select(series).where(again))


def decide_again(db: Connection, of: SeriesRow, new: Sequence[NewJob | NewStudyJob], at: float) -> bool:
    """A series was sent again, and the rules of now make `new` of it, or nothing. Returns whether it is asked anew."""
    if any(_is_other(_last(db, of, one), one) for one in new):
        return reopen(db, of.study_uid, of.series_uid)
    still = and_(of_series(series, of.study_uid, of.series_uid), series.c.last_at == of.last_at)
    db.execute(update(series).where(still, series.c.state == SeriesState.COMPLETE).values(taken_at=at))
    return False


def _last(db: Connection, of: SeriesRow, new: NewJob | NewStudyJob) -> JobRow | None:
    """What was made last in place of a job."""
    if isinstance(new, NewStudyJob):
        return study_jobs.latest_job(db, of.study_uid, new.bundle)
    made = jobs.made_last(db, of.study_uid, of.series_uid)
    return next((one for one in made if one.bundle == new.bundle), made[0] if made else None)


def _is_other(last: JobRow | None, new: NewJob | NewStudyJob) -> bool:
    return last is None or last.state == JobState.CANCELLED or _work(last) != _work(new)


def reopen(db: Connection, study_uid: str, series_uid: str) -> bool:
    """A complete series is decided upon anew. False where it is not complete, or some of its images were deleted."""
    if instances.deleted_instances(db, study_uid, series_uid):
        return False
    whole = and_(of_series(series, study_uid, series_uid), series.c.state == SeriesState.COMPLETE)
    undecided = {
        "state": SeriesState.ARRIVING,
        "complete_at": None,
        "complete_by": None,
        "taken_at": None,
        "taken_id": None,
    }
    anew = update(series).where(whole).values(revision=series.c.revision + 1, **undecided)
    return db.execute(anew).rowcount == 1


def run_by_hand(db: Connection, jobs_: Sequence[NewJob], at: float) -> str:
    """Jobs that a person asks for, on a series as it is now. Returns why they cannot be, or an empty text."""
    new = jobs_[0]
    of = series_rows.series_row(db, new.study_uid, new.series_uid)
    if of.state != SeriesState.COMPLETE:
        return "images of it may still come: it has its job when it is complete"
    if any(row.study_uid == new.study_uid for row in patients.open_conflicts(db)):
        return "its study has images of two patients: `medseg studies` settles that first"
    if instances.deleted_instances(db, new.study_uid, new.series_uid):
        return "images of it were deleted by retention: send it again"
    jobs.make_jobs(db, jobs_, at)
    return ""


def dismiss(db: Connection, job_id: int, at: float) -> bool:
    """Nothing more is to be done about a job that failed, or lacks something; its series go as others do. False where
    it did not, and lacks nothing."""
    row = jobs.find_job(db, job_id)
    if row is None or not (row.state == JobState.FAILED or row.lacks_something):
        return False
    over = {"state": JobState.CANCELLED, "finished_at": func.coalesce(job.c.finished_at, at)}
    db.execute(update(job).where(job.c.id == job_id).values(over))
    detail = {"why": f"{DISMISSED} by hand: {row.error}", "code": DISMISSED}
    uids = {"study_uid": row.study_uid, "series_uid": row.series_uid}
    events.record(db, events.PASSED_OVER, at, detail, job_id=job_id, **uids)
    return True


def _work(of: JobRow | NewJob | NewStudyJob) -> tuple[str, ...]:
    return tuple(getattr(of, name) for name in _WORK)
