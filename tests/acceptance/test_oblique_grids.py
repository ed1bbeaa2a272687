"""An oblique series is resampled on the grid that MONAI takes through the same files, however many decimals it has.

MONAI's side reads the files itself (PydicomReader, NibabelReader) and runs Orientationd, Spacingd and Invertd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import LoadImage
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medseg.bundle.network import load_network
from medseg.bundle.recipe import Normalize, Orient, Recipe, Resample, ScaleRange, Step, Window
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import read_nifti
from medseg.dicom.phantom import make_affine, volume_to_series, write_series
from medseg.dicom.series import Stack, StackSource
from medseg.dicom.sources import read_series
from medseg.inference.arriving.axis import SliceAxis, axis_through
from medseg.inference.engines.device import CPU
from medseg.inference.grids.prepare import preprocessing_plan
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from tests.medseg.inference import phantoms
from tests.medseg.inference.phantoms import SOFTMAX, Arriving, Collected, as_instances, make_bundle, make_stack

SHAPE, SPACING_MM = (22, 26, 24), (2.2, 0.9, 0.8)
STEPS: tuple[Step, ...] = (Orient("RAS"), Resample((1.5, 1.4, 1.7)), ScaleRange(0, 400, 0, 1, clip=True))
WINDOW = Window((12, 12, 12), (0.5,) * 3, batch=4)
ZEROS = (*STEPS[:2], Normalize(nonzero=True))
RECIPE = Recipe(STEPS, WINDOW, SOFTMAX)
TORCH = Settings(engine="torch")
TURNED = (20.0, -15.0, 40.0)
WAITS = "grid depends on the last"


def noise(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    """So that labels flicker from voxel to voxel."""
    array = np.random.default_rng(0).integers(1, 400, shape)
    array[:4, :9] = 0
    return array.astype(np.float32)


def write_oblique(
    folder: Path,
    array: NDArray[np.float32],
    degrees: Sequence[float],
    decimals: int,
    *,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    upwards: bool = True,
) -> None:
    """A series turned about x, y and z, whose cosines and positions have so many decimals."""
    row, column, _ = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().T
    affine = make_affine((tuple(row), tuple(column)), spacing_mm, array.shape, centre_mm=(12.3, -4.5, 6.7))
    datasets = volume_to_series(array, affine, "MR", "oblique")
    for number, dataset in enumerate(datasets if upwards else datasets[::-1], 1):
        dataset.InstanceNumber = number
        dataset.ImageOrientationPatient = [f"{value:.{decimals}f}" for value in (*row, *column)]
        dataset.ImagePositionPatient = [f"{float(mm):.{decimals}f}" for mm in dataset.ImagePositionPatient]
    write_series(datasets, folder)


def stack_of(folder: Path) -> Stack:
    (series,) = read_series(folder)
    (stack,) = classify(series).stacks
    return stack


def by_monai(path: Path, reader: str = "PydicomReader") -> MetaTensor:
    image = LoadImage(reader=reader, ensure_channel_first=True, image_only=True)(str(path))
    assert isinstance(image, MetaTensor)
    return image.float()


def on_monais_grid(stack: Stack, image: MetaTensor, recipe: Recipe) -> bool:
    """Whether windows run over the voxels that MONAI's do, through our axis."""
    data = {"image": image}
    for step in recipe.steps[:2]:
        data = phantoms.monai_transform(step)(data)
    axis = axis_through(stack, recipe)
    assert isinstance(axis, SliceAxis), axis
    frame = preprocessing_plan(axis.affine, stack.shape, recipe).frame
    same_size = tuple(data["image"].shape[1:]) == frame.shape
    return same_size and np.allclose(frame.affine, data["image"].affine.numpy(), atol=1e-6)


