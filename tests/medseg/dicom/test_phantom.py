"""Phantoms are valid DICOM, made the same each time, and hold what was put into them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from medseg.dicom.geometry import classify
from medseg.dicom.phantom import Box, Ellipsoid, make_affine, make_series, volume_to_series, write_series
from medseg.dicom.sources import find_instances, instance_digest, read_series
from tests.medseg.dicom.made import series_of, voxels_of
from tests.peers import require


@pytest.mark.peer("dicom3tools")
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ["axial", "coronal", ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))])
def test_dciodvfy_finds_nothing(tmp_path: Path, modality: str, orientation: str) -> None:
    datasets = make_series(orientation, (3, 0.5, 0.7), (2, 7, 9), modality=modality, tilt_deg=11)
    for path in write_series(datasets, tmp_path):
        told = subprocess.run([require("dciodvfy"), path], capture_output=True, text=True, check=False).stderr
        assert "Error" not in told
        assert "Warning" not in told


def test_the_same_call_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_series(make_series(seed=seed), tmp_path / name)
    a, b, c = (
        {instance.sop_instance_uid: instance_digest(instance) for instance in find_instances(tmp_path / name).instances}
        for name in "abc"
    )
    assert a == b
    assert not a.keys() & c.keys()


def test_series_of_one_seed_are_one_study() -> None:
    first, second = make_series(number=1)[0], make_series(number=2)[0]
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_instances_share_nothing_that_changes() -> None:
    first, second = make_series()[:2]
    first.PatientID = "OTHER"
    assert second.PatientID == "PHANTOM"


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_volume_comes_back_as_it_went_in(tmp_path: Path, modality: str) -> None:
    low = -1000 if modality == "CT" else 0
    array = np.random.default_rng(0).integers(low, 3000, (5, 7, 9))
    affine = make_affine("sagittal", (4, 1.25, 0.8), array.shape, centre_mm=(28, -20, -14))
    write_series(volume_to_series(array, affine, modality, "Volume"), tmp_path)
    (stack,) = classify(read_series(tmp_path)[0]).stacks
    assert stack.affine == pytest.approx(affine, abs=1e-6)
    assert (voxels_of(stack) == array).all()


def test_objects_are_painted_in_millimetres() -> None:
    objects = [Box((-6, -6, -6), (0, 6, 6), 50), Ellipsoid((3, 0, 0), (2, 2, 2), 200)]
    (stack,) = classify(series_of(make_series("coronal", (1, 1, 1), (16, 16, 16), objects, background=0))).stacks
    volume = voxels_of(stack)
    for value, centre in ((50, (-3, 0, 0)), (200, (3, 0, 0))):
        place = (stack.affine @ [*np.argwhere(volume == value).mean(axis=0), 1])[:3]
        assert place == pytest.approx(centre, abs=0.51)
    assert (volume == 50).sum() == 6 * 12 * 12


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        volume_to_series(np.full((2, 2, 2), -5.0), np.eye(4), "MR", "Negative")
