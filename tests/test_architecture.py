"""Imports run one way, and each foreign library is met in few places."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up: a room may import itself and the rooms of floors below, never one beside it on its own floor.
MEDSEG: tuple[tuple[str, ...], ...] = (
    ("allowed", "errors", "progress", "texts"),
    ("names",),
    ("dicom",),
    ("conditions", "deidentify"),
    ("networks",),
    ("bundle",),
    ("inference",),
    ("results",),
    ("job",),
    ("cohort", "training"),
    ("cli",),
)
# The rooms in the middle of the gateway hand work on through rows of the ledger; `serve` puts them together.
GATEWAY: tuple[tuple[str, ...], ...] = (
    ("files", "logs", "settings"),
    ("retry",),
    ("ledger",),
    ("heartbeat",),
    ("dimse", "dicomweb"),
    ("receive", "complete", "decide", "work", "deliver", "keep", "show"),
    ("web",),
    ("serve",),
    ("cli",),
)
FLOORS = {"medseg": MEDSEG, "gateway": GATEWAY}
GROUND = {"allowed", "errors", "progress", "texts", "files", "logs"}  # single files without a floor of their own

HOMES: dict[str, tuple[str, ...]] = {
    "highdicom": ("medseg/results",),
    "monai": ("medseg/bundle", "medseg/inference/fallback", "medseg/training"),
    "nibabel": (
        "medseg/dicom/nifti",
        "medseg/inference/grids/grid",
        "medseg/results/nifti",
        "medseg/training",
        "medseg/cli/demo",
    ),
    "typer": ("medseg/cli", "gateway/cli"),
    "rich": ("medseg/cli",),
    "PIL": ("medseg/results", "gateway/web/dicomweb/rendered"),
    "pyarrow": ("medseg/cohort",),
    "pynetdicom": ("gateway/dimse",),
    "alembic": ("gateway/ledger", "gateway/ledger/migrations"),
    "torch": ("medseg/bundle", "medseg/inference", "medseg/networks", "medseg/training", "medseg/cli"),
    "openvino": ("medseg/inference/engines/openvino",),
    "torch_tensorrt": ("medseg/inference/engines/tensorrt",),
    "fastapi": ("gateway/web/dicomweb",),
    "starlette": ("gateway/web",),
    "uvicorn": ("gateway/web",),
    "jinja2": ("gateway/web",),
    "prometheus_client": ("gateway/web",),
}


@cache
def modules() -> list[tuple[str, ast.Module]]:
    """Name ("medseg/dicom/series") and syntax tree of every module."""
    return [
        (path.relative_to(ROOT).with_suffix("").as_posix(), ast.parse(path.read_text("utf-8")))
        for package in FLOORS
        for path in sorted((ROOT / package).rglob("*.py"))
        if "_bundles" not in path.parts
    ]


@cache
def imported(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names if node.module in FLOORS]
    return names


def floor(package: str, room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS[package]) if room in rooms)


def test_imports_run_one_way() -> None:
    wrong = []
    for name, tree in modules():
        package, room, *_ = name.split("/")
        if room in ("__init__", "__main__"):
            continue
        for target in imported(tree):
            into, _, rest = target.partition(".")
            there = rest.split(".")[0]
            if into != package or not there or there.startswith("__") or there == room:
                continue
            mine, its = floor(package, room), floor(package, there)
            if its > mine or (its == mine and not {room, there} <= GROUND):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_medseg_does_not_know_the_gateway() -> None:
    wrong = [
        name
        for name, tree in modules()
        if name.startswith("medseg/") and any(target.split(".")[0] == "gateway" for target in imported(tree))
    ]
    assert not wrong


@pytest.mark.parametrize("library", HOMES)
def test_a_foreign_library_stays_in_its_home(library: str) -> None:
    wrong = [
        name
        for name, tree in modules()
        if library in {target.split(".")[0] for target in imported(tree)} and not name.startswith(HOMES[library])
    ]
    assert not wrong


def test_statements_stand_in_the_ledger() -> None:
    """What runs over many tables at once has rooms of its own: `keep` takes away, `show` counts. Others name a type."""
    homes = ("gateway/ledger", "gateway/keep", "gateway/show/totals")
    wrong = [
        f"{name} imports {alias.name}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlalchemy"
        for alias in node.names
        if alias.name != "Connection" and not name.startswith(homes)
    ]
    assert not wrong


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "monai", "numpy", "pydicom", "pynetdicom", "sqlalchemy", "highdicom", "nibabel", "scipy", "PIL"}
    heavy |= {"fastapi", "pydantic", "starlette", "uvicorn", "jinja2", "prometheus_client", "openvino"}
    program = (
        "import sys; from typer.testing import CliRunner; from medseg.cli.app import make_app; "
        "assert CliRunner().invoke(make_app(), ['--help']).exit_code == 0; "
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def messages(tree: ast.Module) -> Iterator[str]:
    """The texts of a module, without its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.value


def test_only_the_command_line_speaks_of_its_options() -> None:
    """What else is said may be shown by the gateway, which has settings instead (`medseg.cli.hints`)."""
    commands = (
        "medseg/cli/",
        "gateway/cli/commands",
        "gateway/cli/client",
        "gateway/cli/operator",
        "gateway/cli/studies",
        "gateway/cli/replay",
        "gateway/cli/results",
    )
    others = (
        "gateway/cli/options",
        "gateway/cli/demo",
        "gateway/cli/reference",
        "medseg/bundle/template",
    )  # commands, documents
    wrong = [
        (name, text)
        for name, tree in modules()
        if not name.startswith((*commands, *others))
        for text in messages(tree)
        if re.search(r"--[a-z]|\s-o\b", text)
    ]
    assert not wrong
