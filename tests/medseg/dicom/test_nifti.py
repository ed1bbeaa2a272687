"""NIfTI stacks against nibabel's own voxel-to-world."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.dicom.nifti import is_nifti, read_nifti, read_volumes
from medseg.errors import NoSuchInput, UnreadableInstance
from tests.medseg.dicom.made import voxels_of
from tests.orientations import ORIENTATIONS


def saved(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_every_voxel_keeps_value_and_place(tmp_path: Path, orientation: NDArray[np.float64]) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = orientation.T * (1.5, 0.7, 2.5)
    affine[:3, 3] = (10, -20, 30)
    stack = read_nifti(saved(tmp_path / "v.nii.gz", array, affine))
    volume = voxels_of(stack)
    assert stack.shape == (6, 5, 4)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine
    for k, j, i in np.ndindex(volume.shape):
        source = np.linalg.inv(affine) @ to_ras @ [k, j, i, 1]
        assert source[:3] == pytest.approx(source[:3].round(), abs=1e-6)
        assert volume[k, j, i] == array[tuple(source[:3].round().astype(int))]
    positions = [float(one.plane.position_mm @ one.plane.normal) for one in stack.slices]
    assert (np.diff(positions) > 0).all()
    assert stack.spacing_mm == pytest.approx((2.5, 0.7, 1.5))


@pytest.mark.parametrize("kind", [np.uint8, ">i2", np.int64, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_values_are_nibabels_however_they_are_stored(kind: str, ending: str, tmp_path: Path) -> None:
    """Packed and scaled ones are read at once, others plane by plane; of one volume, and of several."""
    values = np.random.default_rng(0).integers(0, 200, (3, 4, 5, 2)).astype(kind)
    for slope, shown in ((1, values), (1, values[..., :1]), (0.3, values)):
        image = nibabel.Nifti1Image(shown, np.eye(4), dtype=kind)
        image.header.set_slope_inter(slope, -5.0 * (slope != 1))
        nibabel.save(image, tmp_path / f"v{ending}")
        expected = np.asanyarray(nibabel.load(tmp_path / f"v{ending}").dataobj, dtype=np.float32)
        stacks = read_volumes(tmp_path / f"v{ending}")
        assert len(stacks) == expected.shape[3]
        for number, stack in enumerate(stacks):
            planes = np.stack([one.read() for one in stack.slices])
            assert planes.dtype == np.float32
            assert np.array_equal(planes.T, expected[..., number], equal_nan=True)


def test_planes_are_read_one_by_one(tmp_path: Path) -> None:
    stack = read_nifti(saved(tmp_path / "v.nii", np.ones((30, 40, 50), np.int16), np.eye(4)))
    whole = 30 * 40 * 50 * 4
    tracemalloc.start()
    for one in stack.slices:
        one.read()
    assert tracemalloc.get_traced_memory()[1] < whole / 4
    tracemalloc.stop()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_without_a_value_is_refused(ending: str, tmp_path: Path) -> None:
    stack = read_nifti(saved(tmp_path / f"v{ending}", np.full((3, 4, 5), np.nan), np.eye(4)))
    with pytest.raises(UnreadableInstance, match="none of its 60 values is finite"):
        stack.slices[2].read()


def test_a_single_time_point_is_a_volume_and_several_are_not(tmp_path: Path) -> None:
    assert read_nifti(saved(tmp_path / "a.nii", np.zeros((3, 4, 5, 1)), np.eye(4))).shape == (5, 4, 3)
    with pytest.raises(UnreadableInstance, match="3 x 4 x 5 x 2"):
        read_nifti(saved(tmp_path / "b.nii", np.zeros((3, 4, 5, 2)), np.eye(4)))


def test_flat_and_sheared_affines_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4))
    image.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nibabel.save(image, tmp_path / "flat.nii")
    with pytest.raises(UnreadableInstance, match="span a volume"):
        read_nifti(tmp_path / "flat.nii")
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(UnreadableInstance, match="right angles"):
        read_nifti(saved(tmp_path / "sheared.nii", np.zeros((3, 3, 3)), sheared))


def test_slices_may_be_sheared(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.radians(15))
    stack = read_nifti(saved(tmp_path / "tilted.nii", np.zeros((3, 3, 3)), affine))
    assert stack.tilt_deg == pytest.approx(15)
    assert stack.spacing_mm == pytest.approx((2, 1, 1))


def test_unplaced_volumes_are_told(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3)), None)
    nibabel.save(image, tmp_path / "v.nii")
    assert [finding.code for finding in read_nifti(tmp_path / "v.nii").findings] == ["no_orientation"]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(NoSuchInput):
        read_nifti(tmp_path / "nothing.nii")
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(UnreadableInstance):
        read_nifti(tmp_path / "text.nii")
    whole = saved(tmp_path / "whole.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4))
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(UnreadableInstance):
        read_nifti(tmp_path / "cut.nii.gz").slices[0].read()
    whole = saved(tmp_path / "whole.nii", np.ones((20, 20, 20)), np.eye(4))
    (tmp_path / "cut.nii").write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(UnreadableInstance, match="cut short"):
        read_nifti(tmp_path / "cut.nii")


@pytest.mark.parametrize(("name", "yes"), [("a.nii", True), ("a.NII.GZ", True), ("a.gz", False), ("a.dcm", False)])
def test_is_nifti(name: str, yes: bool) -> None:
    assert is_nifti(Path(name)) is yes
