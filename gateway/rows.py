"""What is written into the ledger, and how: one statement for a move from one state to the next.

Each function takes a connection inside a transaction, as `Ledger.write` gives it. Who works under a lease names the
attempt it was given; a move that returns False came too late: somebody else has claimed the row meanwhile.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Table,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    true,
    update,
)

from gateway import patients, stages, tallies
from gateway.prepared import UPSERT, Prepared
from gateway.tables import association, delivery, doomed, event, instance, job, result, result_object, series
from medseg.errors import MedsegError

COUNTING = ("current", "conflict")


class Filed(StrEnum):
    """What filing an instance came to."""

    NEW = "new"
    DUPLICATE = "duplicate"  # these very bytes are there already: the new file is not needed
    CONFLICT = "conflict"  # other bytes under the same UIDs: both are kept; the later one counts if its image differs
    RESTORED = "restored"  # these very bytes were there, and their file was lost or deleted by retention


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance whose file is in the spool.

    patient: whom an image names (`gateway.patients.key`); None for what is no image.
    path: of the file, relative to the spool.
    offset_bytes, size_bytes, sha256: of the data set, in the file and as sent.
    association_id: None for a file that was adopted at start.
    """

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    offset_bytes: int
    size_bytes: int
    sha256: str
    calling_ae: str
    association_id: str | None
    priority: int
    received_at: float
    patient: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A row taken under a lease; `attempt` proves it."""

    id: int
    attempt: int


# ---- associations


def open_association(
    db: Connection, association_id: str, *, calling_ae: str, called_ae: str, host: str, receiver: str, at: float
) -> None:
    """An association is let in by a receiver."""
    facts = {"id": association_id, "calling_ae": calling_ae, "called_ae": called_ae, "host": host, "opened_at": at}
    db.execute(insert(association), facts | {"receiver": receiver})


def open_by_caller(db: Connection) -> Counter[str]:
    """How many associations are open, by calling AE title."""
    still = select(association.c.calling_ae, func.count()).where(association.c.ended_at.is_(None))
    return Counter(dict(db.execute(still.group_by(association.c.calling_ae)).all()))


def end_association(db: Connection, association_id: str, ending: str, at: float) -> bool:
    """An association is over; False where its end was known."""
    mine = and_(association.c.id == association_id, association.c.ended_at.is_(None))
    return db.execute(update(association).where(mine).values(ended_at=at, ending=ending)).rowcount == 1


def lose_open_associations(db: Connection, at: float, receiver: str | None = None) -> int:
    """A receiver does not run, or none at all: what is still open died with it. Returns how many."""
    whose = true() if receiver is None else association.c.receiver == receiver
    still = and_(association.c.ended_at.is_(None), whose)
    return db.execute(update(association).where(still).values(ended_at=at, ending="lost")).rowcount


# ---- instances


def _series_statement(build: Callable[[Table], Any]) -> Any:
    """Add `more` counting instances to a series, whose content changed if `changed`."""
    new = build(series).values(
        instances=bindparam("more"), revision=1, first_at=bindparam("at"), last_at=bindparam("at"), state="arriving"
    )
    changed = bindparam("changed") == 1
    return new.on_conflict_do_update(
        index_elements=[series.c.study_uid, series.c.series_uid],
        set_={
            "instances": series.c.instances + bindparam("more"),
            "revision": series.c.revision + bindparam("changed"),
            "last_at": case((series.c.last_at < bindparam("at"), bindparam("at")), else_=series.c.last_at),
            "state": case((changed, "arriving"), else_=series.c.state),
            "complete_at": case((changed, null()), else_=series.c.complete_at),
            "complete_by": case((changed, null()), else_=series.c.complete_by),
            "deleted_at": null(),
        },
    )


_FACTS = tuple(field.name for field in fields(StoredInstance))
_NEW_INSTANCE = Prepared(
    lambda name: UPSERT[name](instance).on_conflict_do_nothing().returning(instance.c.id), *_FACTS, "state"
)
_ADD_TO_SERIES = Prepared(
    lambda name: _series_statement(UPSERT[name]), "study_uid", "series_uid", "more", "changed", "at"
)


def file_instance(db: Connection, new: StoredInstance) -> Filed:
    """Take an instance into the ledger, once per content.

    Of several versions under the same study, series and SOP Instance UID the one first seen last counts, whatever is
    sent again afterwards; each of them is kept, and the conflict told. Other bytes of an image that names the same
    patient count from when they were compared (`take_version`, `keep_copy`).
    """
    filed = _file(db, new)
    if filed is not Filed.DUPLICATE and new.patient:
        patients.note(db, new.study_uid, new.patient, new.calling_ae, new.received_at)
    tallies.add(db, (*tallies.INSTANCES.plus(outcome=filed), *tallies.RECEIVED_BYTES.plus(new.size_bytes)))
    return filed


def _file(db: Connection, new: StoredInstance) -> Filed:
    facts = {name: getattr(new, name) for name in _FACTS}
    if _NEW_INSTANCE.scalar(db, facts | {"state": "current"}) is not None:
        _add_to_series(db, new, more=1, changed=True)
        return Filed.NEW
    versions = db.execute(select(instance).where(_same_uids(new)).order_by(instance.c.id)).all()
    counting = [version for version in versions if version.state in COUNTING]
    content = (new.sha256, new.transfer_syntax_uid)
    known = next((version for version in versions if (version.sha256, version.transfer_syntax_uid) == content), None)
    if known is not None and known.state != "missing":
        _add_to_series(db, new, more=0, changed=False)
        if known.deleted_at is None:
            return Filed.DUPLICATE
        back = {"path": new.path, "offset_bytes": new.offset_bytes, "deleted_at": None}
        db.execute(update(instance).where(instance.c.id == known.id).values(back))
        return Filed.RESTORED
    if known is not None:
        state = "superseded" if counting else "current"
        found_again = {"path": new.path, "offset_bytes": new.offset_bytes, "state": state, "deleted_at": None}
        db.execute(update(instance).where(instance.c.id == known.id).values(found_again))
        _add_to_series(db, new, more=0 if counting else 1, changed=not counting)
        return Filed.RESTORED
    to_be_compared = any(one.deleted_at is None and patients.adds_nothing(one.patient, new.patient) for one in versions)
    mine = db.execute(insert(instance).returning(instance.c.id), facts | {"state": "pending"}).scalar_one()
    if to_be_compared:
        _add_to_series(db, new, more=0, changed=False)
    else:
        take_version(db, mine, new.received_at)
    return Filed.CONFLICT


def take_version(db: Connection, instance_id: int, at: float) -> bool:
    """A pending version of an instance counts from now on, and the others do not. False where it is not pending."""
    new = db.execute(select(instance).where(instance.c.id == instance_id, instance.c.state == "pending")).one_or_none()
    if new is None:
        return False
    db.execute(update(instance).where(_same_uids(new), instance.c.state.in_(COUNTING)).values(state="superseded"))
    db.execute(update(instance).where(instance.c.id == instance_id).values(state="conflict"))
    versions = db.execute(select(func.count()).select_from(instance).where(_same_uids(new))).scalar_one()
    _add_to_series(db, new, more=0, changed=True)
    record(db, "instance.conflict", at, new, {"versions": versions, "sha256": new.sha256})
    return True


def keep_copy(db: Connection, instance_id: int, at: float, why: str) -> bool:
    """A pending version of an instance holds nothing that counts. False where it is not pending."""
    mine = and_(instance.c.id == instance_id, instance.c.state == "pending")
    new = db.execute(select(instance).where(mine)).one_or_none()
    if new is None:
        return False
    db.execute(update(instance).where(mine).values(state="copy"))
    record(db, "instance.copy", at, new, {"why": why, "sha256": new.sha256})
    return True


def lose_instance(db: Connection, path: str, at: float) -> bool:
    """The file of an instance is not what it was: the row is kept, and counts for nothing. False if that was known."""
    mine = and_(instance.c.path == path, instance.c.state != "missing")
    row = db.execute(select(instance).where(mine)).one_or_none()
    if row is None:
        return False
    db.execute(update(instance).where(mine).values(state="missing"))
    if row.state in COUNTING:
        mine = and_(series.c.study_uid == row.study_uid, series.c.series_uid == row.series_uid)
        fewer = {"instances": series.c.instances - 1, "revision": series.c.revision + 1}
        db.execute(update(series).where(mine).values(fewer))
    record(db, "instance.missing", at, row, {"path": path})
    return True


def instance_files(db: Connection) -> dict[str, int]:
    """Path and length in bytes of every file that should be in the spool."""
    length = (instance.c.offset_bytes + instance.c.size_bytes).label("length")
    there = and_(instance.c.state != "missing", instance.c.deleted_at.is_(None))
    found = db.execute(select(instance.c.path, length).where(there))
    return {row.path: row.length for row in found}


def names_file(db: Connection, path: str) -> bool:
    """Whether a row names a file of the spool."""
    return bool(db.execute(select(exists().where(instance.c.path == path))).scalar())


def _same_uids(new: StoredInstance | Row[Any]) -> Any:
    return and_(
        instance.c.study_uid == new.study_uid,
        instance.c.series_uid == new.series_uid,
        instance.c.sop_instance_uid == new.sop_instance_uid,
    )


def _add_to_series(db: Connection, new: StoredInstance | Row[Any], *, more: int, changed: bool) -> None:
    facts = {"study_uid": new.study_uid, "series_uid": new.series_uid, "at": new.received_at}
    _ADD_TO_SERIES.execute_all(db, [facts | {"more": more, "changed": int(changed)}])


# ---- events


def record(
    db: Connection, kind: str, at: float, about: StoredInstance | Row[Any] | None, detail: Mapping[str, Any]
) -> None:
    """Something that people should be able to look up later. `detail` holds UIDs and facts, never names."""
    facts: dict[str, Any] = {"kind": kind, "at": at, "detail": json.dumps(dict(detail))}
    for uid in ("study_uid", "series_uid", "sop_instance_uid"):
        facts[uid] = getattr(about, uid, None)
    db.execute(insert(event), facts)


# ---- work under leases


def claim_job(db: Connection, owner: str, now: float, until: float) -> Claim | None:
    """Take the job that is due first: one in the queue, or one whose worker let its lease run out.

    One whose series is still arriving is only taken where there is no other; one for whose series more has come, not
    before that is decided upon: another job may have it then.
    """
    first = select(job.c.id).where(_claimable(now)).order_by(job.c.revision == 0, job.c.due, job.c.id)
    tried_from = case((job.c.tried_from.is_(None), now), else_=job.c.tried_from)
    lease = {"state": "running", "lease_owner": owner, "lease_until": until, "tried_from": tried_from}
    claim = _claim(db, job, first, lease | {"started_at": now})
    if claim is not None:
        stages.job_claimed(db, claim.id, now)
    return claim


def _claimable(now: float) -> Any:
    ready = and_(job.c.state.in_(("waiting", "queued")), job.c.ready_at <= now)
    its = and_(series.c.study_uid == job.c.study_uid, series.c.series_uid == job.c.series_uid)
    decided = exists().where(its, series.c.state == "complete").correlate(job)
    free = or_(ready, and_(job.c.state == "running", job.c.lease_until < now))
    return and_(free, or_(job.c.revision == 0, decided), ~patients.stopped(job.c.study_uid).correlate(job))


def awaited(db: Connection, now: float, *, arriving: bool) -> bool:
    """Whether a job could be claimed whose series is complete, or still `arriving`."""
    wanted = job.c.revision == 0 if arriving else job.c.revision > 0
    return bool(db.execute(select(exists().where(_claimable(now), wanted))).scalar())


def claim_delivery(db: Connection, destination: str, owner: str, now: float, until: float) -> Claim | None:
    """Take the delivery to `destination` that waits longest. What refers to a segmentation does not overtake it."""
    ready = and_(delivery.c.state == "queued", delivery.c.ready_at <= now)
    dropped = and_(delivery.c.state == "sending", delivery.c.lease_until < now)
    its = select(result.c.study_uid).join(result_object, result_object.c.result_id == result.c.id)
    study_uid = its.where(result_object.c.id == delivery.c.object_id).correlate(delivery).scalar_subquery()
    free = and_(~_segmentation_pends(owner, now), ~patients.stopped(study_uid).correlate(delivery))
    mine = and_(delivery.c.destination == destination, or_(ready, dropped), free)
    first = select(delivery.c.id).where(mine).order_by(delivery.c.ready_at, delivery.c.id)
    tried_from = case((delivery.c.tried_from.is_(None), now), else_=delivery.c.tried_from)
    lease = {"state": "sending", "lease_owner": owner, "lease_until": until, "tried_from": tried_from}
    return _claim(db, delivery, first, lease)


def _segmentation_pends(owner: str, now: float) -> Any:
    """Whether a delivery is of what comes with a segmentation that is to go to the same place later, or by another."""
    mine, other, earlier = result_object.alias("mine"), result_object.alias("other"), delivery.alias("earlier")
    same_result = and_(mine.c.id == delivery.c.object_id, other.c.result_id == mine.c.result_id)
    later = and_(earlier.c.state == "queued", earlier.c.ready_at > now)
    elsewhere = and_(earlier.c.state == "sending", earlier.c.lease_until >= now, earlier.c.lease_owner != owner)
    pends = and_(earlier.c.object_id == other.c.id, earlier.c.destination == delivery.c.destination)
    return (
        exists()
        .where(
            same_result, ~mine.c.kind.startswith("seg"), other.c.kind.startswith("seg"), pends, or_(later, elsewhere)
        )
        .correlate(delivery)
    )


def renew_job(db: Connection, claim: Claim, until: float) -> bool:
    """Keep a job for longer."""
    return _move(db, job, "running", claim, {"lease_until": until})


def end_job(
    db: Connection, claim: Claim, state: str, now: float, *, code: str | None, error: str | None, failed: int = 0
) -> bool:
    """A job is done, failed or cancelled. failed: 1 where this attempt was at fault."""
    ended = {"state": state, "finished_at": now, "error_code": code, "error": error}
    moved = _move(db, job, "running", claim, ended | {"failures": job.c.failures + failed} | _NO_LEASE)
    if moved:
        stages.job_ended(db, state, code)
    return moved


def requeue_job(db: Connection, claim: Claim, ready_at: float, *, code: str, error: str, failed: int = 1) -> bool:
    """A job is to be tried again, not before `ready_at`. failed: 0 where this attempt was not at fault."""
    again = {"state": UNCLAIMED, "ready_at": ready_at, "error_code": code, "error": error}
    moved = _move(db, job, "running", claim, again | {"failures": job.c.failures + failed} | _NO_LEASE)
    if moved:
        stages.job_requeued(db, code)
    return moved


def release_job(db: Connection, claim: Claim, ready_at: float, why: MedsegError | None = None) -> bool:
    """A job gives way to another: it is claimed again, not before `ready_at` unless its series is complete before.

    why: there is nothing to begin with, as far as is known yet.
    """
    again: dict[str, Any] = {"ready_at": case((job.c.revision == 0, ready_at), else_=job.c.ready_at)}
    told = {} if why is None else {"error_code": why.code, "error": str(why)}
    return _move(db, job, "running", claim, {"state": UNCLAIMED} | again | told | _NO_LEASE)


#: The state of a job that nobody works on.
UNCLAIMED = case((job.c.revision == 0, "waiting"), else_="queued")


def renew_delivery(db: Connection, claim: Claim, until: float) -> bool:
    """Keep a delivery for longer."""
    return _move(db, delivery, "sending", claim, {"lease_until": until})


def end_delivery(db: Connection, claim: Claim, status: int, now: float, check_at: float | None = None) -> bool:
    """A destination said that it stored the object. check_at: when to ask whether it still has it; None: at once."""
    stored = {"state": "stored", "stored_at": now, "status": status, "error_code": None, "error": None}
    unchecked = {"ready_at": now if check_at is None else check_at, "asked": 0, "transaction_uid": None}
    first = db.execute(select(delivery.c.stored_at).where(delivery.c.id == claim.id)).scalar() is None
    moved = _move(db, delivery, "sending", claim, stored | unchecked | _NO_LEASE)
    if moved:
        stages.object_stored(db, claim.id, now, first=first)
    return moved


def requeue_delivery(
    db: Connection, claim: Claim, ready_at: float | None, *, status: int | None, code: str, error: str
) -> bool:
    """A delivery failed: try again, not before `ready_at`; None makes it a dead letter."""
    failed: dict[str, Any] = {"state": "dead"} if ready_at is None else {"state": "queued", "ready_at": ready_at}
    why = {"status": status, "error_code": code, "error": error, "failures": delivery.c.failures + 1}
    moved = _move(db, delivery, "sending", claim, failed | why | _NO_LEASE)
    if moved:
        stages.delivery_failed(db, dead=ready_at is None)
    return moved


def release_delivery(db: Connection, claim: Claim) -> bool:
    """A delivery was not tried after all: it goes back into the queue, as if nobody had taken it."""
    return _move(db, delivery, "sending", claim, {"state": "queued"} | _NO_LEASE)


_NO_LEASE = {"lease_owner": None, "lease_until": None}


def _claim(db: Connection, table: Table, first: Any, lease: Mapping[str, Any]) -> Claim | None:
    chosen = first.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    row = db.execute(
        update(table)
        .where(table.c.id == chosen)
        .values(attempt=table.c.attempt + 1, **lease)
        .returning(table.c.id, table.c.attempt)
    ).one_or_none()
    return None if row is None else Claim(row.id, row.attempt)


def _move(db: Connection, table: Table, state: str, claim: Claim, values: Mapping[str, Any]) -> bool:
    """A move of the one who holds the claim."""
    mine = and_(table.c.id == claim.id, table.c.attempt == claim.attempt, table.c.state == state)
    return db.execute(update(table).where(mine).values(**values)).rowcount == 1


def refile_lost(db: Connection, new: StoredInstance, is_whole: Callable[[str, int], bool]) -> bool:
    """Name the file of a duplicate where the one that is known is lost or damaged; what is left of that is to be
    deleted. is_whole: whether a file of the spool, by its path, has so many bytes. Returns whether it is named."""
    same_content = and_(instance.c.sha256 == new.sha256, instance.c.transfer_syntax_uid == new.transfer_syntax_uid)
    known = db.execute(select(instance).where(_same_uids(new), same_content)).one()
    if is_whole(known.path, known.offset_bytes + known.size_bytes):
        return False
    still = and_(instance.c.id == known.id, instance.c.path == known.path)
    there = {"path": new.path, "offset_bytes": new.offset_bytes}
    moved = db.execute(update(instance).where(still).values(there)).rowcount == 1
    if moved:
        db.execute(insert(doomed), {"path": known.path, "at": new.received_at})
        record(db, "instance.missing", new.received_at, new, {"path": known.path})
    return moved
