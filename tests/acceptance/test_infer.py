"""`medseg infer`, `inspect` and `bundles` as their user meets them when all is well."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.dicom.phantom import make_series, write_series
from tests.acceptance.conftest import Medseg
from tests.medseg.bundle.zoo import spleen_like

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_series(make_series(shape=(12, 32, 32)), tmp_path / "study")
    return tmp_path / "study"


def documented(heading: str) -> set[str]:
    """First column of the table under a heading of docs/json.md."""
    text = (ROOT / "docs" / "json.md").read_text("utf-8").split(heading, 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_record_has_the_documented_keys(medseg: Medseg, spleen: Path, study: Path) -> None:
    (record,) = medseg("infer", study, "--bundle", spleen, "--json").records
    assert set(record) == documented("## `medseg infer --json`")
    assert record == json.loads((study.parent / "study-medseg" / "1_spleen" / "result.json").read_text())


@pytest.mark.parametrize("handed", [1, -1], ids=["right-handed", "left-handed"])
def test_nifti_in_gives_nifti_out_on_the_same_grid(medseg: Medseg, spleen: Path, tmp_path: Path, handed: int) -> None:
    affine = np.diag([handed * 1.0, 1.0, 2.0, 1.0])
    voxels = np.random.default_rng(0).integers(-200, 200, (40, 32, 16)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    ran = medseg("infer", "scan.nii.gz", "--bundle", spleen)
    assert ran.code == 0
    (folder,) = (tmp_path / "scan-medseg").iterdir()
    assert {path.name for path in folder.iterdir()} == {"labels.nii.gz", "result.json"}
    labels = nibabel.load(folder / "labels.nii.gz")
    assert labels.shape == voxels.shape
    np.testing.assert_allclose(labels.affine, affine)


def test_dicom_of_nifti_is_refused(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((32, 32, 16), np.int16), np.eye(4)), tmp_path / "scan.nii")
    ran = medseg("infer", "scan.nii", "--bundle", spleen, "--format", "seg")
    assert ran.code == 3
    assert "NIfTI" in ran.err


def test_several_fitting_bundles_are_listed(
    medseg: Medseg, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        spleen_like(tmp_path / "bundles" / name)
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path / "bundles"))
    ran = medseg("infer", study)
    assert ran.code == 2
    assert "first, second" in ran.err
    assert "--bundle" in ran.err


def test_without_options_what_fits_is_done(
    medseg: Medseg, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_like(tmp_path / "bundles" / "only")
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path / "bundles"))
    write_series(make_series(shape=(12, 32, 32), modality="MR", number=2), study / "mr")
    ran = medseg("infer", study)
    assert ran.code == 0
    assert [path.name for path in (tmp_path / "study-medseg").iterdir()] == ["1_only"]
    assert "modality MR" in ran.err


def test_a_whole_head_is_refused_for_the_region_bundle(medseg: Medseg, tmp_path: Path) -> None:
    write_series(make_series(shape=(40, 64, 64), spacing_mm=(4.0, 3.5, 3.5), modality="MR"), tmp_path / "head")
    ran = medseg("infer", "head", "--bundle", "hippocampus_t1_unet3d")
    assert ran.code == 3
    assert "field of view" in ran.error


def test_inspect_and_bundles_speak_json(medseg: Medseg, study: Path) -> None:
    (series,) = medseg("inspect", study, "--json").records
    assert series["verdict"] == "accepted"
    assert series["stacks"][0]["slices"] == 12
    listed = medseg("bundles", "list", "--json").records
    assert "hippocampus_t1_unet3d" in {bundle["name"] for bundle in listed}
    assert medseg("bundles", "verify", "hippocampus_t1_unet3d", "--json").records[0]["verified"] is True
    assert medseg("bundles", "inspect", "hippocampus_t1_unet3d").code == 0


def test_doctor_finds_everything_here(medseg: Medseg) -> None:
    checks = medseg("doctor", "--json").records
    of_this_machine = ("disk", "memory", "spool's disk")
    assert not [check for check in checks if not check["ok"] and check["name"] not in of_this_machine]
