"""Associations, as receivers have them: opened, ended, lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, and_, func, insert, select, true, update

from gateway.ledger.records import AssociationRow
from gateway.ledger.states import Ending
from gateway.ledger.tables import association

#: The receiver of STOW requests: each of them is an association, and its release says that this was all.
REQUESTS: Final = "web"


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


def end_association(db: Connection, association_id: str, ending: Ending, at: float) -> bool:
    """An association is over; False where its end was known."""
    mine = and_(association.c.id == association_id, association.c.ended_at.is_(None))
    return db.execute(update(association).where(mine).values(ended_at=at, ending=ending)).rowcount == 1


def lose_open_associations(db: Connection, at: float, receiver: str | None = None) -> int:
    """A receiver does not run, or none at all: what is still open died with it. Returns how many."""
    whose = true() if receiver is None else association.c.receiver == receiver
    still = and_(association.c.ended_at.is_(None), whose)
    return db.execute(update(association).where(still).values(ended_at=at, ending=Ending.LOST)).rowcount


def open_associations(db: Connection) -> list[AssociationRow]:
    return AssociationRow.all(db, select(association).where(association.c.ended_at.is_(None)))


def associations(db: Connection, ids: Iterable[str]) -> list[AssociationRow]:
    """Those associations, in the order in which they ended."""
    chosen = association.c.id.in_(list(ids))
    return AssociationRow.all(db, select(association).where(chosen).order_by(association.c.ended_at))
