"""Who works on what, where several runs share an output folder: over a network, after a crash, with clocks that differ.

    claims/NAME@1       the run that made it has the item: nobody else could, since `link` makes a name once
    claims/NAME@2       the run of NAME@1 was gone; whoever made this has it now, and NAME@1 has lost it

A claim's run touches it every few seconds. One that has not been touched for `STALE_S`, by the clock of who looks and
not by the file's, is stale; on the same machine it is at once, where its process is gone. A claim of a higher number
stands above one of a lower: who comes back late finds it there, and lets go.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from medseg.errors import OutputNotWritable

BEAT_S: Final = 10.0
STALE_S: Final = 60.0


class Claims:
    """The claims of one run in a folder. Use as a context: at its end, all that are still held are given back."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic, beat_s: float = BEAT_S) -> None:
        """Raises OutputNotWritable."""
        self._folder, self._clock, self._beat_s = folder, clock, beat_s
        self._held: dict[str, int] = {}
        self._seen: dict[Path, tuple[int, float]] = {}  # of others' claims: when it was touched, and when we saw that
        self._lock, self._ended = threading.Lock(), threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".run-", delete=False) as file:
                json.dump(_myself(), file)
        except OSError as error:
            raise OutputNotWritable(folder, error.strerror or str(error)) from error
        self._mine = Path(file.name)  # every claim of ours is another name of this file: one touch is of all

    def __enter__(self) -> Claims:
        self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        for name in list(self._held):
            self.release(name)
        self._mine.unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Whether an item is ours now: nobody had it, or who had it is gone. Raises OutputNotWritable."""
        last = self._last(name)
        if last and not self._is_stale(self._claim(name, last)):
            return False
        claim = self._claim(name, last + 1)
        try:
            os.link(self._mine, claim)
        except FileExistsError:
            return False
        except OSError as error:
            raise OutputNotWritable(self._folder, f"no hard link can be made: {error.strerror}") from error
        with self._lock:
            self._held[name] = last + 1
        return True

    def holds(self, name: str) -> bool:
        """Whether an item is still ours: no other run has taken us for gone."""
        number = self._held.get(name)
        return number is not None and self._last(name) == number and self._is_mine(self._claim(name, number))

    def release(self, name: str) -> None:
        """Give an item back, done or not."""
        with self._lock:
            number = self._held.pop(name)
        if self._is_mine(self._claim(name, number)):  # else another took it, and gave it back
            for each in range(number, 0, -1):  # from the highest: those below it belong to nobody any more
                self._claim(name, each).unlink(missing_ok=True)

    def _is_mine(self, claim: Path) -> bool:
        try:
            return claim.samefile(self._mine)
        except OSError:
            return False

    def _claim(self, name: str, number: int) -> Path:
        return self._folder / f"{name}@{number}"

    def _last(self, name: str) -> int:
        """The highest claim of an item, 0 where there is none. The folder holds what is worked on, and no more."""
        named = (entry.name.rpartition("@") for entry in os.scandir(self._folder))
        return max((int(number) for of, _, number in named if of == name and number.isdecimal()), default=0)

    def _is_stale(self, claim: Path) -> bool:
        try:
            touched = claim.stat().st_mtime_ns
            owner = json.loads(claim.read_text("utf-8"))
        except FileNotFoundError:
            return False  # given back just now: next time
        except (OSError, ValueError):
            owner = {}
        if _is_gone(owner):
            return True
        before, since = self._seen.setdefault(claim, (touched, self._clock()))
        if before != touched:
            self._seen[claim] = touched, self._clock()
            return False
        return self._clock() - since > STALE_S

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            with suppress(OSError):
                os.utime(self._mine)


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pids": _pids(), "pid": pid, "started": _started(pid)}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether a claim's process is known to be dead: of this start of this machine, and not there any more."""
    boot, pid = owner.get("boot"), owner.get("pid")
    here = (socket.gethostname(), _boot(), _pids())
    if not boot or (owner.get("host"), boot, owner.get("pids")) != here or not isinstance(pid, int):
        return False
    return _started(pid) != owner.get("started")


def _boot() -> str:
    """Which start of the machine this is; empty where it is not told."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


def _pids() -> str:
    """Which processes can be seen: those of a container are not those of its host."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    return ""


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where there is none of that number."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
