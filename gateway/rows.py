"""What is written into the ledger, and how: one statement for a move from one state to the next.

Each function takes a connection inside a transaction, as `Ledger.write` gives it. Who works under a lease names the
attempt it was given; a move that returns False came too late: somebody else has claimed the row meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Connection,
    CursorResult,
    Row,
    Table,
    and_,
    bindparam,
    case,
    exists,
    insert,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from gateway.tables import association, delivery, event, instance, job, result_object, series

COUNTING = ("current", "conflict")


class Filed(StrEnum):
    """What filing an instance came to."""

    NEW = "new"
    DUPLICATE = "duplicate"  # these very bytes are there already: the new file is not needed
    CONFLICT = "conflict"  # other bytes under the same UIDs: both are kept, the later one counts
    RESTORED = "restored"  # these very bytes were there, and their file was lost


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance whose file is in the spool.

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


@dataclass(frozen=True, slots=True)
class Claim:
    """A row taken under a lease; `attempt` proves it."""

    id: int
    attempt: int


# ---- associations


def open_association(
    db: Connection, association_id: str, *, calling_ae: str, called_ae: str, host: str, at: float
) -> None:
    """An association was admitted."""
    facts = {"id": association_id, "calling_ae": calling_ae, "called_ae": called_ae, "host": host, "opened_at": at}
    db.execute(insert(association), facts)


def end_association(db: Connection, association_id: str, ending: str, at: float) -> bool:
    """An association is over; False where its end was known."""
    mine = and_(association.c.id == association_id, association.c.ended_at.is_(None))
    return db.execute(update(association).where(mine).values(ended_at=at, ending=ending)).rowcount == 1


def lose_open_associations(db: Connection, at: float) -> int:
    """No receiver runs: what is still open died with one. Returns how many."""
    still = association.c.ended_at.is_(None)
    return db.execute(update(association).where(still).values(ended_at=at, ending="lost")).rowcount


# ---- instances

_UPSERT: dict[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class _Prepared:
    """A statement that runs for every instance: compiled once per dialect, and sent as text from then on."""

    def __init__(self, build: Callable[[str], Any], *keys: str) -> None:
        """build: makes the statement for a dialect. keys: of its values."""
        self._build, self._keys = build, keys
        self._compiled: dict[str, SQLCompiler] = {}

    def execute(self, db: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        name = db.dialect.name
        if name not in self._compiled:
            self._compiled[name] = self._build(name).compile(dialect=db.dialect, column_keys=self._keys)
        compiled = self._compiled[name]
        given = compiled.construct_params(dict(values))
        if compiled.positiontup is None:
            return db.exec_driver_sql(compiled.string, given)
        return db.exec_driver_sql(compiled.string, tuple(given[key] for key in compiled.positiontup))


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
        },
    )


_NEW_INSTANCE = _Prepared(
    lambda name: _UPSERT[name](instance).on_conflict_do_nothing().returning(instance.c.id),
    *(field.name for field in fields(StoredInstance)),
    "state",
)
_ADD_TO_SERIES = _Prepared(
    lambda name: _series_statement(_UPSERT[name]), "study_uid", "series_uid", "more", "changed", "at"
)


def file_instance(db: Connection, new: StoredInstance) -> Filed:
    """Take an instance into the ledger, once per content.

    Of several versions under the same study, series and SOP Instance UID the one first seen last counts, whatever is
    sent again afterwards; each of them is kept, and the conflict told.
    """
    facts = asdict(new)
    if _NEW_INSTANCE.execute(db, facts | {"state": "current"}).scalar() is not None:
        _add_to_series(db, new, more=1, changed=True)
        return Filed.NEW
    versions = db.execute(select(instance).where(_same_uids(new)).order_by(instance.c.id)).all()
    counting = [version for version in versions if version.state in COUNTING]
    content = (new.sha256, new.transfer_syntax_uid)
    known = next((version for version in versions if (version.sha256, version.transfer_syntax_uid) == content), None)
    if known is not None and known.state != "missing":
        _add_to_series(db, new, more=0, changed=False)
        return Filed.DUPLICATE
    if known is not None:
        state = "superseded" if counting else "current"
        found_again = {"path": new.path, "offset_bytes": new.offset_bytes, "state": state}
        db.execute(update(instance).where(instance.c.id == known.id).values(found_again))
        _add_to_series(db, new, more=0 if counting else 1, changed=not counting)
        return Filed.RESTORED
    db.execute(update(instance).where(_same_uids(new), instance.c.state.in_(COUNTING)).values(state="superseded"))
    db.execute(insert(instance), facts | {"state": "conflict"})
    _add_to_series(db, new, more=0, changed=True)
    record(db, "instance.conflict", new.received_at, new, {"versions": len(versions) + 1, "sha256": new.sha256})
    return Filed.CONFLICT


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
    found = db.execute(select(instance.c.path, length).where(instance.c.state != "missing"))
    return {row.path: row.length for row in found}


def _same_uids(new: StoredInstance) -> Any:
    return and_(
        instance.c.study_uid == new.study_uid,
        instance.c.series_uid == new.series_uid,
        instance.c.sop_instance_uid == new.sop_instance_uid,
    )


def _add_to_series(db: Connection, new: StoredInstance, *, more: int, changed: bool) -> None:
    facts = {"study_uid": new.study_uid, "series_uid": new.series_uid, "at": new.received_at}
    _ADD_TO_SERIES.execute(db, facts | {"more": more, "changed": int(changed)})


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
    """Take the job that is due first: one in the queue, or one whose worker let its lease run out."""
    ready = and_(job.c.state == "queued", job.c.ready_at <= now)
    dropped = and_(job.c.state == "running", job.c.lease_until < now)
    first = select(job.c.id).where(or_(ready, dropped)).order_by(job.c.due, job.c.id)
    return _claim(db, job, first, {"state": "running", "lease_owner": owner, "lease_until": until})


def claim_delivery(db: Connection, destination: str, owner: str, now: float, until: float) -> Claim | None:
    """Take the delivery to `destination` that waits longest. What refers to a segmentation does not overtake it."""
    ready = and_(delivery.c.state == "queued", delivery.c.ready_at <= now)
    dropped = and_(delivery.c.state == "sending", delivery.c.lease_until < now)
    mine = and_(delivery.c.destination == destination, or_(ready, dropped), ~_segmentation_pends(owner, now))
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


def end_job(db: Connection, claim: Claim, state: str, now: float, *, code: str | None, error: str | None) -> bool:
    """A job is done, failed or cancelled."""
    return _move(
        db, job, "running", claim, {"state": state, "finished_at": now, "error_code": code, "error": error} | _NO_LEASE
    )


def requeue_job(db: Connection, claim: Claim, ready_at: float, *, code: str, error: str) -> bool:
    """A job is to be tried again, not before `ready_at`."""
    again = {"state": "queued", "ready_at": ready_at, "error_code": code, "error": error}
    return _move(db, job, "running", claim, again | _NO_LEASE)


def renew_delivery(db: Connection, claim: Claim, until: float) -> bool:
    """Keep a delivery for longer."""
    return _move(db, delivery, "sending", claim, {"lease_until": until})


def end_delivery(db: Connection, claim: Claim, status: int, now: float, check_at: float | None = None) -> bool:
    """A destination said that it stored the object. check_at: when to ask whether it still has it; None: at once."""
    stored = {"state": "stored", "stored_at": now, "status": status, "error_code": None, "error": None}
    unchecked = {"ready_at": now if check_at is None else check_at, "asked": 0, "transaction_uid": None}
    return _move(db, delivery, "sending", claim, stored | unchecked | _NO_LEASE)


def requeue_delivery(
    db: Connection, claim: Claim, ready_at: float | None, *, status: int | None, code: str, error: str
) -> bool:
    """A delivery failed: try again, not before `ready_at`; None makes it a dead letter."""
    failed: dict[str, Any] = {"state": "dead"} if ready_at is None else {"state": "queued", "ready_at": ready_at}
    why = {"status": status, "error_code": code, "error": error, "failures": delivery.c.failures + 1}
    return _move(db, delivery, "sending", claim, failed | why | _NO_LEASE)


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
