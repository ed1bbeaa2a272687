"""From a series that arrives to results that wait for the sender: the moves of series, jobs and results.

As in `gateway.rows`, each function takes a connection inside a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, exists, func, insert, null, select, true, update

from gateway import rows, stages
from gateway.prepared import UPSERT
from gateway.rows import COUNTING, Claim
from gateway.tables import association, commitment, delivery, event, instance, job, result, result_object, series
from medseg.dicom.classes import IMAGES
from medseg.errors import MedsegError

LIVE = ("waiting", "held", "queued", "running")
UNDELIVERED = ("queued", "sending", "stored")


# ---- series


def unsettled_series(db: Connection) -> Sequence[Row[Any]]:
    """The series that have something not decided upon."""
    return db.execute(select(series).where(series.c.state.in_(("arriving", "held")))).all()


class Erased(MedsegError):
    """A series is not in the ledger any more: its study was purged."""

    code = "erased"

    def __init__(self, series_uid: str) -> None:
        super().__init__(f"series {series_uid} is not in the ledger any more: its study was purged")


def series_row(db: Connection, study_uid: str, series_uid: str) -> Row[Any]:
    """What is known of a series. Raises Erased."""
    row = db.execute(select(series).where(_of(series, study_uid, series_uid))).one_or_none()
    if row is None:
        raise Erased(series_uid)
    return row


def counting_instances(db: Connection, study_uid: str, series_uid: str) -> Sequence[Row[Any]]:
    """The instances of a series that count, in the order they came."""
    counts = and_(_of(instance, study_uid, series_uid), instance.c.state.in_(COUNTING))
    return db.execute(select(instance).where(counts).order_by(instance.c.received_at, instance.c.id)).all()


def deleted_instances(db: Connection, study_uid: str, series_uid: str) -> int:
    """How many of the instances of a series that count have lost their file to retention."""
    gone = and_(
        _of(instance, study_uid, series_uid), instance.c.state.in_(COUNTING), instance.c.deleted_at.is_not(None)
    )
    return int(db.execute(select(func.count()).select_from(instance).where(gone)).scalar_one())


def lost_instances(db: Connection, of: Row[Any]) -> int:
    """How many of the instances of a series have come, and do not count: no version of them has a file any more."""
    came = select(func.count(func.distinct(instance.c.sop_instance_uid)))
    return int(db.execute(came.where(_of(instance, of.study_uid, of.series_uid))).scalar_one()) - int(of.instances)


def first_instances(db: Connection, study_uid: str, series_uid: str, last_id: int) -> Sequence[Row[Any]]:
    """The versions of the instances of a series up to one of them, in the order they first came."""
    told = instance.c.state.not_in(("missing", "pending", "copy"))
    came = and_(_of(instance, study_uid, series_uid), instance.c.id <= last_id, told)
    return db.execute(select(instance).where(came).order_by(instance.c.id)).all()


def taken(db: Connection, study_uid: str) -> dict[str, tuple[float, int]]:
    """When each series of a study was last decided upon, and its latest instance then; not those that never were."""
    decided = and_(series.c.study_uid == study_uid, series.c.taken_at.is_not(None))
    found = db.execute(select(series.c.series_uid, series.c.taken_at, series.c.taken_id).where(decided))
    return {uid: (at, last_id) for uid, at, last_id in found}


def complete_series(
    db: Connection,
    study_uid: str,
    series_uid: str,
    revision: int,
    by: str,
    at: float,
    passed_by: Mapping[str, int] | None = None,
) -> bool:
    """All of a series is here; False where something came after that revision, or is still to be compared.

    passed_by: what of it is not segmented, and how many of it; None where that is known already.
    """
    latest = select(func.max(instance.c.id)).where(_of(instance, study_uid, series_uid)).scalar_subquery()
    done: dict[str, Any] = {"state": "complete", "complete_by": by, "complete_at": at}
    done |= {"taken_at": at, "taken_id": latest}
    if passed_by is not None:
        done["passed_by"] = json.dumps(dict(passed_by))
    pending = exists().where(_of(instance, study_uid, series_uid), instance.c.state == "pending")
    same = and_(series.c.revision == revision, ~pending, series.c.state != "complete")
    still = and_(_of(series, study_uid, series_uid), same)
    moved = db.execute(update(series).where(still).values(done)).rowcount == 1
    if moved:
        stages.series_complete(db, study_uid, series_uid)
    return moved


def hold_series(db: Connection, study_uid: str, series_uid: str, revision: int) -> bool:
    """A series is not known to be complete, and its rule does not want it so."""
    still = and_(_of(series, study_uid, series_uid), series.c.revision == revision, series.c.state == "arriving")
    return db.execute(update(series).where(still).values(state="held")).rowcount == 1


def _of(table: Any, study_uid: str, series_uid: str) -> Any:
    return and_(table.c.study_uid == study_uid, table.c.series_uid == series_uid)


# ---- associations


def open_associations(db: Connection) -> Sequence[Row[Any]]:
    return db.execute(select(association).where(association.c.ended_at.is_(None))).all()


def associations(db: Connection, ids: Iterable[str]) -> Sequence[Row[Any]]:
    """Those associations, in the order in which they ended."""
    chosen = association.c.id.in_(list(ids))
    return db.execute(select(association).where(chosen).order_by(association.c.ended_at)).all()


# ---- jobs


@dataclass(frozen=True)
class NewJob:
    """A job to be done. bundle: a name or a folder; empty for the default bundle that fits. terms: its rule's, JSON."""

    study_uid: str
    series_uid: str
    revision: int
    bundle: str
    rule: str
    mode: str
    state: str
    due: float
    terms: str = "{}"


