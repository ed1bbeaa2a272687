"""Where results of races and what the back-ends made are kept: a folder per case under MEDSEG_CACHE (docs/engines.md).

    engines/<key>/auto.json          the race (`selection.RaceResult`); openvino.json: the trial of that one alone
    engines/<key>/asked.json         how many windows jobs have had
    engines/<key>/held.json          how much memory a window takes by torch
    engines/<key>/openvino-k3x9/     what the result names, with the digest of each file

A result appears whole, by a rename, and names folders that are never written to again. Whatever is damaged, or was not
written by this user, is as if it were not there: the race is run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from medseg.inference.engines.case import Case

logger = logging.getLogger(__name__)

VARIABLE: Final = "MEDSEG_CACHE"
MOST_CASES: Final = 32  # some tens of megabytes each
_WINDOWS_SEEN: Final = "asked"
_SCHEMA: Final = 3
_LEFT_S: Final = 24 * 3600.0  # no engine takes so long to make
_LIBRARIES: Final = ("torch", "openvino", "torch-tensorrt")


class EngineCache:
    """What is kept of one case."""

    def __init__(self, case: Case) -> None:
        self.key = key(case)
        self.folder = _home() / self.key

    def read(self, question: str) -> dict[str, Any] | None:
        """What was answered to a question, None where nothing was or where it cannot be read."""
        try:
            answer = json.loads((self.folder / f"{question}.json").read_text("utf-8"))
            os.utime(self.folder)  # asked for just now: the last to be thrown away
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def write(self, question: str, answer: dict[str, Any]) -> None:
        """Keep an answer; where that cannot be done it is said in the log, and the question will be asked again."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".part", delete=False) as file:
                file.write(json.dumps(answer, indent=1) + "\n")
            Path(file.name).replace(self.folder / f"{question}.json")
            self._sweep()
            _prune(self.folder)
        except OSError as error:
            logger.warning("cannot keep what was found of an engine in %s: %s", self.folder, error.strerror)

    def count(self, windows: int) -> int:
        """How many windows jobs have had before, to which these are added."""
        known = (self.read(_WINDOWS_SEEN) or {}).get("windows")
        before = known if isinstance(known, int) else 0
        self.write(_WINDOWS_SEEN, {"windows": before + windows})
        return before

    def forget(self, question: str) -> None:
        """As if it had never been asked."""
        with suppress(OSError):
            (self.folder / f"{question}.json").unlink()

    def room(self, engine: str) -> Path:
        """A new, empty folder. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=self.folder))

    def drop(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _sweep(self) -> None:
        """Throw away what no answer names and nobody makes any more: of a job that was stopped, or an older answer."""
        answers = " ".join(path.read_text("utf-8") for path in self.folder.glob("*.json"))
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in answers and time.time() - path.stat().st_mtime > _LEFT_S:
                self.drop(path.name)


def key(case: Case) -> str:
    """SHA-256 (hex, begun) over everything that decides which back-end is fastest and what it computes."""
    on_gpu = case.device.type == "cuda"
    facts = {
        "schema": _SCHEMA,
        "bundle": case.digest,
        "window": case.shape,
        "batch": case.fixed,
        "precision": case.precision,
        "machine": torch.cuda.get_device_name(case.device) if on_gpu else _cpu(),
        "threads": torch.get_num_threads(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file in a folder, by name. Raises OSError."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _home() -> Path:
    """The folder of all cases, this user's alone, since what lies in it is run; a temporary one where that fails."""
    told, base = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    root = Path(told) if told else Path(base) / "medseg" if base else Path("~/.cache/medseg").expanduser()
    folder = root / "engines"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            why = "others may write to it"
        elif not os.access(folder, os.W_OK):
            why = "it cannot be written to"
        else:
            return folder
    except OSError as error:
        why = error.strerror or str(error)
    return Path(_instead_of(folder, why).name)


@cache
def _instead_of(folder: Path, why: str) -> tempfile.TemporaryDirectory[str]:
    """A folder that goes with the process."""
    logger.warning("engines are not kept in %s: %s; set %s to a folder of your own", folder, why, VARIABLE)
    return tempfile.TemporaryDirectory(prefix="medseg-engines-")


@cache
def _cpu() -> str:
    """The CPU's name and what it can do: virtual machines of one name differ in that."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    able = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name', platform.processor())} {able}"


@cache
def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _prune(newest: Path) -> None:
    """Throw away the cases that were not asked for the longest."""
    cases = [one for one in newest.parent.iterdir() if one.is_dir() and one != newest]
    for old in sorted(cases, key=lambda one: one.stat().st_mtime, reverse=True)[MOST_CASES - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
