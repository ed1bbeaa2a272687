"""A stroke network of others (MeshNet, T2 of the whole head), by a bundle that is made of its files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.acceptance.conftest import Medseg
from tests.medseg.bundle.zoo import rewrite

pytestmark = pytest.mark.slow
NAME = "model11_t2_stroke"
ML = 34.9


@pytest.fixture
def files(shared_data: Path) -> Path:
    folder = shared_data / "models_pathology" / "stroke_t2_meshnet"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture
def bundle(files: Path, tmp_path: Path, medseg: Medseg) -> Path:
    made = tmp_path / NAME
    given = ("--weights", files / f"{NAME}.safetensors", "--architecture", files / f"{NAME}.json")
    assert medseg("bundles", "new", made, "--network", "meshnet", *given).code == 0
    pixels = {"dim": [0.1, 1]}  # the network was trained on heads with their skull
    return rewrite(made, lambda about: about["medseg"]["expects"].update(pixels=pixels), "metadata.json")


def brain(head: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What a T2 shows within the skull: the largest thing that a few erosions leave, grown back."""
    inside, count = ndimage.label(ndimage.binary_erosion(head > 20, iterations=5))
    sizes = ndimage.sum_labels(np.ones_like(head), inside, range(1, count + 1))
    grown = ndimage.binary_dilation(inside == 1 + int(np.argmax(sizes)), iterations=6)
    return np.asarray(ndimage.binary_fill_holes(grown))


def test_an_old_stroke_is_found_where_it_is(files: Path, bundle: Path, tmp_path: Path, medseg: Medseg) -> None:
    ran = medseg("infer", files / "M2265_T2w.nii.gz", "--bundle", bundle, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records
    (segment,) = record["segments"]
    assert segment["volume_ml"] == pytest.approx(ML, rel=0.02) and segment["components"] == 1
    assert "unexpected_pixels" not in {flag["code"] for flag in record["flags"]}
    labels = np.asarray(nibabel.load(tmp_path / record["outputs"]["nifti"]).dataobj)
    expected = np.asarray(nibabel.load(files / "M2265_lesion_by_this_model.nii.gz").dataobj) > 0
    assert 2 * (expected & (labels > 0)).sum() / (expected.sum() + (labels > 0).sum()) > 0.99


def test_without_the_skull_the_result_is_not_to_be_relied_on(
    files: Path, bundle: Path, tmp_path: Path, medseg: Medseg
) -> None:
    image = nibabel.load(files / "M2265_T2w.nii.gz")
    head = np.asarray(image.dataobj)
    mask = brain(head)
    assert 900 < mask.sum() / 1000 < 1900  # ml
    nibabel.save(nibabel.Nifti1Image(head * mask, image.affine), tmp_path / "stripped.nii.gz")
    ran = medseg("infer", "stripped.nii.gz", "--bundle", bundle, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records
    (flag,) = [flag for flag in record["flags"] if flag["code"] == "unexpected_pixels"]
    assert "of what is no background is dim, expected 10% to 100%: do not rely on it" in flag["message"]