def make_job(db: Connection, new: NewJob, at: float) -> int:
    """A job for a series, which takes the place of whatever was to be done with it before. Returns its id.

    Where the same was begun while the series was arriving, that becomes the job, and goes on if it runs.
    """
    begun = _same_begun(db, new)
    if begun is not None:
        fixed: dict[str, Any] = {"revision": new.revision, "due": new.due, "ready_at": at, "started_at": at}
        state = case((job.c.state == "waiting", "queued"), else_=job.c.state)
        for name in ("error_code", "error"):  # why it was not begun with; that an attempt failed is kept
            fixed[name] = case((job.c.failures > 0, job.c[name]), else_=null())
        db.execute(update(job).where(job.c.id == begun).values(state=state, **fixed))
        stages.job_claimed(db, begun, at)
        return begun
    cancel_jobs(db, new.study_uid, new.series_uid, at)
    facts = asdict(new) | {"ready_at": at, "created_at": at, "attempt": 0}
    return int(db.execute(insert(job).returning(job.c.id), facts).scalar_one())


def _same_begun(db: Connection, new: NewJob) -> int | None:
    """The job that was begun on the first slices of a series, where it is of the same rule and bundle."""
    begun = and_(_of(job, new.study_uid, new.series_uid), job.c.state.in_(("waiting", "running")), job.c.revision == 0)
    same = [getattr(job.c, name) == getattr(new, name) for name in ("bundle", "rule", "terms", "mode")]
    if new.state != "queued":
        return None
    return db.execute(select(job.c.id).where(begun, *same)).scalar_one_or_none()


def begin_job(db: Connection, new: NewJob, at: float) -> int | None:
    """A job for a series that is still arriving; None where it has, or had, one already. Returns its id."""
    if db.execute(select(exists().where(_of(job, new.study_uid, new.series_uid)))).scalar():
        return None
    facts = asdict(new) | {"state": "waiting", "revision": 0, "ready_at": at, "created_at": at, "attempt": 0}
    return int(db.execute(insert(job).returning(job.c.id), facts).scalar_one())


def cancel_jobs(db: Connection, study_uid: str, series_uid: str, at: float, *, begun: bool = False) -> None:
    """Whatever was to be done with a series is not, any more. begun: only what was begun on its first slices."""
    old = and_(_of(job, study_uid, series_uid), job.c.state.in_(LIVE), job.c.revision == 0 if begun else true())
    over = {"state": "cancelled", "finished_at": at, "lease_owner": None, "lease_until": None, "error": LATER}
    for _ in range(db.execute(update(job).where(old).values(**over)).rowcount):
        stages.job_ended(db, "cancelled", "series_changed")


LATER = "images came after the job was made: another job has them, or no rule wants them"
CHANGED = "its series changed after the job was made: it is for the series as it is now"
#: Why a job failed that makes a person's retry mean: without what is missing.
ACCEPTED = ("images_lost", "less_complete")
LOST = "{} of its images are lost: send them again, then run the job again; or run it again without them"


def job_row(db: Connection, job_id: int) -> Row[Any]:
    return db.execute(select(job).where(job.c.id == job_id)).one()


def job_under(db: Connection, claim: Claim) -> Row[Any] | None:
    """The job of a claim; None where the claim has run out, or the job was purged."""
    mine = and_(job.c.id == claim.id, job.c.attempt == claim.attempt, job.c.state == "running")
    return db.execute(select(job).where(mine)).one_or_none()


def has_job(db: Connection, job_id: int) -> bool:
    """Whether a job is in the ledger; one whose study was purged is not."""
    return bool(db.execute(select(exists().where(job.c.id == job_id))).scalar())


def running_jobs(db: Connection) -> Sequence[Row[Any]]:
    return db.execute(select(job).where(job.c.state == "running")).all()


