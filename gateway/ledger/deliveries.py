"""The outbox in the ledger: what is to be sent, what is to be asked after, what a peer reports, what needs a person.

queued ──> sending ──> stored ──> confirmed        sending by leases (`gateway.ledger.claims`)
  ^           │           │
  ├───────────┴───────────┴──> dead ──┐            dead letters are sent again by hand
  └───────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Exists, Select, and_, case, exists, or_, select, update

from gateway import retry
from gateway.ledger import patients, stages
from gateway.ledger.claims import NO_LEASE, Claim, claim_first, lease, move
from gateway.ledger.object_kind import is_segmentation
from gateway.ledger.records import DeliveryRow
from gateway.ledger.statements import UPSERT
from gateway.ledger.states import DeliveryState
from gateway.ledger.tables import delivery, result, result_object
from gateway.retry import Fault, RetryAt, meaning
from gateway.settings.model import Deliver


def claim_delivery(db: Connection, destination: str, owner: str, now: float, until: float) -> Claim | None:
    """Take the delivery to `destination` that waits longest. What refers to a segmentation does not overtake it."""
    ready = and_(delivery.c.state == DeliveryState.QUEUED, delivery.c.ready_at <= now)
    dropped = and_(delivery.c.state == DeliveryState.SENDING, delivery.c.lease_until < now)
    its = select(result.c.study_uid).join(result_object, result_object.c.result_id == result.c.id)
    study_uid = its.where(result_object.c.id == delivery.c.object_id).correlate(delivery).scalar_subquery()
    free = and_(~_segmentation_pends(owner, now), ~patients.stopped(study_uid).correlate(delivery))
    mine = and_(delivery.c.destination == destination, or_(ready, dropped), free)
    first = select(delivery.c.id).where(mine).order_by(delivery.c.ready_at, delivery.c.id)
    return claim_first(db, delivery, first, lease(delivery, DeliveryState.SENDING, owner, now, until))


def _segmentation_pends(owner: str, now: float) -> Exists:
    """Whether a delivery is of what comes with a segmentation that is to go to the same place later, or by another."""
    mine, other, earlier = result_object.alias("mine"), result_object.alias("other"), delivery.alias("earlier")
    same_result = and_(mine.c.id == delivery.c.object_id, other.c.result_id == mine.c.result_id)
    later = and_(earlier.c.state == DeliveryState.QUEUED, earlier.c.ready_at > now)
    elsewhere = and_(
        earlier.c.state == DeliveryState.SENDING, earlier.c.lease_until >= now, earlier.c.lease_owner != owner
    )
    pends = and_(earlier.c.object_id == other.c.id, earlier.c.destination == delivery.c.destination)
    return (
        exists()
        .where(same_result, ~is_segmentation(mine.c.kind), is_segmentation(other.c.kind), pends, or_(later, elsewhere))
        .correlate(delivery)
    )


def renew_delivery(db: Connection, claim: Claim, until: float) -> bool:
    """Keep a delivery for longer."""
    return move(db, delivery, DeliveryState.SENDING, claim, {"lease_until": until})


def end_delivery(db: Connection, claim: Claim, status: int, now: float, check_at: float | None = None) -> bool:
    """A destination said that it stored the object. check_at: when to ask whether it still has it; None: at once."""
    stored = {"state": DeliveryState.STORED, "stored_at": now, "status": status, "error_code": None, "error": None}
    unchecked = {"ready_at": now if check_at is None else check_at, "asked": 0, "transaction_uid": None}
    before = DeliveryRow.one_or_none(db, deliveries_query().where(delivery.c.id == claim.id))
    moved = move(db, delivery, DeliveryState.SENDING, claim, stored | unchecked | NO_LEASE)
    if before is not None and moved:
        stages.object_stored(db, before, now)
    return moved


def requeue_delivery(
    db: Connection, claim: Claim, ready_at: float | None, *, status: int | None, code: str, error: str
) -> bool:
    """A delivery failed: try again, not before `ready_at`; None makes it a dead letter."""
    failed: dict[str, Any] = (
        {"state": DeliveryState.DEAD} if ready_at is None else {"state": DeliveryState.QUEUED, "ready_at": ready_at}
    )
    why = {"status": status, "error_code": code, "error": error, "failures": delivery.c.failures + 1}
    moved = move(db, delivery, DeliveryState.SENDING, claim, failed | why | NO_LEASE)
    if moved:
        stages.delivery_failed(db, dead=ready_at is None)
    return moved


def put_back_delivery(db: Connection, claim: Claim) -> bool:
    """A delivery was not tried after all: it goes back into the queue, as if nobody had taken it."""
    return move(db, delivery, DeliveryState.SENDING, claim, {"state": DeliveryState.QUEUED} | NO_LEASE)


def deliver(db: Connection, object_id: int, destination: str, now: float) -> None:
    """An object is to be at a destination: what is on its way, or there, stays so."""
    again = {"state": DeliveryState.QUEUED, "ready_at": now, "failures": 0, "tried_from": None}
    way = {"object_id": object_id, "destination": destination, "attempt": 0, "created_at": now}
    db.execute(
        UPSERT[db.dialect.name](delivery)
        .values(way | again)
        .on_conflict_do_update(
            index_elements=[delivery.c.object_id, delivery.c.destination],
            set_=again,
            where=delivery.c.state == DeliveryState.CANCELLED,
        )
    )


LAST_ASK = 4  # three rounds by storage commitment, the last by C-FIND; or all by C-FIND
FIND_AFTER_S = 60.0  # a peer may take a while to index what it stored
REPORT_WITHIN_S = 900.0  # then a peer is asked again
NOT_THIS_CLASS = 0x0122  # Failure Reason: the peer commits to no object of this SOP class


def destinations_due(db: Connection, now: float) -> frozenset[str]:
    """Where there is something to send or to ask after."""
    due = or_(
        and_(delivery.c.state == DeliveryState.QUEUED, delivery.c.ready_at <= now),
        and_(delivery.c.state == DeliveryState.SENDING, delivery.c.lease_until < now),
        _unconfirmed(now),
    )
    return frozenset(db.execute(select(delivery.c.destination).where(due).distinct()).scalars())


def claim_outgoing(
    db: Connection, destination: str, owner: str, now: float, until: float, most: int
) -> tuple[DeliveryRow, ...]:
    """Take up to `most` deliveries to a destination; each result's segmentation first."""
    cancel_superseded(db)
    claims: list[Claim] = []
    while len(claims) < most and (claim := claim_delivery(db, destination, owner, now, until)):
        claims.append(claim)
    return tuple(sorted(_claimed(db, claims), key=lambda out: (out.result_id, not out.kind.is_segmentation, out.id)))


