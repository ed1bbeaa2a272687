"""The command line as its user meets it: its exit code, what it prints and what it leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medseg.cli import main
from tests.medseg.bundle.zoo import spleen_like


@dataclass(frozen=True)
class Ran:
    """What a run of the command gave."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, a line each."""
        return [json.loads(line) for line in self.out.splitlines() if line.strip()]

    @property
    def error(self) -> str:
        """The last message on stderr: the one sentence."""
        return self.err.strip().splitlines()[-1]


Medseg = Callable[..., Ran]


@pytest.fixture
def medseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Medseg:
    """Run `medseg` in an empty folder; anything but an exit is a traceback, and fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return run


@pytest.fixture(scope="session")
def spleen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spleen-style bundle of small random weights, for CT."""
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen")


def left_over(folder: Path) -> list[str]:
    """Files that a failed run must not leave."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if "medseg" in str(path.relative_to(folder))]
