"""What was tested is among what is asked for."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def test_every_dependency_is_pinned_at_a_version_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pins = dict(line.split("==") for line in lines)
    extras = [each for some in project["optional-dependencies"].values() for each in some]
    for text in (*project["dependencies"], *extras):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name]), f"{text}: tested with {pins[wanted.name]}"