def cancel_superseded(db: Connection) -> int:
    """What a later result replaces, and was not sent yet, is not sent at all. Returns how many."""
    successor = result.alias("successor")
    follows = or_(
        successor.c.predecessor_id == result_object.c.result_id,
        and_(successor.c.id == result_object.c.result_id, successor.c.replaced_at.is_not(None)),
    )
    replaced = select(result_object.c.id).join(successor, follows)
    stale = and_(delivery.c.state == DeliveryState.QUEUED, delivery.c.object_id.in_(replaced))
    return db.execute(update(delivery).where(stale).values(state=DeliveryState.CANCELLED)).rowcount


def withdraw(db: Connection, result_id: int) -> None:
    """What of a result was not sent yet is not."""
    objects = select(result_object.c.id).where(result_object.c.result_id == result_id)
    waiting = and_(delivery.c.object_id.in_(objects), delivery.c.state == DeliveryState.QUEUED)
    db.execute(update(delivery).where(waiting).values(state=DeliveryState.CANCELLED))


def drop_leases(db: Connection, owner: str, destination: str | None = None) -> int:
    """Nobody of that name runs, or serves a destination: what it had claimed goes back into the queue. Returns how
    many."""
    left = and_(delivery.c.state == DeliveryState.SENDING, delivery.c.lease_owner == owner)
    if destination is not None:
        left = and_(left, delivery.c.destination == destination)
    back = {"state": DeliveryState.QUEUED} | NO_LEASE
    return db.execute(update(delivery).where(left).values(**back)).rowcount


