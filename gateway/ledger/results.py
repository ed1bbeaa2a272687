"""Results and their objects: filed with the end of their job."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, insert, select, update

from gateway.ledger import stages
from gateway.ledger.claims import Claim
from gateway.ledger.deliveries import deliver
from gateway.ledger.jobs import end_job, job_row
from gateway.ledger.object_kind import ObjectKind
from gateway.ledger.records import ObjectRow, ResultRow
from gateway.ledger.states import JobState, ResultKind
from gateway.ledger.tables import of_job, result, result_object


@dataclass(frozen=True)
class NewObject:
    """An object of a result, frozen on disk. path: relative to the spool."""

    kind: ObjectKind
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


def results_of(db: Connection, study_uids: Collection[str]) -> list[ResultRow]:
    """The results of some studies."""
    return ResultRow.all(db, select(result).where(result.c.study_uid.in_(study_uids)))


def objects_of(db: Connection, study_uids: Collection[str]) -> list[ObjectRow]:
    """The objects of those."""
    objects = select(result_object).join(result, result.c.id == result_object.c.result_id)
    return ObjectRow.all(db, objects.where(result.c.study_uid.in_(study_uids)).order_by(result_object.c.id))


def object_paths(db: Connection) -> list[str]:
    """Where the objects of all results lie, relative to the spool."""
    return list(db.execute(select(result_object.c.path)).scalars())


def current_result(db: Connection, study_uid: str, series_uid: str | None, bundle: str) -> ResultRow | None:
    """The result of a series, or of channels of a study, and bundle that no other names as its predecessor."""
    mine = and_(of_job(result, study_uid, series_uid), result.c.bundle == bundle)
    return ResultRow.one_or_none(db, select(result).where(mine, _is_current()))


def current_results(db: Connection, study_uid: str) -> list[ResultRow]:
    """The same for each series and bundle of a study."""
    return ResultRow.all(db, select(result).where(result.c.study_uid == study_uid, _is_current()))


def _is_current() -> ColumnElement[bool]:
    later = result.alias()
    return and_(result.c.kind != ResultKind.REASON, ~exists().where(later.c.predecessor_id == result.c.id))


def finish_job(db: Connection, claim: Claim, new: NewResult, destinations: Iterable[str], now: float) -> bool:
    """A job is done: its result is current, and on its way; the sender drops what it replaces and was not sent.

    The same result, made before for the same content, stays as it is; and so does an object, of a stack that is as it
    was: it goes over to the new result with its deliveries. False where the claim has run out.
    """
    if not end_job(db, claim, JobState.DONE, now, code=None, error=None):
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
    deliver_objects(db, result_id, new.objects, destinations, now)
    stages.result_made(db, claim.id, now, new.facts)
    return True


def deliver_objects(
    db: Connection, result_id: int, objects: Iterable[NewObject], destinations: Iterable[str], now: float
) -> None:
    """The objects of a result are filed, and on their way."""
    to = tuple(destinations)
    for made in objects:
        object_id = _file_object(db, result_id, made)
        for destination in to:
            deliver(db, object_id, destination, now)


def _file_object(db: Connection, result_id: int, made: NewObject) -> int:
    """An object becomes a part of a result, be it new or of one before. Returns its id."""
    same = result_object.c.path == made.path
    mine = update(result_object).where(same).values(result_id=result_id, kind=made.kind)
    known = db.execute(mine.returning(result_object.c.id)).scalar()
    if known is not None:
        return int(known)
    new = insert(result_object).returning(result_object.c.id)
    return int(db.execute(new, asdict(made) | {"result_id": result_id}).scalar_one())
