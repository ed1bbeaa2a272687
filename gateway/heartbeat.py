"""Heartbeats: how one process of a service sees that the others live, and that their loops still turn.

    spool/processes/<name>      the process's id and start; touched every second, as long as its loop turns

A file's time, and not a row of the ledger: a beat need not outlive a power cut, must cost no commit, and takes no room
on a full disk. What was logged is written down here too (`gateway.ledger.tallies.EVENTS`), a few seconds after it was.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gateway import logs
from gateway.ledger import tallies
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.tallies import EVENTS

FOLDER = "processes"
BEAT_S = 1.0
STALE_S = 5.0  # without a beat for so long, a process is dead or hangs
STALL_S = 30.0  # a loop that has not come round for so long hangs; a large study takes seconds
COUNT_S = 5.0  # how often what was logged is written down


class Watched(threading.Event):
    """Tells the thread that made it to stop; and, since its loop keeps asking, tells others whether that turns."""

    def __init__(self) -> None:
        super().__init__()
        self._owner = threading.get_ident()
        self._asked_s: float | None = None

    def is_set(self) -> bool:
        self._note(time.monotonic())
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        self._note(math.inf)  # to wait for the end is what it is there for
        try:
            return super().wait(timeout)
        finally:
            self._note(time.monotonic())

    def turns(self, stall_s: float) -> bool:
        """Whether its thread waits, or asked in the last `stall_s` seconds; not before it first did, or at the end."""
        asked_s = self._asked_s
        return asked_s is not None and not super().is_set() and time.monotonic() - asked_s <= stall_s

    def _note(self, now_s: float) -> None:
        if threading.get_ident() == self._owner:
            self._asked_s = now_s


@dataclass(frozen=True)
class Beat:
    """A process of the service. pid, started_at: None before it starts. age_s: of its last beat, or infinite."""

    process: str
    pid: int | None
    started_at: float | None
    age_s: float

    @property
    def alive(self) -> bool:
        return self.age_s <= STALE_S


def expect(spool: Path, processes: Iterable[str]) -> None:
    """These processes, and no others, are to beat from now on."""
    folder = spool / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = set(processes)
    for old in folder.iterdir():
        if old.name not in names:
            old.unlink()
    for name in names:
        (folder / name).touch(mode=0o600)
        os.utime(folder / name, (0, 0))


def beats(spool: Path) -> list[Beat]:
    """All processes that should beat, by name; none where no service has run. Raises OSError."""
    now, found = time.time(), []
    for file in sorted((spool / FOLDER).glob("*")):
        written = json.loads(file.read_text("utf-8") or "{}")
        at = file.stat().st_mtime
        # A clock that was set back makes a beat come from the future: no sign of life either, for a second.
        age_s = abs(now - at) if at else math.inf
        found.append(Beat(file.name, written.get("pid"), written.get("started_at"), age_s))
    return found


class Heart:
    """Beats for this process from a thread of its own, as long as it is entered."""

    def __init__(self, spool: Path, database: str, process: str, stop: Watched, stall_s: float = STALL_S) -> None:
        self._file, self._database, self._stop, self._stall_s = spool / FOLDER / process, database, stop, stall_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # a full disk is no reason not to run
            self._file.write_text(json.dumps({"pid": os.getpid(), "started_at": time.time()}), "utf-8")
        os.utime(self._file, (0, 0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        count_s, ledger, over = time.monotonic(), None, False
        while not over:
            over = self._over.wait(BEAT_S)
            if self._stop.turns(self._stall_s):
                os.utime(self._file, (time.time(),) * 2)
            if over or time.monotonic() - count_s > COUNT_S:
                count_s = time.monotonic()
                ledger = self._count(ledger)
        if ledger is not None:
            ledger.close()

    def _count(self, ledger: Ledger | None) -> Ledger | None:
        """Write down what was logged."""
        taken = logs.COUNTS.take()
        grown = [one for (event, level), n in taken.items() for one in EVENTS.plus(n, event=event, level=level)]
        if grown:
            try:
                ledger = ledger or Ledger(self._database)
                ledger.write(tallies.add, grown)
            except LedgerUnavailable:
                logs.COUNTS.give_back(taken)
        return ledger