def fail(
    db: Connection, out: DeliveryRow, fault: Fault, now: float, settings: Deliver, random: float, *, status: int | None,
    detail: str,
) -> bool:  # fmt: skip
    """An attempt failed: again later, or a dead letter, as `gateway.retry` decides. Returns whether again."""
    then = retry.decide(fault, out.failures + 1, now - out.patience_from, settings, random)
    ready_at = now + then.delay_s if isinstance(then, RetryAt) else None
    error = f"{fault.value if isinstance(then, RetryAt) else then.reason}: {detail}"
    moved = requeue_delivery(db, out.claim, ready_at, status=status, code=fault.name.lower(), error=error)
    return moved and ready_at is not None


def store(db: Connection, out: DeliveryRow, status: int, now: float, check_at: float, stored_as: str | None) -> bool:
    """A destination said that it stored an object.

    stored_as: the SOP Instance UID that it answers with (0000,1000). One of its own says that the object is there under
    that, so nobody asks after ours (PS3.7 9.1.1.1.6 has them equal).
    """
    moved = end_delivery(db, out.claim, status, now, check_at)
    if moved:
        stored: dict[str, Any] = {"copies": delivery.c.copies + 1, "stored_as": None}
        if stored_as not in (None, "", out.sop_instance_uid):
            stored |= {"stored_as": stored_as, "asked": LAST_ASK} | _renamed(f"the peer stored it as {stored_as}")
        move(db, delivery, DeliveryState.STORED, out.claim, stored)
    return moved


def _renamed(why: str) -> dict[str, Any]:
    return {"error_code": "renamed", "error": f"{why}: not asked after, and not sent again"}


def claim_unconfirmed(db: Connection, destination: str, now: float, until: float, most: int) -> tuple[DeliveryRow, ...]:
    """Take up to `most` stored deliveries of a destination to ask after them; nobody else does before `until`."""
    mine = and_(delivery.c.destination == destination, _unconfirmed(now))
    due = select(delivery.c.id).where(mine).order_by(delivery.c.ready_at, delivery.c.id)
    chosen = due.limit(most).with_for_update(skip_locked=True)
    taken = {"attempt": delivery.c.attempt + 1, "asked": delivery.c.asked + 1, "ready_at": until}
    moved = update(delivery).where(delivery.c.id.in_(chosen)).values(**taken)
    claims = [Claim(row.id, row.attempt) for row in db.execute(moved.returning(delivery.c.id, delivery.c.attempt))]
    return tuple(_claimed(db, claims))


def note_transaction(db: Connection, claims: Iterable[Claim], transaction_uid: str) -> None:
    """A destination is about to be asked for storage commitment."""
    for claim in claims:
        move(db, delivery, DeliveryState.STORED, claim, {"transaction_uid": transaction_uid})


def ask_again(db: Connection, claims: Iterable[Claim], ready_at: float, *, counts: bool) -> None:
    """A destination is to be asked later. counts: whether this time was one of those that it is asked."""
    asked = delivery.c.asked - (0 if counts else 1)
    for claim in claims:
        move(db, delivery, DeliveryState.STORED, claim, {"ready_at": ready_at, "asked": asked})


def accept_unconfirmed(db: Connection, claims: Iterable[Claim]) -> None:
    """A destination cannot be asked: its C-STORE response is all there will be."""
    for claim in claims:
        move(db, delivery, DeliveryState.STORED, claim, {"asked": LAST_ASK})


def confirm(db: Connection, claim: Claim, now: float) -> bool:
    """A destination has the object for good."""
    there = {"state": DeliveryState.CONFIRMED, "confirmed_at": now}
    moved = move(db, delivery, DeliveryState.STORED, claim, there)
    if moved:
        stages.object_confirmed(db, DeliveryRow.one(db, deliveries_query().where(delivery.c.id == claim.id)), now)
    return moved


def lose(db: Connection, out: DeliveryRow, now: float, settings: Deliver, random: float, detail: str) -> bool:
    """A destination does not know what it had stored: this object is sent again, and no other; until it has had
    `MOST_COPIES`. What it said that it changed (B000H) is there under another name, and is believed."""
    if out.status == retry.COERCED:
        renamed = _renamed(f"the peer stored it with data elements of its own ({meaning(out.status)}); {detail}")
        return move(db, delivery, DeliveryState.STORED, out.claim, {"asked": LAST_ASK} | renamed)
    then = retry.decide(Fault.LOST, max(out.copies, 1), now - out.patience_from, settings, random)
    again = isinstance(then, RetryAt)
    lost = {
        "state": DeliveryState.QUEUED if again else DeliveryState.DEAD,
        "ready_at": now + then.delay_s if isinstance(then, RetryAt) else now,
        "failures": delivery.c.failures + 1,
        "error_code": Fault.LOST.name.lower(),
        "error": f"{Fault.LOST.value if isinstance(then, RetryAt) else then.reason}: {detail}",
        "transaction_uid": None,
    }
    moved = move(db, delivery, DeliveryState.STORED, out.claim, lost)
    if moved:
        stages.delivery_failed(db, dead=not again)
    return moved


