"""`benchmarks/families.py`, made small: what was begun goes on, what is done stays, and the page has every network."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medseg.networks import MeshNet
from tests.conftest import ROOT

FAMILIES = runpy.run_path(str(ROOT / "benchmarks" / "families.py"), run_name="benchmark")
SMALL = {"window": (16, 16), "plan": {"batch_size": 4}, "augment": {}}


@pytest.mark.slow
def test_a_family_learns_once(phantom_cases: Path, tmp_path: Path) -> None:
    task = FAMILIES["Task"]("phantom", "Phantom", "", 2, ("One", "Two"), **SMALL)
    folder = tmp_path / "meshnet-phantom"
    (tmp_path / "meshnet-phantom.part").mkdir()  # of a run that was killed while it began
    FAMILIES["begin"]("MeshNet", task, phantom_cases, 1.0, folder)
    planned = (folder / "configs/train.json").read_bytes()
    found = FAMILIES["learn"]("MeshNet", task, phantom_cases, 1.0, folder)
    assert (folder / "configs/train.json").read_bytes() == planned
    assert found["steps"] == json.loads(planned)["steps"]
    assert found["parameters"] == sum(p.numel() for p in MeshNet(2, 1, 3, **MeshNet.SMALL).parameters())
    assert 0 <= found["dice_ci95"][0] <= found["dice"] <= found["dice_ci95"][1] <= 1
    weights = (folder / "models/model.safetensors").stat().st_mtime_ns
    assert FAMILIES["learn"]("MeshNet", task, phantom_cases, 1.0, folder) == found
    assert (folder / "models/model.safetensors").stat().st_mtime_ns == weights


def test_table_and_picture_hold_every_network() -> None:
    found = {
        "parameters": 1000,
        "steps": 10,
        "dice": 0.5,
        "dice_ci95": [0.4, 0.6],
        "dice_median": 0.5,
        "dice_by_case": {"a": 0.4, "b": 0.6},
        "hausdorff95_mm": 3.0,
        "cases_with_nothing_found": 1,
        "study_cpu_s": 0.1,
    }
    names, tasks = FAMILIES["FAMILIES"].values(), FAMILIES["TASKS"]
    results = [found | {"data": task.name, "network": name} for task in tasks for name in names]
    table, picture = FAMILIES["learned_table"](results), FAMILIES["picture"](results)
    assert [table.count(f"| {name} |") for name in names] == [2] * len(names)
    assert table.count("0.400 - 0.600") == 2 * len(names)
    dots = [one for one in ElementTree.fromstring(picture).iter() if one.tag.endswith("circle")]
    assert len(dots) == 3 * len(results)