def release_job(db: Connection, job_id: int, at: float) -> bool:
    """A held job may run; False where it is not held."""
    held = and_(job.c.id == job_id, job.c.state == "held")
    return db.execute(update(job).where(held).values(state="queued", ready_at=at)).rowcount == 1


def keep_job(db: Connection, claim: Claim, now: float) -> None:
    """The series of a job has changed, and no other job was made of it: this one is for the series as it is now, once
    that is decided upon. Where images of it are lost, somebody has to look.
    """
    mine = job_under(db, claim)
    if mine is None:
        return
    of = series_row(db, mine.study_uid, mine.series_uid)
    lost = lost_instances(db, of)
    if lost and of.state == "complete":
        rows.end_job(db, claim, "failed", now, code="images_lost", error=LOST.format(lost))
    else:
        db.execute(update(job).where(job.c.id == claim.id).values(revision=of.revision))
        rows.requeue_job(db, claim, now, code="series_changed", error=CHANGED, failed=0)


def retry_job(db: Connection, job_id: int, at: float) -> str:
    """A failed job may run again, as if it never had, on its series as it is now: what had been lost may have been sent
    again. Returns why it may not, or an empty text."""
    row = db.execute(select(job).where(job.c.id == job_id)).one_or_none()
    if row is None or row.state != "failed":
        return f"job {job_id} {'is not there' if row is None else f'is {row.state}'}: only a failed job is run again"
    of = series_row(db, row.study_uid, row.series_uid)
    arriving = of.state != "complete"
    later = and_(_of(job, row.study_uid, row.series_uid), job.c.id > job_id)
    if (arriving and row.revision) or db.execute(select(exists().where(later))).scalar():
        return f"job {job_id} is not run again: another job has the images of its series, or will have them"
    then = {"state": "waiting"} if arriving else {"state": "queued", "revision": of.revision}
    again = {
        "may_lack": int(row.may_lack or row.error_code in ACCEPTED),
        "ready_at": at,
        "failures": 0,
        "tried_from": None,
        "finished_at": None,
        "error_code": None,
        "error": None,
    }
    db.execute(update(job).where(job.c.id == job_id).values(**then, **again))
    return ""


# ---- what waits by the wall clock


def shift_waits(db: Connection, by_s: float) -> None:
    """The wall clock was set by so many seconds: what waits for a moment goes on waiting as long as it was to."""
    db.execute(_later(job, by_s, "due", "ready_at", "lease_until", "tried_from").where(job.c.state.in_(LIVE)))
    db.execute(_later(delivery, by_s, "ready_at", "lease_until", "tried_from").where(delivery.c.state.in_(UNDELIVERED)))
    unreported = commitment.c.state.in_(("waiting", "known"))
    db.execute(_later(commitment, by_s, "asked_at", "known_at", "ready_at").where(unreported))


def _later(table: Any, by_s: float, *columns: str) -> Any:
    """An absent moment stays absent."""
    return update(table).values({name: table.c[name] + by_s for name in columns})


def cap_waits(db: Connection, until: float) -> int:
    """Nothing waits beyond a moment: only a clock that was set back while nobody looked lets it. Returns how many."""
    return sum(
        db.execute(update(one).where(one.c.state == state, one.c.ready_at > until).values(ready_at=until)).rowcount
        for one, state in ((job, "queued"), (delivery, "queued"), (delivery, "stored"))
    )


# ---- results


