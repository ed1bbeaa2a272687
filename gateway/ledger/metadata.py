"""What the ledger's tables share: how their constraints are named, and what some of them ask of their ids and keys."""

from __future__ import annotations

from typing import Any

from sqlalchemy import MetaData

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

DEFERRED: dict[str, Any] = {"deferrable": True, "initially": "DEFERRED"}
NEVER_AGAIN: dict[str, Any] = {"sqlite_autoincrement": True}  # SQLite gives the id of a deleted newest row again
