"""Heartbeats: who lives is seen to, who hangs or died is not."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from gateway import heartbeat, logs
from gateway.heartbeat import Heart, Watched, beats, expect
from gateway.ledger import tallies
from gateway.ledger.tallies import EVENTS
from tests.gateway.ledgers import new_ledger
from tests.waiting import wait_for


def alive(folder: Path, name: str) -> bool:
    return {beat.process: beat.alive for beat in beats(folder)}[name]


def heart(folder: Path, stop: Watched, stall_s: float = 30.0) -> Heart:
    return Heart(folder, f"sqlite:///{folder}/ledger.db", "director", stop, stall_s)


def test_whoever_never_started_does_not_live_and_is_not_forgotten(tmp_path: Path) -> None:
    expect(tmp_path, ["director", "worker"])
    expect(tmp_path, ["director", "sender"])
    assert [(beat.process, beat.pid, beat.alive) for beat in beats(tmp_path)] == [
        ("director", None, False),
        ("sender", None, False),
    ]


def test_it_beats_once_the_loop_turns_and_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    expect(tmp_path, ["director"])
    stop = Watched()
    with heart(tmp_path, stop):
        assert not alive(tmp_path, "director")
        assert not stop.wait(0.01)
        wait_for("a beat", lambda: alive(tmp_path, "director"))
        assert beats(tmp_path)[0].pid == os.getpid()
        stop.set()
        os.utime(tmp_path / heartbeat.FOLDER / "director", (1, 1))
        time.sleep(0.1)  # ten beats that must not come
        assert not alive(tmp_path, "director")


def test_a_loop_that_hangs_does_not_turn_and_one_that_waits_does() -> None:
    stop = Watched()
    assert not stop.turns(1000)
    stop.is_set()
    assert stop.turns(1000) and not stop.turns(0)
    threading.Thread(target=stop.is_set).start()  # another thread's asking says nothing of the loop
    assert not stop.turns(0)
    seen: list[bool] = []

    def look() -> None:
        wait_for("the wait", lambda: stop.turns(0))
        seen.append(stop.turns(0))
        stop.set()

    thread = threading.Thread(target=look)
    thread.start()
    assert stop.wait()
    thread.join()
    assert seen == [True] and not stop.turns(1000)


def test_a_beat_from_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    expect(tmp_path, ["director"])
    later = time.time() + 3600
    os.utime(tmp_path / heartbeat.FOLDER / "director", (later, later))
    assert not alive(tmp_path, "director")


def test_what_was_logged_is_counted_for_good(tmp_path: Path) -> None:
    logs.COUNTS.take()
    log = logging.LogRecord("gateway.x", logging.INFO, "", 1, "", (), None)
    log.event = "association.opened"
    for _ in range(2):  # two lives of one process
        expect(tmp_path, ["director"])
        logs.COUNTS.handle(log)
        with heart(tmp_path, Watched()):
            pass
    with new_ledger(tmp_path) as ledger, ledger.read() as db:
        assert tallies.counted(db, EVENTS) == {("association.opened", "info"): 2.0}


def test_what_cannot_be_counted_yet_is_counted_later(tmp_path: Path) -> None:
    logs.COUNTS.take()
    log = logging.LogRecord("gateway.x", logging.INFO, "", 1, "", (), None)
    log.event = "association.opened"
    logs.COUNTS.handle(log)
    expect(tmp_path, ["director"])
    with Heart(tmp_path, f"sqlite:///{tmp_path}/no/such/folder/ledger.db", "director", Watched()):
        pass
    assert logs.COUNTS.take() == {("association.opened", "info"): 1}
