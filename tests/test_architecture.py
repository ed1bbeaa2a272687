"""Imports run one way, and each foreign library is met in few places."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "medseg"

# From the ground up: a room may import itself and the rooms of floors below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "progress"),
    ("dicom",),
    ("networks",),
    ("bundle",),
    ("inference",),
    ("results",),
    ("job",),
    ("training",),
    ("cli",),
)
HOMES: dict[str, tuple[str, ...]] = {
    "highdicom": ("results",),
    "monai": ("bundle", "inference/fallback", "training"),
    "nibabel": ("dicom/nifti", "inference/grid", "results/nifti", "training", "cli/demo"),
    "typer": ("cli",),
    "rich": ("cli",),
    "PIL": ("results",),
    "gateway": (),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "_bundles" not in path.parts:
            yield path.relative_to(PACKAGE).with_suffix("").as_posix(), ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def floor(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def test_imports_run_one_way() -> None:
    wrong = []
    for name, tree in modules():
        room = name.split("/")[0]
        if room in ("__init__", "__main__"):
            continue
        for target in imported(tree):
            parts = target.split(".")
            if parts[0] == "medseg" and len(parts) > 1 and floor(parts[1]) > floor(room):
                wrong.append(f"{name} imports {target}")
    assert not wrong


@pytest.mark.parametrize("library", HOMES)
def test_a_foreign_library_stays_in_its_home(library: str) -> None:
    wrong = [
        name
        for name, tree in modules()
        if library in {target.split(".")[0] for target in imported(tree)} and not name.startswith(HOMES[library])
    ]
    assert not wrong


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "monai", "numpy", "pydicom", "highdicom", "nibabel", "scipy", "PIL"}
    program = (
        "import sys; from typer.testing import CliRunner; from medseg.cli.app import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
