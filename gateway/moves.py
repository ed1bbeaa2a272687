"""From a series that arrives to results that wait for the sender: the moves of series, jobs and results.

As in `gateway.rows`, each function takes a connection inside a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, exists, func, insert, select, update

from gateway import rows
from gateway.rows import COUNTING, Claim
from gateway.tables import association, delivery, event, instance, job, result, result_object, series

LIVE = ("waiting", "held", "queued", "running")


# ---- series


def unsettled_series(db: Connection) -> Sequence[Row[Any]]:
    """The series that have something not decided upon."""
    return db.execute(select(series).where(series.c.state.in_(("arriving", "held")))).all()


def series_row(db: Connection, study_uid: str, series_uid: str) -> Row[Any]:
    return db.execute(select(series).where(_of(series, study_uid, series_uid))).one()


def counting_instances(db: Connection, study_uid: str, series_uid: str) -> Sequence[Row[Any]]:
    """The instances of a series that count, in the order they came."""
    counts = and_(_of(instance, study_uid, series_uid), instance.c.state.in_(COUNTING))
    return db.execute(select(instance).where(counts).order_by(instance.c.received_at, instance.c.id)).all()


def first_instances(db: Connection, study_uid: str, series_uid: str, revision: int) -> Sequence[Row[Any]]:
    """The instances that a series had at a revision: each version that came made a new one."""
    came = select(instance).where(_of(instance, study_uid, series_uid)).order_by(instance.c.id).limit(revision)
    return [row for row in db.execute(came) if row.state != "missing"]


def taken(db: Connection, study_uid: str) -> dict[str, tuple[float, int]]:
    """When, and at which revision, each series of a study was last decided upon; without those that never were."""
    jobs = select(job.c.series_uid, job.c.created_at, job.c.revision).where(job.c.study_uid == study_uid)
    complete = and_(series.c.study_uid == study_uid, series.c.state == "complete")
    without = select(series.c.series_uid, series.c.complete_at, series.c.revision).where(complete)
    return {
        uid: (at, revision) for query in (jobs.order_by(job.c.id), without) for uid, at, revision in db.execute(query)
    }


def complete_series(db: Connection, study_uid: str, series_uid: str, revision: int, by: str, at: float) -> bool:
    """All of a series is here; False where something came after that revision."""
    done = {"state": "complete", "complete_by": by, "complete_at": at}
    still = and_(_of(series, study_uid, series_uid), series.c.revision == revision, series.c.state != "complete")
    return db.execute(update(series).where(still).values(done)).rowcount == 1


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
    """A job to be done. bundle: a name or a folder; empty for the default bundle that fits."""

    study_uid: str
    series_uid: str
    revision: int
    bundle: str
    rule: str
    mode: str
    state: str
    due: float


def make_job(db: Connection, new: NewJob, at: float) -> int:
    """A job for a series, which takes the place of whatever was to be done with it before. Returns its id."""
    old = and_(_of(job, new.study_uid, new.series_uid), job.c.state.in_(LIVE))
    db.execute(
        update(job)
        .where(old)
        .values(state="cancelled", finished_at=at, lease_owner=None, lease_until=None, error=LATER)
    )
    facts = asdict(new) | {"ready_at": at, "created_at": at, "attempt": 0}
    return int(db.execute(insert(job).returning(job.c.id), facts).scalar_one())


LATER = "images came after the job was made: another job has them"


def job_row(db: Connection, job_id: int) -> Row[Any]:
    return db.execute(select(job).where(job.c.id == job_id)).one()


def running_jobs(db: Connection) -> Sequence[Row[Any]]:
    return db.execute(select(job).where(job.c.state == "running")).all()


def release_job(db: Connection, job_id: int, at: float) -> bool:
    """A held job may run; False where it is not held."""
    held = and_(job.c.id == job_id, job.c.state == "held")
    return db.execute(update(job).where(held).values(state="queued", ready_at=at)).rowcount == 1


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
    """What a job came to. facts: the records of `result.json`, one for each stack."""

    result_key: str
    bundle: str
    bundle_version: str
    facts: Sequence[Mapping[str, Any]]
    objects: tuple[NewObject, ...]


def has_result(db: Connection, result_key: str) -> bool:
    return bool(db.execute(select(exists().where(result.c.result_key == result_key))).scalar())


def has_object_in(db: Connection, folder: str) -> bool:
    """Whether an object of a result lies in a folder of the spool, given with its last slash."""
    return bool(db.execute(select(exists().where(result_object.c.path.startswith(folder, autoescape=True)))).scalar())


def calling_ae(db: Connection, study_uid: str, series_uid: str) -> str | None:
    """Who sent the first instance of a series."""
    first = select(instance.c.calling_ae).where(_of(instance, study_uid, series_uid)).order_by(instance.c.id).limit(1)
    return db.execute(first).scalar()


def finish_job(db: Connection, claim: Claim, new: NewResult, destinations: Iterable[str], now: float) -> bool:
    """A job is done: its result is current, and on its way; the sender drops what it replaces and was not sent.

    The same result, made before for the same content, stays as it is. False where the claim has run out.
    """
    if not rows.end_job(db, claim, "done", now, code=None, error=None):
        return False
    if has_result(db, new.result_key):
        return True
    of = job_row(db, claim.id)
    mine = and_(_of(result, of.study_uid, of.series_uid), result.c.bundle == new.bundle)
    later = result.alias()
    current = select(result.c.id).where(mine, ~exists().where(later.c.predecessor_id == result.c.id))
    predecessor_id = db.execute(current).scalar_one_or_none()
    facts = {
        "job_id": claim.id,
        "result_key": new.result_key,
        "study_uid": of.study_uid,
        "series_uid": of.series_uid,
        "bundle": new.bundle,
        "bundle_version": new.bundle_version,
        "predecessor_id": predecessor_id,
        "facts": json.dumps(list(new.facts)),
        "created_at": now,
    }
    result_id = db.execute(insert(result).returning(result.c.id), facts).scalar_one()
    for one in new.objects:
        row = asdict(one) | {"result_id": result_id}
        object_id = db.execute(insert(result_object).returning(result_object.c.id), row).scalar_one()
        for destination in destinations:
            way = {"object_id": object_id, "destination": destination, "state": "queued", "attempt": 0}
            db.execute(insert(delivery), way | {"ready_at": now, "created_at": now})
    return True


# ---- for people


def counts(db: Connection) -> dict[str, dict[str, int]]:
    """How many series, jobs and deliveries are in which state."""
    return {
        table.name: {row.state: row.n for row in db.execute(_by_state(table)).all()}
        for table in (series, job, delivery)
    }


def _by_state(table: Any) -> Any:
    return select(table.c.state, func.count().label("n")).group_by(table.c.state).order_by(table.c.state)


def latest_jobs(db: Connection, limit: int) -> list[dict[str, Any]]:
    """The latest jobs, newest first."""
    found = db.execute(select(job).order_by(job.c.id.desc()).limit(limit))
    return [dict(row._mapping) for row in found]


def tell(db: Connection, kind: str, at: float, study_uid: str, series_uid: str, detail: Mapping[str, Any]) -> None:
    """Something about a series that people should be able to look up later; UIDs and facts, never names."""
    facts = {"kind": kind, "at": at, "study_uid": study_uid, "series_uid": series_uid}
    db.execute(insert(event), facts | {"detail": json.dumps(dict(detail))})
