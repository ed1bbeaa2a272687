"""The glioma bundles from DICOM to DICOM-SEG: a patient they never saw, 16 bits, thick slices."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest

from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import volume_to_series, write_series
from medseg.training.data import find_cases, split
from medseg.training.train import plan_of
from tests.acceptance.conftest import Medseg
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SPACING_MM = (5.0, 0.9375, 0.9375)  # a placeholder: the data set does not tell


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("glioma_flair_unet2d", ()),  # the default of the two
        ("glioma_flair_deeplab2d", ("--bundle", "glioma_flair_deeplab2d")),
    ],
)
def test_a_patient_as_a_dicom_series(
    shared_data: Path, tmp_path: Path, medseg: Medseg, name: str, chosen: tuple[str, ...]
) -> None:
    bundle = load_bundle(ROOT / "bundles" / name)
    _, aside = split(find_cases(shared_data / "labelled" / "lgg_flair"), plan_of(bundle).held_out)
    volume, truth = (np.asarray(nibabel.load(path).dataobj).T for path in (aside[0].image, aside[0].label))
    affine = np.diag([0.0, 0.0, 0.0, 1.0])  # (k, j, i, 1) to LPS mm: first row at the front, first column at the right
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING_MM
    affine[:3, 3] = -120, -120, -60
    series = volume_to_series(volume.astype(float) * 8, affine, "MR", "AX T2 FLAIR", body_part="HEAD")
    write_series(series, tmp_path / "study")
    ran = medseg("infer", tmp_path / "study", *chosen, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records
    assert record["bundle"] == name
    assert "out_of_domain" not in {flag["code"] for flag in record["flags"]}
    seg = highdicom.seg.segread(tmp_path / record["outputs"]["seg"])
    assert seg.ContentQualification == "RESEARCH"
    found = seg.get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in series], assert_missing_frames_are_empty=True
    )[..., 0]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) >= 0.5
    assert record["segments"][0]["voxels"] == found.sum()


def test_another_contrast_is_not_taken_for_flair(medseg: Medseg, shared_data: Path) -> None:
    """By itself a T1 is refused; whoever insists gets a result that says not to rely on it."""
    head = shared_data / "dicom" / "mr_siemens_hfs_t1_sag"
    assert "t1_fl2d_sag" in medseg("infer", head, "-o", "out", "--json").records[0]["error"]["message"]
    ran = medseg("infer", head, "--bundle", "glioma_flair_unet2d", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert "out_of_domain" in {flag["code"] for flag in ran.records[0]["flags"]}
