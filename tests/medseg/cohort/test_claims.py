"""Who works on what: one run alone, whatever happens to runs, machines and clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.cohort.claims import STALE_S, Claims
from tests.conftest import ROOT


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def another(folder: Path, clock: Clock, host: str = "elsewhere") -> Claims:
    """A run of another machine, whose processes cannot be asked for."""
    claims = Claims(folder, clock=clock)
    told = json.loads(claims._mine.read_text())
    claims._mine.write_text(json.dumps(told | {"host": host}))
    return claims


def test_one_of_many_gets_each_item(tmp_path: Path) -> None:
    runs = [Claims(tmp_path) for _ in range(8)]
    taken: list[list[str]] = [[] for _ in runs]
    together = threading.Barrier(len(runs))

    def take(number: int) -> None:
        together.wait()
        taken[number] = [name for name in map(str, range(50)) if runs[number].take(name)]

    threads = [threading.Thread(target=take, args=(number,)) for number in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for names in taken for name in names) == sorted(map(str, range(50)))


def test_a_claim_that_is_touched_stays_and_one_that_is_not_goes(tmp_path: Path, clock: Clock) -> None:
    far, here = another(tmp_path, clock), Claims(tmp_path, clock=clock)
    assert far.take("a")
    assert not here.take("a")
    clock.now += STALE_S + 1
    os.utime(far._mine, ns=(1, 1))  # touched, by a clock that is wrong by years
    assert not here.take("a")
    clock.now += STALE_S + 1
    assert here.take("a")
    assert not far.holds("a")
    assert here.holds("a")
    far.release("a")  # it comes back late, and lets go
    assert here.holds("a")
    here.release("a")
    assert list(tmp_path.glob("a@*")) == []


def test_the_claim_of_a_process_that_is_gone_is_free_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from medseg.cohort.claims import Claims; Claims(pathlib.Path(sys.argv[1])).take('a')"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert Claims(tmp_path).take("a")


def test_a_claim_that_nobody_can_read_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    here = Claims(tmp_path, clock=clock)
    (tmp_path / "a@1").write_bytes(b"\xff{")
    assert not here.take("a")
    clock.now += STALE_S + 1
    assert here.take("a")


def test_at_its_end_a_run_gives_back_what_it_had(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        assert claims.take("a")
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["take", "release", "beat", "wait"])), max_size=40))
def test_never_two_hold_an_item(tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str]]) -> None:
    folder, clock = tmp_path_factory.mktemp("claims"), Clock()
    runs = [another(folder, clock, f"host {number}") for number in range(3)]
    beats = 0
    for number, move in moves:
        run = runs[number]
        if move == "take" and not run.holds("a"):
            run.take("a")
        elif move == "release" and "a" in run._held:
            run.release("a")
        elif move == "beat":
            beats += 1
            os.utime(run._mine, ns=(beats, beats))
        elif move == "wait":
            clock.now += STALE_S + 1
        assert sum(each.holds("a") for each in runs) <= 1
