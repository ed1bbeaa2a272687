"""NIfTI labels lie where the slices lie, read by nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import Stack
from medseg.inference.planes import LabelSpool
from medseg.results.nifti import write_nifti
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, made, make_stack, position_mm

RAS = np.array([-1, -1, 1])


def write(folder: Path, stack: Stack, labels: np.ndarray, **how: Any) -> nibabel.Nifti1Image:
    spool = LabelSpool()
    feed(spool, stack, SEGMENTS, labels)
    write_nifti(folder / "labels.nii.gz", spool, made(), **how)
    return nibabel.load(folder / "labels.nii.gz")


@pytest.mark.parametrize(
    "phantom",
    [
        {"orientation": "axial"},
        {"orientation": "coronal"},
        {"orientation": "sagittal", "spacing_mm": (5.0, 0.5, 0.7)},
        {"orientation": ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))},
        {"tilt_deg": 20.0},
    ],
)
def test_each_voxel_lies_where_its_slice_says(tmp_path: Path, phantom: dict[str, Any]) -> None:
    stack = make_stack(**phantom)
    labels = blobs(stack.shape)
    image = write(tmp_path, stack, labels)
    array = np.asarray(image.dataobj)
    assert array.dtype == np.uint8
    assert (array == labels.transpose(2, 1, 0)).all()
    for k, part in enumerate(stack.slices):
        plane = part.plane
        for j, i in ((0, 0), (3, 7)):
            there = position_mm(plane, j, i)
            assert image.affine[:3] @ (i, j, k, 1) == pytest.approx(there * RAS, abs=1e-3)
    if not phantom.get("tilt_deg"):
        assert image.get_qform() == pytest.approx(image.affine, abs=1e-3)


def test_a_bridged_gap_repeats_its_neighbour(tmp_path: Path) -> None:
    stack = make_stack(shape=(7, 16, 20), missing=[3])
    assert list(stack.coordinates) == [0, 1, 2, 4, 5, 6]
    labels = np.ones(stack.shape, np.uint8)
    array = np.asarray(write(tmp_path, stack, labels).dataobj)
    assert array.shape == (20, 16, 7)
    assert array.all()
    volume_ml = array.sum() * 2.0 / 1000
    assert volume_ml == pytest.approx(sum(stack.voxel_ml(k) for k in range(6)) * 16 * 20)


def test_overlapping_labels_have_a_fourth_axis(tmp_path: Path) -> None:
    stack = make_stack()
    labels = np.random.default_rng(0).integers(0, 2, (6, 3, 16, 20)).astype(np.uint8)
    array = np.asarray(write(tmp_path, stack, labels).dataobj)
    assert (array == labels.transpose(3, 2, 0, 1)).all()


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_nifti_in_gives_its_own_grid_back(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    affine = np.diag([*np.multiply(signs, (1.0, 2.0, 3.0)), 1.0])
    affine[:3, 3] = (5, -6, 7)
    values = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    source = tmp_path / "in.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), source)
    stack = read_nifti(source)
    labels = np.stack([part.read() for part in stack.slices]).astype(np.uint8)  # a model that copies its input
    image = write(tmp_path, stack, labels, like=source)
    assert (np.asarray(image.dataobj) == values).all()
    assert (image.affine == affine).all()
    assert image.header["sform_code"] == nibabel.load(source).header["sform_code"]


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    stack, files = make_stack(), []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, stack, blobs(stack.shape))
        files.append((tmp_path / name / "labels.nii.gz").read_bytes())
    assert files[0] == files[1]
