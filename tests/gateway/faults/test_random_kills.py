"""kill -9 of each process at random moments, over a run of studies.

Every instance answered 0000H is there byte for byte, and each series ends with exactly one current result at the peer.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset

from gateway.ledger.ledger import Ledger
from gateway.receive.reconcile import reconcile
from gateway.receive.spool import Spool
from tests.gateway.faults.conftest import TIMES, rules
from tests.gateway.faults.faulty import Faulty, alive, faulty
from tests.gateway.faults.report import report
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import CT, NEVER_FULL, RawPeer, associate_request, data_set_of, encode, store_message
from tests.waiting import wait_for

SLICES = 8
BACKLOG = 3  # series that may be on their way at once
DEADLINE_S = 3600.0


class Modality:
    """Sends series until told to stop, and each instance until it is answered 0000H."""

    def __init__(self, service: Faulty, pacs: FakePacs, seed: int) -> None:
        self.sent: list[list[Dataset]] = []
        self.acknowledged: dict[str, bytes] = {}
        self.stop = threading.Event()
        self._service, self._pacs, self._seed = service, pacs, seed
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        chance = random.Random(self._seed)
        while not self.stop.is_set():
            series = new_phantom(chance.randrange(1 << 30), SLICES)
            self.sent.append(series)
            left = list(series)
            while left:
                with contextlib.suppress(OSError):
                    self._send(left, chance)
                time.sleep(0.05 if left else 0)
            while not self.stop.is_set() and self._underway() > BACKLOG:
                time.sleep(0.1)

    def _underway(self) -> int:
        """How many series were sent of which no result is at the peer."""
        return len(
            {one[0].StudyInstanceUID for one in self.sent} - {one.StudyInstanceUID for one in self._pacs.of("SR")}
        )

    def _send(self, left: list[Dataset], chance: random.Random) -> None:
        """Over one association, until that breaks or all of it, or of a part, is stored."""
        part = left[: chance.randint(1, len(left))]
        with RawPeer(self._service.port, associate_request(calling=f"CT{self._seed % 100}"), timeout_s=20) as peer:
            for one in part:
                data_set = encode(one)
                peer.send(store_message(CT, str(one.SOPInstanceUID), data_set, fragment=2000))
                if peer.read_status() != 0:
                    return
                self.acknowledged[str(one.SOPInstanceUID)] = data_set
                left.remove(one)
            peer.release()


def kill(service: Faulty, name: str) -> bool:
    """Kill a process, if it is there; a service that was killed itself is started again, as systemd would."""
    pid = service.process.pid if name == "service" else service.pid_of(name)
    if pid is None or not alive(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    if name == "service":
        service.process.wait()
        service.start()
    return True


@dataclass(frozen=True)
class Work:
    """How many jobs were begun, and done."""

    begun: int = 0
    done: int = 0

    @classmethod
    def of(cls, service: Faulty) -> Work:
        (row,) = service.rows("SELECT coalesce(sum(attempt), 0) AS begun, sum(state = 'done') AS done FROM job")
        return cls(row.begun, row.done or 0)


def victim(service: Faulty, chance: random.Random, before: Work) -> tuple[str | None, Work]:
    """Whom to kill; and what had been done when the worker was last killed.

    The worker takes longest to start. It, and the service with it, is mostly left alone until something was done.
    """
    now = Work.of(service)
    others = sorted(service.pids().keys() - {"service", "worker"})
    name = chance.choices(["service", "worker", "another"], [1, 3, 10])[0]
    ripe = now.done > before.done or (now.begun > before.begun and chance.random() < 0.1)
    if name == "another" or not ripe:
        return (chance.choice(others) if others else None), before
    return name, now


@pytest.mark.parametrize(
    ("kills", "seed"),
    [pytest.param(10, 3, marks=pytest.mark.slow), pytest.param(240, 2026, marks=pytest.mark.reliability)],
)
def test_kill_9_at_random_moments(tmp_path: Path, bundle: Path, kills: int, seed: int) -> None:
    print(f"seed {seed}")
    began_s, chance = time.monotonic(), random.Random(seed)
    killed: Counter[str] = Counter()
    work = Work()
    deliver = "[deliver]\ncommitment = false\nfirst_retry_s = 0.2\nlongest_retry_s = 1\n"
    with (
        listening(FakePacs()) as pacs,
        faulty(tmp_path, TIMES + deliver + rules(bundle, pacs.port)) as service,
    ):
        modalities = [Modality(service, pacs, seed + number) for number in range(2)]
        for modality in modalities:
            modality.thread.start()
        while killed.total() < kills and time.monotonic() < began_s + DEADLINE_S:
            time.sleep(chance.uniform(0.05, 2.0))
            name, work = victim(service, chance, work)
            if name is not None and kill(service, name):
                killed[name] += 1
        for modality in modalities:
            modality.stop.set()
        for modality in modalities:
            modality.thread.join(120)
            assert not modality.thread.is_alive()
        assert killed.total() == kills
        sent = [series for modality in modalities for series in modality.sent]
        acknowledged = modalities[0].acknowledged | modalities[1].acknowledged
        assert len(acknowledged) == SLICES * len(sent)
        settle(service)
        check(service, pacs, sent, acknowledged)
        service.stop()
        check_spool(service)
        again = len(service.rows("SELECT 1 FROM job WHERE attempt > 1"))
    times = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
    report(
        "kill -9 of each process at random moments",
        began_s,
        injected=f"{killed.total()} kills (seed {seed}): {times}",
        held=f"all {len(acknowledged)} instances answered 0000H are there byte for byte; each of {len(sent)} series "
        f"has exactly one current result, and the peer has it; {again} jobs were run more than once",
    )


def settle(service: Faulty) -> None:
    """Until nothing is under way; a job that three dead workers made fail is tried again, as a person would."""

    def quiet() -> bool:
        for row in service.rows("SELECT id FROM job WHERE state = 'failed' AND error_code = 'crashed'"):
            retry(service, row.id)
        pending = service.rows(
            "SELECT 1 FROM series WHERE state <> 'complete' UNION ALL"
            " SELECT 1 FROM job WHERE state IN ('waiting', 'queued', 'running') UNION ALL"
            " SELECT 1 FROM delivery WHERE state IN ('queued', 'sending')"
        )
        return not pending

    wait_for("everything to be delivered", quiet, patience_s=300)


def retry(service: Faulty, job: int) -> None:
    with contextlib.closing(sqlite3.connect(service.database.removeprefix("sqlite:///"), timeout=30)) as db, db:
        db.execute(f"UPDATE job SET state = 'queued', finished_at = NULL WHERE id = {job}")


def check(service: Faulty, pacs: FakePacs, sent: list[list[Dataset]], acknowledged: dict[str, bytes]) -> None:
    rows = service.rows("SELECT * FROM instance")
    stored = {row.sop_instance_uid: data_set_of(service.spool / row.path) for row in rows}
    assert stored == acknowledged
    assert len(rows) == len(stored) and {row.state for row in rows} == {"current"}
    at_peer = {one.SOPInstanceUID: one for modality in ("SEG", "SR") for one in pacs.of(modality)}
    for series in sent:
        assert service.series_row(series).instances == SLICES
        (result,) = service.current_results(series)
        assert service.jobs(series)[-1].id == result.job_id
        objects = service.rows(f"SELECT * FROM result_object WHERE result_id = {result.id}")
        assert "sr" in {row.kind for row in objects}
        for row in objects:
            assert at_peer[row.sop_instance_uid].StudyInstanceUID == series[0].StudyInstanceUID


def check_spool(service: Faulty) -> None:
    """What a start finds: nothing damaged, nothing gone."""
    with Ledger(service.database) as ledger:
        found = reconcile(Spool(service.spool, ledger, NEVER_FULL), ledger)
    assert (found.quarantined, found.missing) == ((), ())
    assert not list((service.spool / "incoming").iterdir()) and not list((service.spool / "quarantine").iterdir())
