"""The ledger: what happened, durable before anybody is told.

SQLAlchemy Core on SQLite (WAL, synchronous=FULL) or PostgreSQL; the tables are in `gateway.ledger.tables`, the
statements in the modules beside it, one for each table.

Writes are committed in groups. Every thread that calls `Ledger.write` puts its operation in line; the first one there
runs all that wait in one transaction, each behind a savepoint of its own, and lets them go after one commit:

    thread a   write ──── runs a ── commit ─┐
    thread b       write ─ waits ───────────┤ runs b, c ── commit ─┐
    thread c          write ─ waits ────────┴──────────────────────┴─ returns

A lone writer commits at once and in its own thread; eight writers pay for one fsync together.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from medseg.errors import ResourceError, UsageError

T = TypeVar("T")
P = ParamSpec("P")
MIGRATIONS = Path(__file__).parent / "migrations"
WAL_PAGES = 1900  # between checkpoints, which cost several syncs: one commit writes about a dozen
WAL_BYTES = 1 << 23  # somewhat more than that
BUSY_S = 30  # how long a writer waits for another process
TURN_S = 0.0005  # between its looks; SQLite's own handler sleeps up to 0.1 s, a hundred times as long as a commit takes
_AT_FAULT = (IntegrityError, sqlite3.IntegrityError)
WRITES = "medseg_writes"  # execution option: the transaction takes SQLite's write lock when it begins


class LedgerUnavailable(ResourceError):
    """The ledger cannot be used: its disk is full, it is locked, or its server is away."""

    code = "ledger_unavailable"


class _Pending(Generic[T]):
    """An operation in line, and what became of it."""

    def __init__(self, operation: Callable[[Connection], T]) -> None:
        self.operation = operation
        self.turn = threading.Event()  # set once it is done, or once its thread is to commit the next group
        self.done = False
        self.value: T
        self.error: Exception | None = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


class Ledger:
    """An open ledger; safe to use from many threads, and from many processes at once."""

    def __init__(self, url: str) -> None:
        """Open, and bring the tables to this version's. Raises LedgerUnavailable."""
        self._engine = _engine(url)
        self._writing = self._engine.execution_options(**{WRITES: True})
        self._writer: Connection | None = None  # of the thread that leads
        self._lock = threading.Lock()
        self._line: list[_Pending[Any]] = []
        self._led = False
        try:
            with self._writing.begin() as db:
                migrate(db)
        except DBAPIError as error:
            self._engine.dispose()
            raise LedgerUnavailable(f"ledger {_shown(url)}: cannot be opened: {error.orig}") from error
        except CommandError as error:  # alembic knows no such revision
            self._engine.dispose()
            raise LedgerUnavailable(f"ledger {_shown(url)}: a later version of medseg made it: use that one") from error
        if self._engine.dialect.name == "sqlite":
            self._grow_wal()

    def _grow_wal(self) -> None:
        """Give the write-ahead log the length it keeps. A commit that overwrites it syncs in a fraction of the time of
        one that makes it longer, which costs a journal commit of the file system. What is written is rolled back; on a
        full disk it is left out."""
        with suppress(OperationalError), self._writing.connect() as db, db.begin() as growing:
            db.exec_driver_sql("CREATE TABLE growing (content BLOB)")
            db.exec_driver_sql("INSERT INTO growing VALUES (zeroblob(?))", (WAL_BYTES,))
            growing.rollback()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def backup(self, to: Path) -> None:
        """Save the ledger as it is at one moment, in a file of its own, while others write. It takes the place of one
        that is there. Raises UsageError where it is not SQLite, LedgerUnavailable."""
        if self._engine.dialect.name != "sqlite":
            raise UsageError("only a SQLite ledger is saved by medseg: save the database with its own tools (pg_dump)")
        with closing(sqlite3.connect(to)) as copy, self.read() as db:
            try:
                cast(sqlite3.Connection, db.connection.driver_connection).backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read without writing beside it
            except sqlite3.Error as error:
                raise LedgerUnavailable(f"the ledger cannot be saved in {to}: {error}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view. Raises LedgerUnavailable."""
        try:
            with self._engine.connect() as db:
                yield db
        except DBAPIError as error:
            raise LedgerUnavailable(f"the ledger cannot be read: {error.orig}") from error

    def write(self, operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run operation(db, *args, **kwargs), and return what it returned once that is committed for good.

        Raises what the operation raised, after undoing what it did and nothing else; LedgerUnavailable when nothing
        could be committed.
        """
        pending = _Pending(lambda db: operation(db, *args, **kwargs))
        with self._lock:
            self._line.append(pending)
            lead, self._led = not self._led, True
        if not lead:
            pending.turn.wait()
        if not pending.done:
            self._lead()
        return pending.result()

    def _lead(self) -> None:
        """Commit all that is in line, and hand the lead to the first who came meanwhile."""
        with self._lock:
            group, self._line = self._line, []
        try:
            self._commit(group)
        finally:
            with self._lock:
                self._led = bool(self._line)
                heir = self._line[0] if self._line else None
            if heir is not None:
                heir.turn.set()
            for pending in group:
                pending.done = True
                pending.turn.set()

    def _commit(self, group: list[_Pending[Any]]) -> None:
        try:
            db = self._writer = self._writer or self._writing.connect()
            with db.begin():
                if len(group) == 1:
                    group[0].value = group[0].operation(db)
                else:
                    for pending in group:
                        _run_behind_savepoint(db, pending)
        except Exception as error:  # noqa: BLE001 - raised again in the threads that wait for it
            for pending in group:
                pending.error = _unavailable(error) if _lost(error) else error
            if _lost(error) and self._writer is not None:
                self._writer.close()
                self._writer = None


def _run_behind_savepoint(db: Connection, pending: _Pending[Any]) -> None:
    savepoint = db.begin_nested()
    try:
        pending.value = pending.operation(db)
    except Exception as error:
        if _lost(error):
            raise
        pending.error = error
        savepoint.rollback()
    else:
        savepoint.commit()


def _lost(error: Exception) -> bool:
    """Whether the transaction as a whole is lost, and not one operation at fault."""
    return isinstance(error, DBAPIError | sqlite3.Error) and not isinstance(error, _AT_FAULT)


def _unavailable(error: Exception) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger cannot be written: {getattr(error, 'orig', error)}")


def migrate(db: Connection) -> None:
    """Bring the tables to this version's."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = db
    command.upgrade(config, "head")


def revisions(url: str) -> tuple[str | None, str | None]:
    """The revision of a ledger's tables, and this version's. Changes nothing. Raises LedgerUnavailable."""
    engine = create_engine(url)
    try:
        with engine.connect() as db:
            found = MigrationContext.configure(db).get_current_revision()
    except DBAPIError as error:
        raise LedgerUnavailable(f"ledger {_shown(url)}: cannot be opened: {error.orig}") from error
    finally:
        engine.dispose()
    return found, ScriptDirectory(str(MIGRATIONS)).get_current_head()


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _begin_sqlite does
    connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(db: Connection) -> None:
    if not db.get_execution_options().get(WRITES):
        db.exec_driver_sql("BEGIN")
        return
    driver, deadline = cast(sqlite3.Connection, db.connection.driver_connection), time.monotonic() + BUSY_S
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise OperationalError("BEGIN IMMEDIATE", None, error) from error
            time.sleep(TURN_S)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")


def _shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