@settings(deadline=None, max_examples=12)
@given(
    quarters=st.tuples(*(st.integers(-2, 1),) * 3),
    degrees=st.tuples(*(st.floats(3, 87),) * 3),
    decimals=st.integers(4, 13),
    hundredths=st.tuples(st.integers(150, 500), st.integers(40, 120), st.integers(40, 120)),
    upwards=st.booleans(),
    zeros=st.booleans(),
)
def test_any_turn_in_any_number_of_decimals_gives_monais_grid(
    quarters: tuple[int, int, int],
    degrees: tuple[float, float, float],
    decimals: int,
    hundredths: tuple[int, int, int],
    upwards: bool,
    zeros: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("oblique")
    turned = [90 * quarter + rest for quarter, rest in zip(quarters, degrees, strict=True)]
    k, j, i = (mm / 100 + 0.00123 for mm in hundredths)  # no half voxels, where MONAI's last bits decide
    write_oblique(folder, noise((5, 8, 7)), turned, decimals, spacing_mm=(k, j, i), upwards=upwards)
    recipe = replace(RECIPE, steps=ZEROS if zeros else STEPS)
    assert on_monais_grid(stack_of(folder), by_monai(folder), recipe)


def test_a_nifti_file_whose_affine_is_rounded_gives_monais_grid(tmp_path: Path) -> None:
    """The sform has 24 bits; what was meant has right angles."""
    affine = np.diag([0.8, 0.9, 2.2, 1.0])
    affine[:3] = np.c_[Rotation.from_euler("xyz", TURNED, degrees=True).as_matrix() @ affine[:3, :3], [3.3, 4.4, -5.5]]
    nibabel.save(nibabel.Nifti1Image(noise().transpose(2, 1, 0), affine), tmp_path / "a.nii")
    assert on_monais_grid(read_nifti(tmp_path / "a.nii"), by_monai(tmp_path / "a.nii", "NibabelReader"), RECIPE)


@pytest.mark.parametrize("decimals", [4, 6, 13])
@pytest.mark.parametrize("steps", [STEPS, ZEROS], ids=["range", "zeros"])
def test_labels_of_an_oblique_series_are_monais(
    decimals: int, steps: tuple[Step, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded as it is, all at once and as slices come; along its slices, so that memory does not grow with them."""
    write_oblique(tmp_path / "series", noise(), TURNED, decimals)
    stack, image = stack_of(tmp_path / "series"), by_monai(tmp_path / "series")
    bundle = make_bundle(tmp_path, steps=steps, window=WINDOW)
    expected = phantoms.labels_of_image(image, bundle.recipe, load_network(bundle, CPU))[0]
    assert min(np.bincount(expected.ravel(), minlength=3)) > 0.02 * expected.size, "one label would prove nothing"
    monkeypatch.setattr("medseg.inference.segment.through_whole", lambda *_: pytest.fail("taken as a whole"))
    for source in (StackSource(stack), Arriving(stack, range(SHAPE[0]))):
        sink = Collected()
        result = segment(source, bundle, sink, settings=TORCH)
        assert (sink.labels == expected).mean() >= 0.9999
        why = str(result.streamed_reason)
        if steps is ZEROS:
            assert "which voxels are zero" in why or "whole volume" in why
        else:  # axes at right angles are known from the first slices
            assert result.streamed if decimals == 13 else WAITS in why


@pytest.mark.parametrize("steps", [STEPS[:1] + STEPS[2:], STEPS], ids=["as it is", "resampled"])
@pytest.mark.parametrize("drift_mm", [0.0, 1e-4])
def test_windows_wait_only_where_the_grid_hangs_on_the_last_slice(
    steps: tuple[Step, ...], drift_mm: float, tmp_path: Path
) -> None:
    """Slices along the patient's axes, of which the last may lie a little aside: then all is done again."""
    stack = as_instances(make_stack(noise()[:, :16, :16]))
    last = stack.slices[-1]
    aside = replace(last.plane, position_mm=last.plane.position_mm - drift_mm * np.eye(3)[0])
    slices = (*stack.slices[:-1], replace(last, plane=aside))
    (stack,) = classify(stack.series, slices).stacks
    bundle = make_bundle(tmp_path, steps=steps, window=WINDOW)
    array = np.stack([one.read() for one in stack.slices])
    expected = phantoms.monai_labels(array, stack, bundle.recipe, load_network(bundle, CPU))[0]
    sink = Collected()
    result = segment(Arriving(stack, range(SHAPE[0])), bundle, sink, settings=TORCH)
    assert (sink.labels == expected).mean() >= 0.9999
    assert result.streamed == (drift_mm == 0.0 or len(steps) == 2)
