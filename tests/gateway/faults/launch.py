"""`medseg` with faults, for tests: `python -m tests.gateway.faults.launch serve --config ...`.

The processes of the service are spawned, and a spawned process imports its parent's main module first: this one. So
what is done here happens in each of them before any of the gateway's code is loaded, and the gateway needs no seam.

Three environment variables, each of which may be absent:

MEDSEG_FAULTS    a folder. A file there that is named for one of POINTS arms it: the next process to get there takes
                 the file away and does what it says: one of ACTIONS, and so many times. `<name>.pid` names a process of
                 the service.
MEDSEG_CLOCK     a file of two doubles, added to the wall clock and to the monotonic clock (s).
MEDSEG_CONSTANTS JSON: {"module": {"NAME": value}}, set when the module is loaded; NAME may be a path of attributes.
"""

from __future__ import annotations

import errno
import functools
import importlib.abc
import importlib.util
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

CLOCK = struct.Struct("dd")
FAULTS = Path(os.environ["MEDSEG_FAULTS"]) if "MEDSEG_FAULTS" in os.environ else None
CONSTANTS: dict[str, dict[str, Any]] = json.loads(os.environ.get("MEDSEG_CONSTANTS", "{}"))


@dataclass(frozen=True)
class Point:
    """A moment: before a function begins, or after it is done."""

    module: str
    function: str
    after: bool = False


POINTS = {
    "spool.written": Point("gateway.receive.spool", "Reception.write", after=True),  # a part of an instance
    "spool.published": Point("gateway.receive.spool", "Spool.publish", after=True),  # renamed and synced, no row
    "spool.filed": Point("gateway.receive.spool", "Spool.file", after=True),  # committed, not answered
    "engine": Point("medseg.inference.engines.engine", "Engine._forward"),  # a batch of windows
    "result.written": Point("gateway.work.freeze", "freeze", after=True),  # synced, no row
    "sender.send": Point("gateway.dimse.scu", "Link.store"),
    "sender.sent": Point("gateway.dimse.scu", "Link.store", after=True),  # the peer has it, the ledger does not know
    "sender.asked": Point("gateway.dimse.scu", "Link.commit", after=True),  # the same of storage commitment
}


def _hang() -> None:
    while True:
        time.sleep(3600)


def _raise(error: BaseException) -> None:
    raise error


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": _hang,
    "memory": lambda: _raise(MemoryError("injected")),
    "full": lambda: _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "broken": lambda: _raise(OSError(errno.EIO, os.strerror(errno.EIO))),
}


def reach(name: str) -> None:
    """Do what this point is armed with, if it is."""
    assert FAULTS is not None
    taken = FAULTS / f"{name}.{os.getpid()}"
    try:
        (FAULTS / name).rename(taken)
    except FileNotFoundError:
        return
    action, times = taken.read_text().split()
    if int(times) > 1:
        taken.write_text(f"{action} {int(times) - 1}")
        taken.rename(FAULTS / name)
    (FAULTS / f"{name}.taken").touch()
    ACTIONS[action]()


def _guarded(name: str, point: Point, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        if not point.after:
            reach(name)
        found = function(*arguments, **named)
        if point.after:
            reach(name)
        return found

    return guarded


def _entered(enter: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(enter)
    def entered(name: str, *arguments: Any) -> None:
        assert FAULTS is not None
        part = FAULTS / f"{name}.{os.getpid()}"
        part.write_text(str(os.getpid()))
        part.rename(FAULTS / f"{name}.pid")
        enter(name, *arguments)

    return entered


def change(module: ModuleType) -> None:
    """Put points and constants into a module that was just loaded."""
    for name, value in CONSTANTS.get(module.__name__, {}).items():
        owner, last = _find(module, name)
        (object.__setattr__ if is_dataclass(owner) else setattr)(owner, last, value)
    if FAULTS is None:
        return
    for name, point in POINTS.items():
        if point.module == module.__name__:
            owner, last = _find(module, point.function)
            setattr(owner, last, _guarded(name, point, getattr(owner, last)))
    if module.__name__ == "gateway.serve.processes":
        module.enter = _entered(module.enter)


def _find(module: ModuleType, path: str) -> tuple[Any, str]:
    """Who has an attribute, and its last name. Raises AttributeError: the table above is out of date."""
    *owners, last = path.split(".")
    owner: Any = module
    for part in owners:
        owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
    getattr(owner, last)
    return owner, last


class _Changing(importlib.abc.MetaPathFinder):
    """Changes modules right after they are loaded."""

    def __init__(self) -> None:
        self._wanted = {point.module for point in POINTS.values()} | {"gateway.serve.processes"} | set(CONSTANTS)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._wanted:
            return None
        self._wanted.discard(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def _move_clocks(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123
        offsets = mmap.mmap(file.fileno(), CLOCK.size, access=mmap.ACCESS_READ)
    wall, monotonic = time.time, time.monotonic
    time.time = lambda: wall() + CLOCK.unpack_from(offsets)[0]
    time.monotonic = lambda: monotonic() + CLOCK.unpack_from(offsets)[1]


if "MEDSEG_CLOCK" in os.environ:
    _move_clocks(os.environ["MEDSEG_CLOCK"])
sys.meta_path.insert(0, _Changing())

if __name__ == "__main__":
    from medseg.cli import main

    main()
