"""The supervisor, with processes that only wait; and the service's lock and port."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.dimse.store import AssociationInfo
from gateway.heartbeat import Watched
from gateway.ledger import jobs, waits
from gateway.ledger import series as series_rows
from gateway.ledger.jobs import NewJob
from gateway.receive.spool import Spool
from gateway.serve import supervisor as service
from gateway.serve.supervisor import Supervisor, locked, run
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings, Rule
from gateway.settings.read import Reloaded
from medseg.errors import UsageError
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import NEVER_FULL
from tests.gateway.spooling import Inbox, inbox
from tests.ports import free_port
from tests.waiting import wait_for


def idle(live: Live, stop: threading.Event, **_: object) -> None:
    """A process with nothing to do."""
    stop.wait()


@contextmanager
def supervising(box: Inbox, monkeypatch: pytest.MonkeyPatch, **options: float) -> Iterator[Supervisor]:
    monkeypatch.setattr(service, "MAINS", {"receiver": idle, "worker": idle})
    supervisor = Supervisor(settings_of(box), box.ledger, **options)
    try:
        yield supervisor
    finally:
        supervisor.stop()


def settings_of(box: Inbox) -> GatewaySettings:
    settings = GatewaySettings()
    database = f"sqlite:///{box.folder.parent}/ledger.db"
    gateway = replace(settings.gateway, spool=box.folder, port=free_port(), http_port=free_port(), database=database)
    return replace(settings, gateway=gateway)


def run_job(box: Inbox) -> None:
    """A job in the hands of a worker."""
    series = phantom()
    box.send(series)
    new = NewJob(series[0].StudyInstanceUID, series[0].SeriesInstanceUID, 6, "", Rule().name, "on", "queued", 0)
    now = time.time()
    assert box.ledger.write(series_rows.complete_series, new.study_uid, new.series_uid, 6, "quiet", now)
    box.ledger.write(jobs.make_job, new, now)
    assert box.ledger.write(jobs.claim_job, "worker", now, now + 30)


def test_what_dies_is_reported_and_started_again_and_its_job_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with inbox(tmp_path) as box, supervising(box, monkeypatch) as supervisor:
        run_job(box)
        worker = supervisor.children[-1]
        first = worker.process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        def reported() -> bool:
            supervisor.watch()
            return any(getattr(one, "event", None) == "process.died" for one in caplog.records)

        wait_for("the report", reported, patience_s=5)

        def started_again() -> bool:
            supervisor.watch()
            return worker.process.is_alive() and worker.process.pid != first

        wait_for("another worker", started_again)
        (job,) = box.rows("job")
        assert (job.state, job.error_code, job.attempt) == ("queued", "crashed", 1)


def test_associations_of_a_dead_receiver_are_lost_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inbox(tmp_path) as box, supervising(box, monkeypatch) as supervisor:
        peers = [box.open(), box.open()]
        Spool(box.folder, box.ledger, NEVER_FULL, "receiver-2").opened(
            AssociationInfo("third", "CT01", "MEDSEG", "127.0.0.1")
        )
        assert [child.name for child in supervisor.children] == ["receiver", "receiver-2", "worker"]
        os.kill(supervisor.children[0].process.pid or 0, signal.SIGKILL)

        def lost() -> bool:
            supervisor.watch()
            return any(row.ending for row in box.rows("association"))

        wait_for("the end of the associations", lost)
        endings = {row.id: row.ending for row in box.rows("association")}
        assert endings == {peer.id: "lost" for peer in peers} | {"third": None}


def test_a_job_beyond_its_deadline_is_killed_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with inbox(tmp_path) as box, supervising(box, monkeypatch, deadline_s=0) as supervisor:
        run_job(box)
        hung = supervisor.children[-1].process

        def given_back() -> bool:
            supervisor.watch()
            return str(box.rows("job")[0].state) == "queued"

        wait_for("the job in the queue", given_back)
        assert box.rows("job")[0].error_code == "hung"
        assert hung.exitcode == -signal.SIGKILL


def test_a_job_that_kills_its_workers_fails_in_the_end(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        run_job(box)
        for _ in range(2):
            service._lose_jobs(settings_of(box), box.ledger, service.Fault.CRASHED)
            later = time.time() + 3600
            assert box.ledger.write(jobs.claim_job, "worker", later, later + 30)
        service._lose_jobs(settings_of(box), box.ledger, service.Fault.CRASHED)
        assert [(job.state, job.attempt) for job in box.rows("job")] == [("failed", 3)]


def test_a_job_is_not_blamed_for_restarts(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        run_job(box)
        for _ in range(5):
            service._lose_jobs(settings_of(box), box.ledger, service.Fault.DRAINED)
            later = time.time() + 3600
            assert box.ledger.write(jobs.claim_job, "worker", later, later + 30)
        service._lose_jobs(settings_of(box), box.ledger, service.Fault.CRASHED)
        assert [(job.state, job.attempt, job.failures) for job in box.rows("job")] == [("queued", 6, 1)]


def test_nothing_waits_for_a_clock_that_was_set_back_while_nobody_looked(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        run_job(box)
        settings = settings_of(box)
        service.recover(settings, box.ledger)
        box.ledger.write(waits.shift_waits, 30 * 86400.0)
        service.recover(settings, box.ledger)
        (job,) = box.rows("job")
        assert job.state == "queued" and job.ready_at < time.time() + 1000


def test_two_services_cannot_share_a_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE_S", 0)
    with inbox(tmp_path) as box:
        settings = settings_of(box)
        with locked(settings), pytest.raises(UsageError, match="another medseg serve"), locked(settings):
            pass
        with locked(settings):
            pass


@pytest.mark.parametrize("key", ["port", "http_port"])
def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path, key: str) -> None:
    with inbox(tmp_path) as box, socket.create_server(("127.0.0.1", 0)) as other:
        gateway = replace(settings_of(box).gateway, **{key: other.getsockname()[1]})
        with pytest.raises(UsageError, match=rf"change gateway\.{key}$"):
            run(replace(GatewaySettings(), gateway=gateway), Watched(), threading.Event(), Reloaded)
