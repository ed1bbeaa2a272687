"""A bundle that looks at regions, as its user meets it: what it says of where it looked, and what ends in an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.dicom.phantom import Ellipsoid, make_series, write_series
from tests.acceptance.conftest import Medseg, left_over
from tests.medseg.bundle.zoo import rewrite, spleen_like, threshold

SMALL = Ellipsoid((8.0, -6.0, 4.0), (6.0, 5.0, 7.0), 900.0)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_series(make_series(shape=(24, 48, 48), spacing_mm=(2.0, 1.5, 1.5), objects=[SMALL]), tmp_path / "study")
    return tmp_path / "study"


def looking(folder: Path, region: dict[str, Any]) -> Path:
    return rewrite(folder, lambda metadata: metadata.update(medseg={"region": region}), "metadata.json")


def texts(report: Dataset) -> list[str]:
    """All sentences of a report."""
    own = [str(report.TextValue)] if "TextValue" in report else []
    return own + [text for item in report.get("ContentSequence", ()) for text in texts(item)]


@pytest.mark.parametrize("mode", ["box", "windows"])
def test_a_result_says_where_was_looked(medseg: Medseg, study: Path, tmp_path: Path, mode: str) -> None:
    bundle = looking(
        threshold(tmp_path / "object"),
        {"first_pass": {"threshold": [500, None]}, "spacing_mm": 2, "mode": mode, "margin_mm": 4},
    )
    ran = medseg("infer", study, "--bundle", bundle, "--json", "--format", "seg,sr,nifti,png")
    assert ran.code == 0
    (record,) = ran.records
    region = record["region"]
    (box,) = region["boxes"]
    assert (region["found"], region["everywhere"], region["mode"]) == (True, False, mode)
    centre = np.add(box["low_mm"], box["high_mm"]) / 2
    assert np.abs(centre - SMALL.centre_mm).max() < 2.0
    size = np.subtract(box["high_mm"], box["low_mm"])
    assert np.all(size >= 2 * np.array(SMALL.radii_mm)) and np.all(size <= 2 * np.array(SMALL.radii_mm) + 16)
    (segment,) = record["segments"]
    assert segment["volume_ml"] == pytest.approx(4 / 3 * np.pi * np.prod(SMALL.radii_mm) / 1000, rel=0.15)
    assert np.abs(np.subtract(segment["centroid_mm"], SMALL.centre_mm)).max() < 0.5
    said = texts(dcmread(record["outputs"]["sr"]))
    assert any(text.startswith("Looked at 1 region (") and "nothing is claimed outside" in text for text in said)
    labels = np.asarray(nibabel.load(record["outputs"]["nifti"]).dataobj)  # type: ignore[attr-defined]
    assert labels.any()


def test_nothing_found_is_exit_code_3_and_leaves_nothing(medseg: Medseg, study: Path, tmp_path: Path) -> None:
    bundle = looking(spleen_like(tmp_path / "spleen"), {"first_pass": {"threshold": [3000, None]}})
    ran = medseg("infer", study, "--bundle", bundle)
    assert ran.code == 3
    assert "bundle spleen looks at regions, and its first pass (values from 3000) found none" in ran.error
    assert not [name for name in left_over(tmp_path) if name != "study-medseg"]


def test_nothing_found_may_be_a_result_that_says_so(medseg: Medseg, study: Path, tmp_path: Path) -> None:
    region = {"first_pass": {"threshold": [3000, None]}, "not_found": "flag"}
    ran = medseg("infer", study, "--bundle", looking(spleen_like(tmp_path / "spleen"), region), "--json")
    assert ran.code == 0
    (record,) = ran.records
    assert record["outputs"].keys() == {"sr"} and not record["region"]["found"]
    assert "region_not_found" in {flag["code"] for flag in record["flags"]}
    said = texts(dcmread(record["outputs"]["sr"]))
    assert any(text.startswith("Nothing found: no spleen found in series") for text in said)
    assert "Nothing was looked at: the first pass (values from 3000) found no region." in said


def test_a_first_pass_without_weights_is_named(medseg: Medseg, study: Path, tmp_path: Path) -> None:
    bundle = spleen_like(tmp_path / "spleen")
    threshold(bundle / "rough")
    looking(bundle, {"first_pass": {"bundle": "rough"}})
    (bundle / "rough/models/model.pt").write_bytes(b"no weights")
    ran = medseg("infer", study, "--bundle", bundle)
    assert ran.code == 4
    assert ran.error.startswith("failed: first pass (bundle rough): bundle rough: models/model.pt: not a file of plain")
    (bundle / "rough/models/model.pt").unlink()
    ran = medseg("infer", study, "--bundle", bundle)
    assert ran.code == 4 and "bundle rough" in ran.error
    assert not [name for name in left_over(tmp_path) if name != "study-medseg"]
