"""A label volume's affine leads from each of its voxels to where the slice with that label lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.dicom.series import Stack
from medseg.inference.planes import LabelSpool
from medseg.results.nifti import write_nifti
from medseg.results.volume import LabelVolume
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, made, make_stack, position_mm


def spooled(stack: Stack, labels: np.ndarray) -> LabelSpool:
    spool = LabelSpool()
    feed(spool, stack, SEGMENTS, labels)
    return spool


@pytest.mark.parametrize(
    "phantom",
    [
        {"orientation": "axial", "centre_mm": (11.0, -7.0, 30.0)},
        {"orientation": "coronal"},
        {"orientation": "sagittal", "spacing_mm": (5.0, 0.5, 0.7)},
        {"orientation": ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))},
        {"tilt_deg": 20.0},
    ],
)
def test_each_voxel_lies_where_its_slice_says(phantom: dict[str, Any]) -> None:
    stack = make_stack(**phantom)
    labels = blobs(stack.shape)
    volume = LabelVolume.of(spooled(stack, labels))
    assert volume.array.dtype == np.uint8
    assert (volume.array == labels).all()
    assert (volume.segments, volume.exclusive) == (SEGMENTS, True)
    for k, part in enumerate(stack.slices):
        plane = part.plane
        for j, i in ((0, 0), (3, 7)):
            there = position_mm(plane, j, i)
            assert volume.affine[:3] @ (k, j, i, 1) == pytest.approx(there, abs=1e-3)


@pytest.mark.parametrize("missing", [[], [3]], ids=["whole", "gap"])
@pytest.mark.parametrize("overlapping", [False, True], ids=["exclusive", "overlapping"])
def test_it_is_what_the_nifti_file_holds(tmp_path: Path, missing: list[int], overlapping: bool) -> None:
    stack = make_stack(shape=(7, 16, 20), missing=missing)
    labels = blobs(stack.shape)
    if overlapping:
        labels = np.stack([labels >= n for n in (1, 2, 3)], axis=1).astype(np.uint8)
    spool = spooled(stack, labels)
    volume = LabelVolume.of(spool)
    write_nifti(tmp_path / "labels.nii.gz", spool, made())
    image = nibabel.load(tmp_path / "labels.nii.gz")
    array = np.asarray(image.dataobj)
    assert volume.array.shape == (*([3] if overlapping else []), 7, 16, 20)
    assert np.array_equal(volume.array, array.transpose(3, 2, 1, 0) if overlapping else array.transpose(2, 1, 0))
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]]
    assert ras == pytest.approx(image.affine, abs=1e-4)


def test_a_volume_past_a_gap_does_not_move() -> None:
    stack = make_stack(shape=(7, 16, 20), missing=[3])
    labels = np.zeros(stack.shape, np.uint8)
    labels[4] = 2  # the slice on the grid's plane 5
    volume = LabelVolume.of(spooled(stack, labels))
    assert [int(plane.max()) for plane in volume.array] == [0, 0, 0, 0, 0, 2, 0]
    assert volume.affine[:3] @ (5, 0, 0, 1) == pytest.approx(stack.slices[4].plane.position_mm, abs=1e-3)


def test_changing_it_changes_nothing_else() -> None:
    stack = make_stack()
    volume = LabelVolume.of(spooled(stack, blobs(stack.shape)))
    before = stack.affine.copy()
    volume.affine[:] = 0
    assert (stack.affine == before).all()


def test_labels_that_are_not_all_there() -> None:
    with pytest.raises(ValueError, match="found 0 planes"):
        LabelVolume.of(LabelSpool())
    stack = make_stack()
    spool = LabelSpool()
    spool.begin(stack, SEGMENTS, exclusive=True)
    spool.plane(0, np.zeros(stack.shape[1:], np.uint8))
    with pytest.raises(ValueError, match="found 1 planes"):
        LabelVolume.of(spool)
