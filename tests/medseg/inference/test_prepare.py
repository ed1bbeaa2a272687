"""Each step of a recipe against its MONAI transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.bundle.recipe import Normalize, Orient, Recipe, Resample, ScaleMinMax, ScalePercentiles, ScaleRange, Step
from medseg.inference.grids.prepare import prepare
from tests.medseg.inference.phantoms import SOFTMAX, WINDOW, as_monai, blobs, make_stack, monai_transform

INTENSITY = [
    ScaleRange(-57, 164, 0, 1, clip=True),
    ScaleRange(-57, 164, -1, 1, clip=False),
    ScaleRange(0, 100, None, None, clip=False),
    ScalePercentiles(1, 99, 0, 1, clip=True),
    ScalePercentiles(5, 95, -1, 1, clip=False),
    ScalePercentiles(10, 90, 0, 200, clip=False, relative=True),
    ScaleMinMax(),
    ScaleMinMax(-1.0, 1.0),
    ScaleMinMax(None, None, 0.3),
    Normalize(),
    Normalize(nonzero=True),
    Normalize(100.0, 50.0),
    Normalize(None, 50.0, nonzero=True),
]


def compare(array: np.ndarray, *steps: tuple[Step, ...]) -> None:
    stack = make_stack(array)
    expected = {"image": as_monai(array, stack)}
    for step in steps:
        expected = monai_transform(step)(expected)
    volume = torch.from_numpy(array)[None].clone()
    ours = prepare(volume, stack.affine, Recipe(steps, WINDOW, SOFTMAX))
    wanted = expected["image"].as_tensor()
    scale = float(wanted.max() - wanted.min()) or 1.0
    assert (ours.frame.axes.to_model(ours.voxels) - wanted).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("step", INTENSITY, ids=repr)
def test_intensity_step(step: Step) -> None:
    array = blobs((9, 15, 12))
    array[array < 20] = 0.0
    compare(array, step)


@pytest.mark.filterwarnings("ignore:Divide by zero")
@pytest.mark.parametrize("step", INTENSITY, ids=repr)
def test_intensity_step_on_a_blank_volume(step: Step) -> None:
    compare(np.zeros((3, 4, 5), np.float32), step)
    compare(np.full((3, 4, 5), 4.0, np.float32), step)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPL", "AIR"])
def test_orient(axcodes: str) -> None:
    compare(blobs((5, 7, 6)), Orient(axcodes))


def test_order_is_kept() -> None:
    """Clipping before resampling differs from clipping after it; statistics follow the grid they stand on."""
    array = blobs((8, 12, 10), smooth=0.8)
    clip, resample = ScaleRange(0, 150, 0, 1, clip=True), Resample((1.4, 1.7, 1.1))
    compare(array, Orient("RAS"), clip, resample, Normalize())
    compare(array, Normalize(nonzero=True), Orient("RAS"), resample, ScalePercentiles(2, 98, 0, 1, clip=True))


def test_percentiles_of_more_than_a_million_voxels() -> None:
    compare(np.random.default_rng(0).normal(100, 30, (110, 100, 100)).astype(np.float32), INTENSITY[3])
