"""Commitment lists, as senders ask for them (PS3.4 Annex J).

waiting ──> known ──> reported        waiting: some of its instances are not here, and may still come
              └─────> dead            known: what is to be reported is certain, and does not change
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, or_, select, update

from gateway.ledger.claims import Claim, move
from gateway.ledger.peer_tables import commitment, commitment_item, count
from gateway.ledger.records import CommitmentRow, InstanceRow
from gateway.ledger.states import COUNTING, CommitmentState
from gateway.ledger.tables import association, instance, of_series

NO_SUCH_INSTANCE = 0x0112  # Failure Reason (PS3.3 C.14.1.1)
MOST = 500  # UIDs in one statement


@dataclass(frozen=True, slots=True)
class Item:
    """An object of a commitment. reason: Failure Reason, None where it is stored (or not known yet)."""

    sop_class_uid: str
    sop_instance_uid: str
    reason: int | None = None


@dataclass(frozen=True)
class Report:
    """A commitment that is to be reported, and was claimed for that."""

    claim: Claim
    transaction_uid: str
    calling_ae: str
    association_id: str
    known_at: float
    items: tuple[Item, ...]


def ask(
    db: Connection, calling_ae: str, transaction_uid: str, association_id: str, items: Iterable[Item], at: float
) -> None:
    """A sender asked for commitment. The same transaction asked for again takes the place of the first."""
    old = select(commitment.c.id).where(
        commitment.c.calling_ae == calling_ae, commitment.c.transaction_uid == transaction_uid
    )
    db.execute(delete(commitment_item).where(commitment_item.c.commitment_id.in_(old)))
    db.execute(delete(commitment).where(commitment.c.id.in_(old)))
    facts: dict[str, Any] = {"asked_at": at, "ready_at": at, "state": CommitmentState.WAITING, "attempt": 0}
    facts |= {"calling_ae": calling_ae, "transaction_uid": transaction_uid, "association_id": association_id}
    new = db.execute(insert(commitment).returning(commitment.c.id), facts).scalar_one()
    rows = {
        item.sop_instance_uid: {
            "commitment_id": new, "sop_class_uid": item.sop_class_uid, "sop_instance_uid": item.sop_instance_uid
        }
        for item in items
    }  # fmt: skip
    db.execute(insert(commitment_item), list(rows.values()))


def waiting(db: Connection) -> list[CommitmentRow]:
    """The commitments of which it is not known yet what to report."""
    return CommitmentRow.all(
        db, select(commitment).where(commitment.c.state == CommitmentState.WAITING).order_by(commitment.c.id)
    )


def items(db: Connection, commitment_id: int) -> tuple[Item, ...]:
    columns = commitment_item.c.sop_class_uid, commitment_item.c.sop_instance_uid, commitment_item.c.reason
    asked = select(*columns).where(commitment_item.c.commitment_id == commitment_id)
    return tuple(Item(*row) for row in db.execute(asked))


def settle(db: Connection, commitment_id: int, failed: Mapping[str, int], at: float) -> bool:
    """What is to be reported is certain. failed: Failure Reason by SOP Instance UID; all others are stored."""
    for uid, reason in failed.items():
        mine = and_(commitment_item.c.commitment_id == commitment_id, commitment_item.c.sop_instance_uid == uid)
        db.execute(update(commitment_item).where(mine).values(reason=reason))
    still = and_(commitment.c.id == commitment_id, commitment.c.state == CommitmentState.WAITING)
    return (
        db.execute(
            update(commitment).where(still).values(state=CommitmentState.KNOWN, known_at=at, ready_at=at)
        ).rowcount
        == 1
    )


def claim_reports_on(db: Connection, associations: Iterable[str], now: float, until: float) -> tuple[Report, ...]:
    """Take what is to be reported on these associations; nobody else does before `until`."""
    return _claim_reports(db, commitment.c.association_id.in_(list(associations)), now, until)


def callers_to_report_to(db: Connection, now: float, before: float) -> frozenset[str]:
    """AE titles of those to whom there is something to report, off the associations on which they asked.

    before: whoever is not reached there is one of them if the report was known before this time.
    """
    due = select(commitment.c.calling_ae).where(_due(now), _elsewhere(before)).distinct()
    return frozenset(db.execute(due).scalars())


def claim_reports_to(db: Connection, calling_ae: str, now: float, until: float, before: float) -> tuple[Report, ...]:
    """Take what is to be reported to one of them."""
    return _claim_reports(db, and_(commitment.c.calling_ae == calling_ae, _elsewhere(before)), now, until)


def _due(now: float) -> ColumnElement[bool]:
    return and_(commitment.c.state == CommitmentState.KNOWN, commitment.c.ready_at <= now)


def _elsewhere(before: float) -> ColumnElement[bool]:
    still = exists().where(association.c.id == commitment.c.association_id, association.c.ended_at.is_(None))
    return or_(~still, commitment.c.known_at < before)


def _claim_reports(db: Connection, whose: ColumnElement[bool], now: float, until: float) -> tuple[Report, ...]:
    taken = {"attempt": commitment.c.attempt + 1, "ready_at": until}
    claimed = update(commitment).where(_due(now), whose).values(taken).returning(commitment)
    return tuple(
        Report(
            Claim(row.id, row.attempt), row.transaction_uid, row.calling_ae, row.association_id, row.known_at,
            items(db, row.id),
        )
        for row in db.execute(claimed).all()
    )  # fmt: skip


def reported(db: Connection, claim: Claim, at: float) -> bool:
    """The sender knows."""
    known = {"state": CommitmentState.REPORTED, "reported_at": at}
    return move(db, commitment, CommitmentState.KNOWN, claim, known)


def report_later(db: Connection, claim: Claim, ready_at: float | None, error: str) -> bool:
    """The sender was not reached: again, not before `ready_at`; None for never."""
    then: dict[str, Any] = {"state": CommitmentState.DEAD} if ready_at is None else {"ready_at": ready_at}
    return move(db, commitment, CommitmentState.KNOWN, claim, {"error": error} | then)


def stored(db: Connection, uids: Iterable[str]) -> list[InstanceRow]:
    """The instances of these SOP Instance UIDs that count, and whose files are kept."""
    kept: list[InstanceRow] = []
    for some in _parts(uids):
        counts = and_(
            instance.c.sop_instance_uid.in_(some), instance.c.state.in_(COUNTING), instance.c.deleted_at.is_(None)
        )
        kept += InstanceRow.all(db, select(instance).where(counts))
    return kept


def studies_of(db: Connection, uids: Iterable[str]) -> dict[str, set[str]]:
    """The studies under which each of these SOP Instance UIDs has come."""
    studies: dict[str, set[str]] = {}
    for some in _parts(uids):
        named = select(instance.c.sop_instance_uid, instance.c.study_uid).where(instance.c.sop_instance_uid.in_(some))
        for uid, study_uid in db.execute(named):
            studies.setdefault(uid, set()).add(study_uid)
    return studies


def lists_after(db: Connection, commitment_id: int) -> list[CommitmentRow]:
    """The commitments that were asked for after another."""
    return CommitmentRow.all(db, select(commitment).where(commitment.c.id > commitment_id).order_by(commitment.c.id))


def lists_of(db: Connection, study_uid: str) -> list[CommitmentRow]:
    """The commitments that name an instance of a study."""
    touched = exists().where(
        commitment_item.c.commitment_id == commitment.c.id,
        instance.c.sop_instance_uid == commitment_item.c.sop_instance_uid,
        instance.c.study_uid == study_uid,
    )
    return CommitmentRow.all(db, select(commitment).where(touched).order_by(commitment.c.id))


def _parts(uids: Iterable[str]) -> Iterable[list[str]]:
    left = list(uids)
    return (left[start : start + MOST] for start in range(0, len(left), MOST))


def erase(db: Connection, study_uid: str, series_uid: str | None) -> None:
    """A study, or a series of it, is about to be taken out of the ledger. What was not reported yet is not stored."""
    mine = of_series(instance, study_uid, series_uid)
    gone = commitment_item.c.sop_instance_uid.in_(select(instance.c.sop_instance_uid).where(mine))
    known = select(commitment.c.id).where(commitment.c.state == CommitmentState.KNOWN)
    unreported = commitment_item.c.commitment_id.in_(known)
    db.execute(update(commitment_item).where(gone, unreported).values(reason=NO_SUCH_INSTANCE))
    over = select(commitment.c.id).where(commitment.c.state.in_((CommitmentState.REPORTED, CommitmentState.DEAD)))
    db.execute(delete(commitment_item).where(gone, commitment_item.c.commitment_id.in_(over)))
    empty = ~exists().where(commitment_item.c.commitment_id == commitment.c.id)
    db.execute(delete(commitment).where(empty))
    whose = of_series(count, study_uid, series_uid)
    db.execute(delete(count).where(whose))
