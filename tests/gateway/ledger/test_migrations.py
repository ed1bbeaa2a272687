"""Older ledgers, and what the migrations make of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from gateway.ledger import tables
from gateway.ledger.ledger import MIGRATIONS, Ledger, LedgerUnavailable


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