def take_report(
    db: Connection,
    transaction_uid: str,
    committed: Collection[str],
    failed: Mapping[str, int],
    now: float,
    settings: Deliver,
    random: float,
) -> int:
    """A storage commitment report came, on whatever association: who is committed is confirmed, who failed is lost.

    committed: SOP Instance UIDs; failed: the same, to Failure Reason (0008,1197). An unknown transaction, an object
    that was not asked after and a report that came before change nothing. What the peer never commits to is asked after
    by C-FIND. A reason that says nothing of the object has it asked after again. Returns how many deliveries moved.
    """
    asked = and_(delivery.c.state == DeliveryState.STORED, delivery.c.transaction_uid == transaction_uid)
    moved = 0
    for out in DeliveryRow.all(db, deliveries_query().where(asked)):
        reason = failed.get(out.sop_instance_uid)
        if reason == NOT_THIS_CLASS:
            by_find = {"asked": LAST_ASK - 1, "ready_at": now + FIND_AFTER_S, "transaction_uid": None}
            move(db, delivery, DeliveryState.STORED, out.claim, by_find)
        elif reason in retry.UNSERVED and out.asked < LAST_ASK - 1:
            ask_again(db, [out.claim], now + FIND_AFTER_S, counts=True)
        elif reason is not None:
            moved += lose(db, out, now, settings, random, f"storage commitment failed: {meaning(reason)}")
        elif out.sop_instance_uid in committed:
            moved += confirm(db, out.claim, now)
    return moved


def deliveries(db: Connection, *states: DeliveryState) -> list[DeliveryRow]:
    """All deliveries in some states, the oldest first."""
    return DeliveryRow.all(db, deliveries_query().where(delivery.c.state.in_(states)))


def deliveries_of(db: Connection, study_uids: Collection[str]) -> list[DeliveryRow]:
    """All deliveries of some studies, the oldest first."""
    return DeliveryRow.all(db, deliveries_query().where(result.c.study_uid.in_(study_uids)))


def retry_dead(db: Connection, now: float, delivery_id: int | None = None, destination: str | None = None) -> int:
    """Send a dead letter again, or all of them, or all to a destination, with patience as for a new delivery; what a
    destination had as often as it may have it, once more.

    Returns how many.
    """
    chosen = delivery.c.state == DeliveryState.DEAD
    if delivery_id is not None:
        chosen = and_(chosen, delivery.c.id == delivery_id)
    if destination is not None:
        chosen = and_(chosen, delivery.c.destination == destination)
    one_more = case((delivery.c.copies < retry.MOST_COPIES, delivery.c.copies), else_=retry.MOST_COPIES - 1)
    again = {"state": DeliveryState.QUEUED, "ready_at": now, "failures": 0, "tried_from": None, "copies": one_more}
    return db.execute(update(delivery).where(chosen).values(**again)).rowcount


def _unconfirmed(now: float) -> ColumnElement[bool]:
    return and_(delivery.c.state == DeliveryState.STORED, delivery.c.asked < LAST_ASK, delivery.c.ready_at <= now)


def deliveries_query() -> Select[Any]:
    """With what they deliver: the columns of a DeliveryRow."""
    of_object = ("result_id", "kind", "sop_class_uid", "sop_instance_uid", "path", "sha256")
    columns = [*(result_object.c[name] for name in of_object), result.c.study_uid, result.c.series_uid]
    return (
        select(delivery, *columns)
        .join(result_object, result_object.c.id == delivery.c.object_id)
        .join(result, result.c.id == result_object.c.result_id)
        .order_by(delivery.c.id)
    )


def _claimed(db: Connection, claims: Iterable[Claim]) -> list[DeliveryRow]:
    return DeliveryRow.all(db, deliveries_query().where(delivery.c.id.in_([claim.id for claim in claims])))
