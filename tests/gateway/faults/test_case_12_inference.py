"""Case 12: a device out of memory, a model that hangs, one that crashes, corrupt weights.

Tried again smaller and on the CPU, then a dead letter; other studies go on.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset

from gateway.serve.supervisor import DEADLINE_S
from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.phantoms import new_phantom
from tests.waiting import wait_for


def sent(gateway: Faulty, **changes: str) -> list[Dataset]:
    series = new_phantom(**changes)
    assert store_all(gateway.port, series) == [0] * 8
    gateway.complete(series)
    return series


def assert_goes_on(gateway: Faulty) -> None:
    """The next study is done at the first attempt."""
    job = gateway.ended(sent(gateway))
    assert (job.state, job.failures) == ("done", 0)


def test_case_12_out_of_memory_once(gateway: Faulty) -> None:
    """The attempt fails, and the next one, with one window at a time, does not."""
    gateway.arm("engine", "memory", times=3)  # a batch of 4, of 2, of 1
    job = gateway.ended(sent(gateway))
    assert (job.state, job.failures) == ("done", 1)
    assert_goes_on(gateway)


@pytest.mark.slow
def test_case_12_out_of_memory_always(gateway: Faulty) -> None:
    gateway.arm("engine", "memory", times=1000)
    job = gateway.ended(sent(gateway))
    assert (job.state, job.error_code, job.failures) == ("failed", "out_of_memory", 3)
    gateway.disarm()
    assert_goes_on(gateway)


def test_case_12_a_model_that_hangs(gateway: Faulty) -> None:
    """Its worker is killed when its time is over."""
    gateway.arm("engine", "hang")
    series = sent(gateway)
    wait_for("the hang", lambda: gateway.happened("engine"))
    behind = sent(gateway)
    wait_for("the watch", lambda: gateway.jobs(series)[0].state == "running")
    worker = gateway.pid_of("worker")

    def killed() -> bool:
        gateway.leap(DEADLINE_S / 4)
        return gateway.pid_of("worker") != worker

    wait_for("another worker", killed)
    assert {gateway.ended(one).state for one in (series, behind)} == {"done"}
    assert (gateway.jobs(series)[0].failures, gateway.jobs(behind)[0].failures) == (1, 0)


@pytest.mark.slow
def test_case_12_a_model_that_crashes(gateway: Faulty) -> None:
    gateway.arm("engine", "crash")
    series = sent(gateway)
    job = gateway.ended(series)
    assert gateway.happened("engine")
    assert (job.state, job.failures) == ("done", 1)
    assert_goes_on(gateway)


def test_case_12_corrupt_weights(gateway: Faulty, corrupt: Path) -> None:
    series = sent(gateway, SeriesDescription="by corrupt weights")
    job = gateway.ended(series)
    assert job.state == "failed" and str(corrupt.name) in job.error, job.error
    assert_goes_on(gateway)
