"""A row taken under a lease: who works on it names the attempt that it was given.

A move that returns False came too late: somebody else has claimed the row meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Table, and_, update


@dataclass(frozen=True, slots=True)
class Claim:
    """A row taken under a lease; `attempt` proves it."""

    id: int
    attempt: int


NO_LEASE = {"lease_owner": None, "lease_until": None}


def claim_first(db: Connection, table: Table, first: Any, lease: Mapping[str, Any]) -> Claim | None:
    chosen = first.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    row = db.execute(
        update(table)
        .where(table.c.id == chosen)
        .values(attempt=table.c.attempt + 1, **lease)
        .returning(table.c.id, table.c.attempt)
    ).one_or_none()
    return None if row is None else Claim(row.id, row.attempt)


def move(db: Connection, table: Table, state: StrEnum, claim: Claim, values: Mapping[str, Any]) -> bool:
    """A move of the one who holds the claim."""
    mine = and_(table.c.id == claim.id, table.c.attempt == claim.attempt, table.c.state == state)
    return db.execute(update(table).where(mine).values(**values)).rowcount == 1