@dataclass(frozen=True)
class NewObject:
    """An object of a result, frozen on disk. path: relative to the spool."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class NewResult:
    """What a job came to. facts: the records of `result.json`, one for each stack. sources: what each was made of."""

    result_key: str
    bundle: str
    bundle_version: str
    facts: Sequence[Mapping[str, Any]]
    objects: tuple[NewObject, ...]
    sources: Sequence[Mapping[str, Any]] = ()


def has_result(db: Connection, result_key: str) -> bool:
    return bool(db.execute(select(exists().where(result.c.result_key == result_key))).scalar())


def has_object_in(db: Connection, folder: str) -> bool:
    """Whether an object of a result lies in a folder of the spool, given with its last slash."""
    return bool(db.execute(select(exists().where(result_object.c.path.startswith(folder, autoescape=True)))).scalar())


def calling_ae(db: Connection, study_uid: str, series_uid: str) -> str | None:
    """Who sent a series: most of its images, or of whatever it holds; of equally many, the first by name."""
    is_image = case((instance.c.sop_class_uid.in_(sorted(IMAGES)), 0), else_=1)
    counting = and_(_of(instance, study_uid, series_uid), instance.c.state.in_(COUNTING))
    counted = select(instance.c.calling_ae).where(counting).group_by(instance.c.calling_ae, is_image)
    most = counted.order_by(is_image, func.count().desc(), instance.c.calling_ae).limit(1)
    return db.execute(most).scalar()


def current_result(db: Connection, study_uid: str, series_uid: str, bundle: str) -> Row[Any] | None:
    """The result of a series and bundle that no other names as its predecessor."""
    mine = and_(_of(result, study_uid, series_uid), result.c.bundle == bundle)
    later = result.alias()
    current = select(result).where(mine, ~exists().where(later.c.predecessor_id == result.c.id))
    return db.execute(current).one_or_none()


def finish_job(db: Connection, claim: Claim, new: NewResult, destinations: Iterable[str], now: float) -> bool:
    """A job is done: its result is current, and on its way; the sender drops what it replaces and was not sent.

    The same result, made before for the same content, stays as it is; and so does an object, of a stack that is as it
    was: it goes over to the new result with its deliveries. False where the claim has run out.
    """
    if not rows.end_job(db, claim, "done", now, code=None, error=None):
        return False
    if has_result(db, new.result_key):
        return True
    of = job_row(db, claim.id)
    before = current_result(db, of.study_uid, of.series_uid, new.bundle)
    facts = {
        "job_id": claim.id,
        "result_key": new.result_key,
        "study_uid": of.study_uid,
        "series_uid": of.series_uid,
        "bundle": new.bundle,
        "bundle_version": new.bundle_version,
        "predecessor_id": None if before is None else before.id,
        "facts": json.dumps(list(new.facts)),
        "sources": json.dumps(list(new.sources)),
        "created_at": now,
    }
    result_id = db.execute(insert(result).returning(result.c.id), facts).scalar_one()
    for one in new.objects:
        object_id = _file_object(db, result_id, one)
        for destination in destinations:
            _deliver(db, object_id, destination, now)
    stages.result_made(db, claim.id, now, new.facts)
    return True


def _file_object(db: Connection, result_id: int, one: NewObject) -> int:
    """An object becomes a part of a result, be it new or of one before. Returns its id."""
    same = result_object.c.path == one.path
    mine = update(result_object).where(same).values(result_id=result_id, kind=one.kind)
    known = db.execute(mine.returning(result_object.c.id)).scalar()
    if known is not None:
        return int(known)
    new = insert(result_object).returning(result_object.c.id)
    return int(db.execute(new, asdict(one) | {"result_id": result_id}).scalar_one())


def _deliver(db: Connection, object_id: int, destination: str, now: float) -> None:
    """An object is to be at a destination: what is on its way, or there, stays so."""
    again = {"state": "queued", "ready_at": now, "failures": 0, "tried_from": None}
    way = {"object_id": object_id, "destination": destination, "attempt": 0, "created_at": now}
    db.execute(
        UPSERT[db.dialect.name](delivery)
        .values(way | again)
        .on_conflict_do_update(
            index_elements=[delivery.c.object_id, delivery.c.destination],
            set_=again,
            where=delivery.c.state == "cancelled",
        )
    )


# ---- for people


def latest_jobs(db: Connection, limit: int) -> list[dict[str, Any]]:
    """The latest jobs, newest first."""
    found = db.execute(select(job).order_by(job.c.id.desc()).limit(limit))
    return [dict(row._mapping) for row in found]


def settings_told(db: Connection) -> dict[str, list[str]]:
    """What the last reading of the settings came to: `problems` that kept the old ones, keys `kept` till a restart, and
    `doubts` about those in force."""
    told: dict[str, list[str]] = {"problems": [], "kept": [], "doubts": []}
    for kind in (SETTINGS, DOUBTS):
        last = select(event.c.detail).where(event.c.kind == kind).order_by(event.c.id.desc()).limit(1)
        told |= json.loads(db.execute(last).scalar() or "{}")
    return told


def tell_settings(db: Connection, problems: Iterable[str], kept: Iterable[str], at: float) -> None:
    """The settings were read."""
    rows.record(db, SETTINGS, at, None, {"problems": list(problems), "kept": list(kept)})


def tell_doubts(db: Connection, doubts: Iterable[str], at: float) -> None:
    """The settings in force were looked at: what in them cannot work, or not as it looks."""
    rows.record(db, DOUBTS, at, None, {"doubts": list(doubts)})


SETTINGS = "settings.read"
DOUBTS = "settings.doubted"


def tell(
    db: Connection,
    kind: str,
    at: float,
    study_uid: str,
    series_uid: str,
    detail: Mapping[str, Any],
    job_id: int | None = None,
) -> None:
    """Something about a series that people should be able to look up later; UIDs and facts, never names."""
    facts = {"kind": kind, "at": at, "study_uid": study_uid, "series_uid": series_uid, "job_id": job_id}
    db.execute(insert(event), facts | {"detail": json.dumps(dict(detail))})
