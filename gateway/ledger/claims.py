"""A row taken under a lease: who works on it names the attempt that it was given.

A move that returns False came too late: somebody else has claimed the row meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, case, update


@dataclass(frozen=True, slots=True)
class Claim:
    """A row taken under a lease; `attempt` proves it."""

    id: int
    attempt: int


NO_LEASE = {"lease_owner": None, "lease_until": None}


def lease(table: Table, state: StrEnum, owner: str, now: float, until: float) -> dict[str, Any]:
    """What a claim sets. state: of a row that is claimed. Patience begins with the first claim."""
    tried_from = case((table.c.tried_from.is_(None), now), else_=table.c.tried_from)
    return {"state": state, "lease_owner": owner, "lease_until": until, "tried_from": tried_from}


def claim_first(db: Connection, table: Table, first: Any, values: Mapping[str, Any]) -> Claim | None:
    """Claim the first row of a query of ids."""
    chosen = first.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    row = db.execute(
        update(table)
        .where(table.c.id == chosen)
        .values(attempt=table.c.attempt + 1, **values)
        .returning(table.c.id, table.c.attempt)
    ).one_or_none()
    return None if row is None else Claim(row.id, row.attempt)


def move(db: Connection, table: Table, state: StrEnum, claim: Claim, values: Mapping[str, Any]) -> bool:
    """A move of the one who holds the claim."""
    return db.execute(update(table).where(under(table, state, claim)).values(**values)).rowcount == 1


def under(table: Table, state: StrEnum, claim: Claim) -> ColumnElement[bool]:
    """The row of a claim, while that holds and the row is in a state."""
    return and_(table.c.id == claim.id, table.c.attempt == claim.attempt, table.c.state == state)
