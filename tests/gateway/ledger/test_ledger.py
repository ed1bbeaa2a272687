"""What is written is there, writes go in groups, and one that fails harms no other."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert
from sqlalchemy.exc import IntegrityError

from gateway.ledger import events, instances, tables
from gateway.ledger.instances import Filed
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from tests.gateway.ledger.rows import stored, table


def test_it_is_durable_and_opens_again(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger(f"sqlite:///{tmp_path}/ledger.db") as opened, opened.read() as db:
            pragmas = [
                db.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert pragmas == ["wal", 2, 1]


def test_writers_that_wait_are_committed_together(ledger: Ledger) -> None:
    commits = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(db: Connection) -> None:
        begun.set()
        go_on.wait(10)

    def write(number: int) -> None:
        def operation(db: Connection) -> int:
            commits.append(id(db.get_transaction()))
            events.record(db, f"kind {number}", 1.0, {})
            return number

        assert ledger.write(operation) == number

    first = threading.Thread(target=ledger.write, args=(slow,))
    first.start()
    begun.wait(10)
    others = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    for thread in others:
        thread.start()
    while len(ledger._line) < 20:
        time.sleep(0.001)
    go_on.set()
    for thread in (first, *others):
        thread.join()
    assert len(set(commits)) == 1
    assert len(table(ledger, "SELECT * FROM event")) == 20


def test_one_bad_write_harms_no_other(ledger: Ledger) -> None:
    outcomes: dict[int, str] = {}
    ledger.write(instances.file_instance, stored())

    def write(number: int) -> None:
        def operation(db: Connection) -> None:
            events.record(db, f"kind {number}", 1.0, {})
            if number % 3 == 0:
                raise ValueError("mine alone")
            if number % 3 == 1:
                db.execute(insert(tables.event), {"kind": None, "at": 1.0, "detail": "{}"})

        try:
            ledger.write(operation)
            outcomes[number] = "done"
        except (ValueError, IntegrityError) as error:
            outcomes[number] = type(error).__name__

    threads = [threading.Thread(target=write, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: ("ValueError", "IntegrityError", "done")[number % 3] for number in range(30)}
    kinds = {kind for (kind,) in table(ledger, "SELECT kind FROM event")}
    assert kinds == {f"kind {number}" for number in range(2, 30, 3)}


def test_a_full_disk_is_unavailable_and_passes(ledger: Ledger) -> None:
    def fill(db: Connection) -> None:
        db.exec_driver_sql("PRAGMA max_page_count = 1")
        for number in range(2000):
            events.record(db, "filling", 1.0, {"number": number, "text": "x" * 1000})

    def relieve(db: Connection) -> None:
        db.exec_driver_sql("PRAGMA max_page_count = 1000000")

    with pytest.raises(LedgerUnavailable):
        ledger.write(fill)
    ledger.write(relieve)
    assert ledger.write(instances.file_instance, stored()) is Filed.NEW
    assert table(ledger, "SELECT * FROM event") == []


def test_a_ledger_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/no/such/folder/ledger.db")


@pytest.mark.parametrize("name", ["job", "delivery", "commitment"])
def test_the_id_of_a_row_that_is_gone_is_not_given_again(ledger: Ledger, name: str) -> None:
    facts = {
        "job": {"study_uid": "1.2", "series_uid": "1.3", "revision": 1, "bundle": "b", "rule": "r", "mode": "on"}
        | {"state": "queued", "due": 0.0, "ready_at": 0.0, "attempt": 0, "created_at": 0.0},
        "delivery": {"object_id": 1, "destination": "pacs", "state": "queued", "ready_at": 0.0, "attempt": 0}
        | {"created_at": 0.0},
        "commitment": {"transaction_uid": "1", "calling_ae": "CT", "association_id": "a", "asked_at": 0.0}
        | {"state": "waiting", "ready_at": 0.0, "attempt": 0},
    }
    one = tables.metadata.tables[name]

    def again(db: Connection) -> tuple[int, int]:
        db.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        new = insert(one).returning(one.c.id)
        first = db.execute(new, facts[name]).scalar_one()
        db.execute(one.delete())
        second = db.execute(new, facts[name]).scalar_one()
        db.execute(one.delete())
        return first, second

    first, second = ledger.write(again)
    assert second > first
