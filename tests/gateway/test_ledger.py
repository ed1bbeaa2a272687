"""The ledger: migrated and declared schema agree, writes group, and each move is fenced."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

from gateway.ledger import associations, commitments, deliveries, events, instances, jobs, tables
from gateway.ledger import series as series_rows
from gateway.ledger.claims import Claim
from gateway.ledger.commitments import Item
from gateway.ledger.instances import Filed, StoredInstance
from gateway.ledger.ledger import MIGRATIONS, Ledger, LedgerUnavailable
from tests.gateway.ledgers import new_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with new_ledger(tmp_path) as opened:
        yield opened


def stored(
    name: str = "a", *, sop: str = "1.1", series: str = "1.3", at: float = 5.0, syntax: str = "1.2.840.10008.1.2"
) -> StoredInstance:
    return StoredInstance(
        study_uid="1.2",
        series_uid=series,
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid=syntax,
        path=f"{series}/{sop}.{name}.{at}",
        offset_bytes=300,
        size_bytes=10,
        sha256=name[0] * 64,
        calling_ae="CT",
        association_id=None,
        priority=0,
        received_at=at,
    )


def table(ledger: Ledger, query: str) -> list[tuple[object, ...]]:
    with ledger.read() as db:
        return [tuple(row) for row in db.execute(text(query))]


def test_a_ledger_of_the_first_version_is_brought_up_with_what_is_in_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    with engine.begin() as db:
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        db.execute(text("INSERT INTO series VALUES ('1.2', '1.3', 1, 1, 5, 5, NULL, 'complete', 6, 'quiet')"))
        columns = "study_uid, series_uid, revision, bundle, rule, mode, state, due, ready_at, attempt, created_at"
        db.execute(text(f"INSERT INTO job ({columns}) VALUES ('1.2', '1.3', 1, '', 'r', 'on', 'queued', 5, 5, 2, 5)"))
    engine.dispose()
    with Ledger(url) as ledger, ledger.read() as db:
        (job,) = db.execute(select(tables.job))
        assert (job.rule, job.state, job.attempt, job.terms, job.failures) == ("r", "queued", 2, "{}", 0)
        assert db.execute(select(tables.series.c.deleted_at)).all() == [(None,)]
        assert compare_metadata(MigrationContext.configure(db), tables.metadata) == []


def test_what_could_not_be_segmented_is_no_failed_job_of_an_older_ledger(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    columns = "study_uid, series_uid, revision, bundle, rule, mode, state, due, ready_at, attempt, created_at"
    series = "study_uid, series_uid, instances, revision, first_at, last_at, state, complete_at"
    with engine.begin() as db:
        config.attributes["connection"] = db
        command.upgrade(config, "0003")
        for code in ("localizer", "does_not_fit", "mixed_patient", "crashed"):
            db.execute(text(f"INSERT INTO series ({series}) VALUES ('1.2', '{code}', 1, 1, 5, 5, 'complete', 6)"))
            job = f"('1.2', '{code}', 1, '', 'r', 'on', 'failed', 5, 5, 2, 5, 6, '{code}')"
            db.execute(text(f"INSERT INTO job ({columns}, finished_at, error_code) VALUES {job}"))
    engine.dispose()
    with Ledger(url) as ledger, ledger.read() as db:
        states = {row.error_code: row.state for row in db.execute(text("SELECT error_code, state FROM job"))}
    passed_over = dict.fromkeys(("localizer", "does_not_fit"), "cancelled")
    assert states == passed_over | dict.fromkeys(("mixed_patient", "crashed"), "failed")


def test_tables_that_are_numbered_anew_keep_what_is_in_them(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(url)
    rows_of = {
        "series": "study_uid, series_uid, instances, revision, first_at, last_at, state, complete_at) "
        "VALUES ('1.2', '1.3', 2, 4, 5, 5, 'complete', 6), ('1.2', '1.4', 1, 1, 5, 5, 'arriving', NULL",
        "job": "id, study_uid, series_uid, revision, bundle, rule, mode, state, due, ready_at, attempt, created_at, "
        "finished_at) VALUES (7, '1.2', '1.3', 4, '', 'r', 'on', 'done', 5, 5, 2, 5, 6",
        "event": "at, kind, job_id, detail) VALUES (5, 'x', 7, '{}'",
        "result": "id, job_id, result_key, study_uid, series_uid, bundle, bundle_version, facts, created_at) "
        "VALUES (8, 7, 'k', '1.2', '1.3', 'b', '1', '[]', 6",
        "result_object": "id, result_id, kind, sop_class_uid, sop_instance_uid, path, size_bytes, sha256) "
        "VALUES (9, 8, 'seg', '1', '2', 'p', 1, 'x'",
        "delivery": "id, object_id, destination, state, ready_at, attempt, created_at) "
        "VALUES (10, 9, 'pacs', 'queued', 6, 0, 6",
        "commitment": "id, transaction_uid, calling_ae, association_id, asked_at, state, ready_at, attempt) "
        "VALUES (11, '3', 'CT', 'a', 5, 'waiting', 5, 0",
        "commitment_item": "commitment_id, sop_instance_uid, sop_class_uid) VALUES (11, '1.1', '1'",
    }
    with engine.begin() as db:
        config.attributes["connection"] = db
        command.upgrade(config, "0002")
        for name, row in rows_of.items():
            db.execute(text(f"INSERT INTO {name} ({row})"))
        instance = {"study_uid": "1.2", "series_uid": "1.3", "sop_class_uid": "1", "calling_ae": "CT", "priority": 0}
        instance |= {
            "transfer_syntax_uid": "1",
            "offset_bytes": 1,
            "size_bytes": 1,
            "received_at": 5,
            "state": "current",
        }
        for sop in ("1.1", "1.2"):
            db.execute(insert(tables.instance), instance | {"sop_instance_uid": sop, "path": sop, "sha256": "a" * 64})
    with engine.connect() as db:
        kept = {name: db.execute(text(f"SELECT * FROM {name}")).all() for name in rows_of if name != "series"}
    engine.dispose()
    kept["delivery"] = [(*row, 0, None) for row in kept["delivery"]]  # no copies yet, under no other name
    with Ledger(url) as ledger, ledger.read() as db:
        for name, before in kept.items():  # what later versions added stands behind
            after = db.execute(text(f"SELECT * FROM {name}")).all()
            assert [row[: len(old)] for row, old in zip(after, before, strict=True)] == before
        assert db.execute(text("PRAGMA foreign_key_check")).all() == []
        assert db.execute(text("SELECT taken_at, taken_id FROM series")).all() == [(6.0, 2), (None, None)]
        assert compare_metadata(MigrationContext.configure(db), tables.metadata) == []


def test_a_list_that_is_asked_for_again_is_a_new_one(ledger: Ledger) -> None:
    item = Item("1.2.840.10008.5.1.4.1.1.2", "1.1")
    ledger.write(commitments.ask, "CT", "1.9", "first", [item], 1.0)
    with ledger.read() as db:
        (heard,) = commitments.lists_after(db, 0)
    ledger.write(commitments.ask, "CT", "1.9", "second", [item], 2.0)
    with ledger.read() as db:
        assert [row.association_id for row in commitments.lists_after(db, heard.id)] == ["second"]


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


def test_a_ledger_of_a_later_version_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger(url) as opened:
        opened.write(lambda db: db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'").rowcount)
    with pytest.raises(LedgerUnavailable, match="a later version of medseg made it"):
        Ledger(url)


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/migrated.db") as opened, opened.read() as db:
        context = MigrationContext.configure(db)
        assert compare_metadata(context, tables.metadata) == []
    declared = create_engine(f"sqlite:///{tmp_path}/declared.db")
    tables.metadata.create_all(declared)
    schemas = []
    for name in ("migrated", "declared"):
        with sqlite3.connect(tmp_path / f"{name}.db") as db:
            found = db.execute("SELECT sql FROM sqlite_master WHERE sql NOT LIKE '%alembic%'")
            schemas.append(sorted(" ".join(sql.split()) for (sql,) in found))
        db.close()
    assert [sorted(sql.replace(",", "").split()) for sql in schemas[0]] == [
        sorted(sql.replace(",", "").split()) for sql in schemas[1]
    ]


def test_postgresql_would_take_the_tables() -> None:
    for one in tables.metadata.sorted_tables:
        assert str(CreateTable(one).compile(dialect=postgresql.dialect()))
        for index in one.indexes:
            assert str(CreateIndex(index).compile(dialect=postgresql.dialect()))


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


def test_versions_of_an_instance(ledger: Ledger) -> None:
    def file(new: StoredInstance) -> Filed:
        return ledger.write(instances.file_instance, new)

    assert file(stored("a", at=1)) is Filed.NEW
    assert file(stored("a", at=2)) is Filed.DUPLICATE
    assert file(stored("b", at=3)) is Filed.CONFLICT
    assert file(stored("a", at=4)) is Filed.DUPLICATE
    assert file(stored("c", at=5)) is Filed.CONFLICT
    assert file(stored("a", series="1.4", at=6)) is Filed.NEW
    states = "SELECT series_uid, substr(sha256, 1, 1), state FROM instance ORDER BY id"
    assert table(ledger, states) == [
        ("1.3", "a", "superseded"),
        ("1.3", "b", "superseded"),
        ("1.3", "c", "conflict"),
        ("1.4", "a", "current"),
    ]
    assert table(ledger, "SELECT series_uid, instances, revision, first_at, last_at FROM series") == [
        ("1.3", 1, 3, 1.0, 5.0),
        ("1.4", 1, 1, 6.0, 6.0),
    ]
    assert len(table(ledger, "SELECT * FROM event WHERE kind = 'instance.conflict'")) == 2


def test_a_lost_file_counts_for_nothing_until_it_comes_again(ledger: Ledger) -> None:
    first, again = stored("a", at=1), stored("a", at=2)
    ledger.write(instances.file_instance, first)
    assert ledger.write(instances.lose_instance, first.path, 1.5)
    assert not ledger.write(instances.lose_instance, first.path, 1.6)
    assert table(ledger, "SELECT instances FROM series") == [(0,)]
    assert ledger.write(instances.file_instance, again) is Filed.RESTORED
    assert table(ledger, "SELECT path, state FROM instance") == [(again.path, "current")]
    assert table(ledger, "SELECT instances, revision FROM series") == [(1, 3)]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12))
def test_exactly_one_version_counts_whatever_comes(steps: list[tuple[str, bool]]) -> None:
    with create_engine("sqlite://").connect() as db:
        with db.begin():
            tables.metadata.create_all(db)
        for at, (content, lose) in enumerate(steps):
            new = stored(content, at=float(at))
            with db.begin():
                instances.file_instance(db, new)
                if lose:
                    instances.lose_instance(db, new.path, float(at))
            with db.begin():
                counting = db.execute(
                    text("SELECT count(*) FROM instance WHERE state IN ('current', 'conflict')")
                ).scalar()
                told = db.execute(text("SELECT instances FROM series")).scalar()
                contents = db.execute(text("SELECT count(*) = count(DISTINCT sha256) FROM instance")).scalar()
            assert counting == told
            assert counting in (0, 1)
            assert contents == 1


def test_associations_end_once(ledger: Ledger) -> None:
    names = {"calling_ae": "A", "called_ae": "B", "host": "h"}
    for one in ("one", "two", "three"):
        ledger.write(associations.open_association, one, **names, receiver=f"of {one}", at=1.0)
    assert ledger.write(associations.open_by_caller) == {"A": 3}
    assert ledger.write(associations.end_association, "one", "released", 2.0)
    assert not ledger.write(associations.end_association, "one", "aborted", 3.0)
    assert ledger.write(associations.lose_open_associations, 4.0, "of two") == 1
    assert ledger.write(associations.open_by_caller) == {"A": 1}
    assert ledger.write(associations.lose_open_associations, 5.0) == 1
    found = table(ledger, "SELECT id, ending, ended_at FROM association ORDER BY ended_at")
    assert found == [("one", "released", 2.0), ("two", "lost", 4.0), ("three", "lost", 5.0)]


def add_job(ledger: Ledger, *, due: float, bundle: str = "b", ready_at: float = 0.0) -> None:
    """A job for the series, which is complete."""
    complete = "UPDATE series SET state = 'complete', complete_at = 0"
    ledger.write(lambda db: db.execute(text(complete)).rowcount)
    facts = {"study_uid": "1.2", "series_uid": "1.3", "revision": 1, "bundle": bundle, "rule": "r", "mode": "on"}
    facts |= {"state": "queued", "due": due, "ready_at": ready_at, "attempt": 0, "created_at": 0.0}
    ledger.write(lambda db: db.execute(insert(tables.job), facts))


def test_jobs_are_claimed_once_in_order_and_fenced(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    for due, bundle in ((30, "late"), (10, "early"), (20, "middle")):
        add_job(ledger, due=due, bundle=bundle)
    add_job(ledger, due=0, bundle="not yet", ready_at=100)
    claims = [ledger.write(jobs.claim_job, "w", now=50, until=60) for _ in range(4)]
    assert claims[3] is None
    order = [table(ledger, f"SELECT bundle FROM job WHERE id = {claim.id}")[0][0] for claim in claims if claim]
    assert order == ["early", "middle", "late"]
    old = claims[0]
    assert old is not None
    assert ledger.write(jobs.renew_job, old, until=61)
    new = ledger.write(jobs.claim_job, "other", now=60.5, until=90)  # one whose lease ran out
    assert new is not None
    assert new.id != old.id
    new = ledger.write(jobs.claim_job, "other", now=61.5, until=90)
    assert new is not None
    assert (new.id, new.attempt) in {(old.id, 2), (claims[2].id, 2)}
    stale = Claim(new.id, 1)
    assert not ledger.write(jobs.renew_job, stale, until=99)
    assert not ledger.write(jobs.end_job, stale, "done", 70, code=None, error=None)
    assert not ledger.write(jobs.requeue_job, stale, 70, code="x", error="x")
    assert ledger.write(jobs.requeue_job, new, 80, code="out_of_memory", error="no memory")
    assert not ledger.write(jobs.end_job, new, "done", 70, code=None, error=None)


def test_a_job_on_a_series_that_is_arriving_comes_last_and_is_put_back_as_it_was(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    add_job(ledger, due=20, bundle="complete")
    add_job(ledger, due=0, bundle="arriving")
    arriving = "UPDATE job SET revision = 0, state = 'waiting' WHERE bundle = 'arriving'"
    ledger.write(lambda db: db.execute(text(arriving)))
    assert ledger.write(lambda db: jobs.awaited(db, 1, arriving=True) and jobs.awaited(db, 1, arriving=False))
    first, second, none = (ledger.write(jobs.claim_job, "w", 1, 10) for _ in range(3))
    assert first and second and none is None
    assert table(ledger, f"SELECT bundle FROM job WHERE id = {first.id}") == [("complete",)]
    assert not ledger.write(lambda db: jobs.awaited(db, 1, arriving=True) or jobs.awaited(db, 1, arriving=False))
    assert ledger.write(jobs.give_way, second, 5)
    assert not ledger.write(jobs.give_way, second, 5)
    assert ledger.write(jobs.claim_job, "w", 4, 10) is None
    again = ledger.write(jobs.claim_job, "w", 6, 10)
    assert again == Claim(second.id, 2)
    assert ledger.write(jobs.requeue_job, again, 7, code="x", error="x")
    assert ledger.write(jobs.requeue_job, first, 7, code="x", error="x")
    assert sorted(table(ledger, "SELECT bundle, state, failures FROM job")) == [
        ("arriving", "waiting", 1),
        ("complete", "queued", 1),
    ]


def test_a_job_for_whose_series_more_has_come_waits_for_the_decision(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    add_job(ledger, due=1)
    ledger.write(instances.file_instance, stored("b", sop="1.4"))
    assert not ledger.write(jobs.awaited, 2, arriving=False)
    assert ledger.write(jobs.claim_job, "w", 2, 10) is None
    assert ledger.write(series_rows.complete_series, "1.2", "1.3", 2, "quiet", 3)
    assert ledger.write(jobs.claim_job, "w", 4, 10) == Claim(1, 1)


def test_parallel_workers_never_share_a_job(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    claimed: list[int] = []
    with Ledger(url) as ledger:
        ledger.write(instances.file_instance, stored())
        for number in range(20):
            add_job(ledger, due=number, bundle=str(number))

        def work(number: int) -> None:
            with Ledger(url) as mine:
                while claim := mine.write(jobs.claim_job, f"w{number}", 1, 1e9):
                    claimed.append(claim.id)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(claimed) == len(set(claimed)) == 20


def test_deliveries_wait_give_up_and_are_fenced(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    add_job(ledger, due=1)

    def prepare(db: Connection) -> None:
        result = {"id": 1, "job_id": 1, "result_key": "k", "study_uid": "1.2", "series_uid": "1.3", "bundle": "b"}
        db.execute(insert(tables.result), result | {"bundle_version": "1", "facts": "{}", "created_at": 1.0})
        thing = {"id": 1, "result_id": 1, "kind": "seg", "sop_class_uid": "1", "sop_instance_uid": "2", "path": "p"}
        db.execute(insert(tables.result_object), thing | {"size_bytes": 1, "sha256": "x"})
        for destination in ("pacs", "other"):
            facts = {"object_id": 1, "destination": destination, "state": "queued", "ready_at": 0.0, "attempt": 0}
            db.execute(insert(tables.delivery), facts | {"created_at": 0.0})

    ledger.write(prepare)
    claim = ledger.write(deliveries.claim_delivery, "pacs", "s", 1, 10)
    assert claim is not None
    assert ledger.write(deliveries.claim_delivery, "pacs", "s", 2, 10) is None
    assert ledger.write(deliveries.requeue_delivery, claim, 20, status=0xA700, code="peer", error="full")
    assert ledger.write(deliveries.claim_delivery, "pacs", "s", 19, 30) is None
    again = ledger.write(deliveries.claim_delivery, "pacs", "s", 20, 30)
    assert again == Claim(claim.id, 2)
    assert not ledger.write(deliveries.end_delivery, claim, 0, 21)
    assert ledger.write(deliveries.end_delivery, again, 0, 21)
    other = ledger.write(deliveries.claim_delivery, "other", "s", 1, 10)
    assert other is not None
    assert ledger.write(deliveries.requeue_delivery, other, None, status=0x0122, code="refused", error="no SEG")
    assert table(ledger, "SELECT destination, state FROM delivery ORDER BY id") == [
        ("pacs", "stored"),
        ("other", "dead"),
    ]
