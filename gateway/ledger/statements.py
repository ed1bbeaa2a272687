"""Statements that run for every instance: compiled once for each dialect, and sent as text from then on.

On SQLite they go to the driver itself: what SQLAlchemy does around a statement costs more there than the statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

#: Makes an insert that may do something else where the row is there already, by dialect.
UPSERT: dict[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class _Compiled:
    """Text for a driver. defaults: the parameters, with the values of those that the statement knows itself."""

    text: str
    defaults: Mapping[str, Any]
    positions: tuple[str, ...] | None

    def given(self, values: Mapping[str, Any]) -> Any:
        """Values as the driver takes them."""
        if self.positions is None:
            return {**self.defaults, **values}
        return [values[key] if key in values else self.defaults[key] for key in self.positions]


class Prepared:
    """A statement without SQLAlchemy's cost of looking at it anew each time.

    Raises what the driver raises, which `gateway.ledger` takes as it takes SQLAlchemy's errors.
    """

    def __init__(self, build: Callable[[str], Any], *keys: str) -> None:
        """build: makes the statement for a dialect. keys: of its values."""
        self._build, self._keys = build, keys
        self._compiled: dict[str, _Compiled] = {}

    def scalar(self, db: Connection, values: Mapping[str, Any]) -> Any:
        """The first value that it returns; None where it returns nothing."""
        compiled = self._for(db)
        if (driver := _driver(db)) is not None:
            row = driver.execute(compiled.text, compiled.given(values)).fetchone()
            return None if row is None else row[0]
        return db.exec_driver_sql(compiled.text, compiled.given(values)).scalar()

    def execute_all(self, db: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Once for each row of values."""
        compiled = self._for(db)
        given = [compiled.given(values) for values in rows]
        if (driver := _driver(db)) is not None:
            driver.executemany(compiled.text, given)
        else:
            db.exec_driver_sql(compiled.text, given)

    def _for(self, db: Connection) -> _Compiled:
        name = db.dialect.name
        if name not in self._compiled:
            made = self._build(name).compile(dialect=db.dialect, column_keys=self._keys)
            positions = None if made.positiontup is None else tuple(made.positiontup)
            self._compiled[name] = _Compiled(made.string, made.construct_params(_check=False), positions)
        return self._compiled[name]


def _driver(db: Connection) -> sqlite3.Connection | None:
    """The driver's own connection, with the transaction that is open on it."""
    driver = db.connection.driver_connection
    return driver if isinstance(driver, sqlite3.Connection) else None
