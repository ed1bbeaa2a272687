"""Health: every reason not to be ready is found, and named; and asking never hangs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.settings.model import Limits
from gateway.web import health
from tests.gateway.web.served import PROCESSES, Served, served


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(health, "PATIENCE_S", 60.0)  # a busy disk is not what is tried here
    with served(tmp_path) as one:
        yield one


def failing(site: Served, path: str = "/readyz") -> set[str]:
    """The checks that fail."""
    answer = site.get(path)
    checks = json.loads(answer.body)["checks"]
    bad = {name for name, check in checks.items() if not check["ok"]}
    assert answer.status == (503 if bad else 200) and all(check["found"] for check in checks.values())
    return bad


def test_all_is_well(site: Served) -> None:
    assert not failing(site) and not failing(site, "/healthz")
    assert json.loads(site.get("/readyz").body)["checks"].keys() == {"ledger", "disk", "settings", *PROCESSES}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_that_does_not_beat(site: Served, process: str) -> None:
    site.beat(process, age_s=6)
    assert failing(site) == {process} and not failing(site, "/healthz")
    site.beat(process)
    assert not failing(site)


def test_a_full_disk(site: Served) -> None:
    site.live.now = replace(site.live.now, limits=Limits(disk_used_percent=100, disk_free_gb=1e9))
    assert failing(site) == {"disk"} and not failing(site, "/healthz")


def test_a_ledger_that_cannot_be_written_is_told_while_it_hangs(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 0.3)
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert failing(site) == {"ledger"}
        assert failing(site) == {"ledger"}  # not a second writer that waits
        assert not failing(site, "/healthz")
        other.execute("ROLLBACK")
    monkeypatch.setattr(health, "PATIENCE_S", 60.0)
    site.beat(*PROCESSES)
    assert not failing(site)


def test_a_ledger_that_is_damaged(site: Served, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("DROP TABLE association")
        other.execute("DROP TABLE tally")
    assert failing(site) == {"ledger"} and failing(site, "/healthz") == {"ledger"}
    assert site.get("/metrics").status == 503


def test_a_service_that_never_ran(site: Served) -> None:
    for name in PROCESSES:
        (site.box.folder / "processes" / name).unlink()
    assert failing(site) == {"processes"}
