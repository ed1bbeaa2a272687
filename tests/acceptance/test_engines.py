"""`--engine`, `medseg bench engines` and what `medseg doctor` says of engines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from medseg.dicom.phantom import make_series, write_series
from medseg.inference.engines.backends import BACKENDS
from medseg.inference.engines.case import BackEnd, eager
from tests.acceptance.conftest import Medseg

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_series(make_series(shape=(12, 32, 32)), tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def few_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch under the name of another engine, which is made at once; one that lacks something; no others."""
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    there = BackEnd("openvino", 0, lambda *_: None, lambda *_: None, lambda case, _: eager(case))
    lacking = BackEnd("tensorrt", 0, lambda *_: "it needs a CUDA device", there.make, there.load)
    for one in (there, lacking):
        monkeypatch.setitem(BACKENDS, one.name, one)
    for name in ("compile", "torch-channels-last"):
        monkeypatch.delitem(BACKENDS, name)


@pytest.mark.usefixtures("few_engines")
def test_the_race_is_shown_and_kept(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    ran = medseg("bench", "engines", spleen, "--device", "cpu", "--json")
    assert ran.code == 0
    rows = {row["engine"]: row for row in ran.records}
    assert set(rows) == {"torch", "openvino", "tensorrt"}
    assert rows["torch"]["times_torch_fp32"] == 1
    assert (rows["openvino"]["difference"], rows["openvino"]["agreement"]) == (0, 1)
    assert (rows["tensorrt"]["why"], rows["tensorrt"]["window_s"]) == ("it needs a CUDA device", None)
    assert sum(row["chosen"] for row in ran.records) == 1
    text = (ROOT / "docs/json.md").read_text("utf-8").split("`medseg bench engines --json`")[1].split("\n## ")[0]
    assert set(rows["torch"]) == set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert len([*(tmp_path / "cache/engines").glob("*/auto.json")]) == 1
    shown = medseg("bench", "engines", spleen, "--device", "cpu")
    assert "x torch fp32" in shown.out
    assert "it needs a CUDA device" in shown.out


@pytest.mark.usefixtures("few_engines")
def test_a_result_names_its_engine_and_is_the_same_result(medseg: Medseg, spleen: Path, study: Path) -> None:
    (record,) = medseg("infer", study, "--bundle", spleen, "--engine", "openvino", "--json").records
    assert record["engine"] == "openvino"
    again = medseg("infer", study, "--bundle", spleen, "--engine", "torch")
    assert "up to date" in again.out


def test_an_engine_that_is_not_there_is_refused(medseg: Medseg, spleen: Path, study: Path) -> None:
    ran = medseg("infer", study, "--bundle", spleen, "--engine", "abacus")
    assert ran.code == 2
    assert "abacus" in ran.error
    if not torch.cuda.is_available():
        ran = medseg("infer", study, "--bundle", spleen, "--engine", "tensorrt")
        assert ran.code == 2
        assert "CUDA" in ran.error


def test_doctor_says_which_engines_can_run(medseg: Medseg) -> None:
    (found,) = [row["found"] for row in medseg("doctor", "--json").records if row["name"] == "engines"]
    assert found.startswith("torch")
    for name in ("openvino", "compile", "tensorrt"):
        assert name in found
