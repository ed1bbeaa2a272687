"""Files that no row names any more, from the commit that let go of them until they are deleted."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from gateway.ledger.records import DoomedRow
from gateway.ledger.tables import doomed


def mark_deleted(db: Connection, paths: Iterable[str], at: float) -> int:
    """Have files deleted, or folders (with a last slash), that no row names from this commit on. Returns how many."""
    known = set(db.execute(select(doomed.c.path)).scalars())
    rows = [{"path": path, "at": at} for path in dict.fromkeys(paths) if path not in known]
    if rows:
        db.execute(insert(doomed), rows)
    return len(rows)


def marked(db: Connection, most: int) -> list[DoomedRow]:
    """Up to `most` of what is to be deleted."""
    return DoomedRow.all(db, select(doomed).limit(most))


def unmark(db: Connection, paths: Iterable[str]) -> None:
    """These are deleted."""
    db.execute(delete(doomed).where(doomed.c.path.in_(list(paths))))
