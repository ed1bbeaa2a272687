"""Resampling there and back, against MONAI's Spacingd and Invertd, ITK's rules and plain arithmetic."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, Invertd
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medseg.bundle.recipe import Activation, Finish, Interpolation, Order, Orient, Padding, Recipe, Resample, Step
from medseg.dicom.series import Stack
from medseg.inference.grids.grid import oriented, resampled, source_frame
from medseg.inference.grids.prepare import PreparedVolume, prepare, uniform
from medseg.inference.grids.resample import InPlane, resample_separable, taps
from medseg.inference.grids.restore import to_source
from tests.medseg.inference.phantoms import WINDOW, as_monai, blobs, make_stack, monai_transform
from tests.orientations import ORIENTATIONS

LINEAR_BACK = Finish(Activation.NONE, None, Order.PROBABILITIES_FIRST, nearest=False)
NEAREST_BACK = Finish(Activation.NONE, None, Order.LABELS_FIRST, nearest=True)
SPACINGS = st.tuples(*[st.sampled_from([-1.0, 0.6, 0.75, 1.0, 1.3, 1.5, 2.0, 2.2, 3.1])] * 3)


def prepared_by_us(array: np.ndarray, stack: Stack, steps: tuple[Step, ...]) -> PreparedVolume:
    volume = uniform(torch.from_numpy(array)[None].clone(), stack.coordinates)
    return prepare(volume, stack.affine, Recipe(steps, WINDOW, LINEAR_BACK), tilted=stack.tilt_deg != 0)


def brought_back(prepared: PreparedVolume, stack: Stack, finish: Finish) -> Tensor:
    back = to_source(prepared, stack.coordinates, stack.shape[1:], finish)
    planes = list(prepared.voxels.unbind(1))
    return torch.stack([back.plane(k, planes, 0) for k in range(len(stack.slices))], dim=1)


def both_ways_by_monai(
    array: np.ndarray, stack: Stack, steps: tuple[Step, ...], *, nearest: bool
) -> tuple[Tensor, Tensor]:
    """What Spacingd and the rest give, and what Invertd makes of it; (C, i, j, k) turned to (C, k, j, i)."""
    before = Compose([monai_transform(step) for step in steps])
    data = before({"image": as_monai(array, stack)})
    data["pred"] = data["image"].clone()
    back = Invertd("pred", transform=before, orig_keys="image", nearest_interp=nearest)(data)["pred"]
    return data["image"].as_tensor(), back.as_tensor().permute(0, 3, 2, 1)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(2, 14)] * 3),
    spacing=SPACINGS,
    orientation=st.sampled_from(ORIENTATIONS),
    axcodes=st.sampled_from(["RAS", "LPS", "ILP", "ASL", None]),
    orient_first=st.booleans(),
    padding=st.sampled_from([Padding.BORDER, Padding.ZEROS]),
    interpolation=st.sampled_from(Interpolation),
    nearest=st.booleans(),
    seed=st.integers(0, 99),
)
def test_there_and_back_is_spacingd_and_invertd(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    orientation: NDArray[np.float64],
    axcodes: str | None,
    orient_first: bool,
    padding: Padding,
    interpolation: Interpolation,
    nearest: bool,
    seed: int,
) -> None:
    array = np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
    stack = make_stack(array, spacing_mm=(2.0, 1.3, 0.9), axes=orientation)
    steps = [Resample(spacing, interpolation, padding)]
    if axcodes:
        steps.insert(0 if orient_first else 1, Orient(axcodes))
    forward, back = both_ways_by_monai(array, stack, steps, nearest=nearest)
    ours = prepared_by_us(array, stack, tuple(steps))
    assert ours.frame.axes.to_model(ours.voxels).shape == forward.shape
    assert (ours.frame.axes.to_model(ours.voxels) - forward).abs().max() <= 1e-4
    assert (brought_back(ours, stack, NEAREST_BACK if nearest else LINEAR_BACK) - back).abs().max() <= 1e-4


@pytest.mark.parametrize("align_corners", [True, False])
def test_scale_extent_as_monai(align_corners: bool) -> None:
    array = blobs((9, 12, 14))
    stack = make_stack(array, spacing_mm=(2.0, 1.3, 0.9))
    steps = (Orient("RAS"), Resample((1.7, 1.0, 1.5), align_corners=align_corners, scale_extent=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward, back = both_ways_by_monai(array, stack, steps, nearest=False)
    ours = prepared_by_us(array, stack, steps)
    assert (ours.frame.axes.to_model(ours.voxels) - forward).abs().max() <= 1e-4 * np.ptp(array)
    assert (brought_back(ours, stack, LINEAR_BACK) - back).abs().max() <= 1e-4 * np.ptp(array)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", Padding)
def test_one_axis_is_grid_sample(padding: Padding, align_corners: bool) -> None:
    line = torch.randn(1, 1, 1, 11)
    coordinates = np.linspace(-9.3, 19.7, 173)
    place = torch.from_numpy(coordinates)
    scaled = 2 * place / 10 - 1 if align_corners else (2 * place + 1) / 11 - 1
    grid = torch.stack([scaled, torch.zeros_like(scaled)], dim=-1)[None, None].float()
    expected = functional.grid_sample(line, grid, padding_mode=str(padding), align_corners=align_corners)
    operator = taps(coordinates, 11, Interpolation.LINEAR, padding, align_corners=align_corners)
    assert torch.allclose(InPlane(None, operator)(line[0]), expected[0], atol=1e-5)
    assert torch.allclose(InPlane(operator, None)(line[0].mT), expected[0].mT, atol=1e-5)


@settings(deadline=None)
@given(old=st.integers(1, 60), ratio=st.floats(0.2, 5))
def test_edge_slices_keep_their_values(old: int, ratio: float) -> None:
    """The first and last slice are never darkened, and a constant volume stays constant to the last voxel."""
    volume = torch.full((1, old, 3, 3), 7.0)
    new = round((old - 1) / ratio + 1)
    along = taps(np.arange(new) * ratio, old, Interpolation.LINEAR, Padding.BORDER)
    same = taps(np.arange(3.0), 3, Interpolation.LINEAR, Padding.BORDER)
    result = resample_separable(volume, (along, same, same))
    assert result.shape[1] == new
    assert torch.allclose(result, torch.tensor(7.0))


@settings(deadline=None, max_examples=40)
@given(orientation=st.sampled_from(ORIENTATIONS), spacing=SPACINGS, axcodes=st.sampled_from(["RAS", "LPI", "SAR"]))
def test_a_ramp_in_millimetres_stays_where_it_is(
    orientation: NDArray[np.float64], spacing: tuple[float, float, float], axcodes: str
) -> None:
    """Linear resampling keeps a linear function of patient position: what was at x mm is still at x mm."""
    shape = (6, 7, 8)
    stack = make_stack(np.zeros(shape, np.float32), spacing_mm=(2.0, 1.5, 1.1), axes=orientation)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    place = index @ stack.affine[:3, :3].T + stack.affine[:3, 3]
    array = (place @ np.array([1.0, 10.0, 100.0])).astype(np.float32)
    ours = prepared_by_us(array, stack, (Orient(axcodes), Resample(spacing)))
    model = ours.frame.axes.to_model(ours.voxels)[0].numpy()
    index = np.stack(np.meshgrid(*map(np.arange, model.shape), indexing="ij"), -1)
    ras = index @ ours.frame.affine[:3, :3].T + ours.frame.affine[:3, 3]
    inside = np.ones(model.shape, bool)
    corner = np.linalg.solve(stack.affine, np.diag([-1, -1, 1, 1]) @ ours.frame.affine)
    at = index @ corner[:3, :3].T + corner[:3, 3]
    inside &= ((at >= -1e-6) & (at <= np.array(shape) - 1 + 1e-6)).all(-1)
    expected = ras @ np.array([-1.0, -10.0, 100.0])
    assert np.abs(model - expected)[inside].max() < 0.02
    assert inside.mean() > 0.3


def test_a_bridged_gap_is_interpolated_for_the_network_and_left_out_on_the_way_back() -> None:
    array = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((6, 4, 4), np.float32)
    kept = np.array([0.0, 1.0, 3.0, 4.0, 5.0])
    stack = make_stack(array[kept.astype(int)], coordinates=kept)
    ours = prepared_by_us(array[kept.astype(int)], stack, (Orient("RAS"), Resample((1.0, 1.0, 0.5))))
    along_z = ours.voxels[0, :, 0, 0]
    assert torch.allclose(along_z, torch.arange(len(along_z)) * 0.25, atol=1e-5)
    assert torch.allclose(brought_back(ours, stack, LINEAR_BACK)[0, :, 1, 1], torch.from_numpy(kept).float(), atol=1e-5)


def test_uneven_slices_are_put_on_an_even_grid_and_brought_back_to_their_own_places() -> None:
    places = np.array([0.0, 1.05, 1.97, 3.02, 4.0])
    array = places[:, None, None].astype(np.float32) * np.ones((5, 3, 3), np.float32)
    stack = make_stack(array, coordinates=places)
    ours = prepared_by_us(array, stack, (Orient("RAS"),))
    assert torch.allclose(ours.voxels[0, :, 0, 0], torch.arange(5.0), atol=1e-6)
    assert torch.allclose(
        brought_back(ours, stack, LINEAR_BACK)[0, :, 0, 0], torch.from_numpy(places).float(), atol=1e-6
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS[::3], ids=str)
@pytest.mark.parametrize("tilt_mm", [0.6, -0.9])
@pytest.mark.parametrize("spacing", [(1.0, 1.2, 1.5), (-1.0, -1.0, -1.0)])
def test_a_tilted_stack_is_straightened_as_spacingd_does_and_comes_back_as_invertd_does(
    orientation: NDArray[np.float64], tilt_mm: float, spacing: tuple[float, float, float]
) -> None:
    array = blobs((10, 16, 14), smooth=1.0)
    stack = make_stack(array, spacing_mm=(2.0, 1.0, 1.1), axes=orientation, tilt_mm=tilt_mm)
    steps = (Orient("RAS"), Resample(spacing))
    forward, back = both_ways_by_monai(array, stack, steps, nearest=False)
    ours = prepared_by_us(array, stack, steps)
    scale = np.ptp(array)
    assert ours.frame.axes.to_model(ours.voxels).shape == forward.shape
    assert (ours.frame.axes.to_model(ours.voxels) - forward).abs().max() <= 1e-4 * scale
    assert (brought_back(ours, stack, LINEAR_BACK) - back).abs().max() <= 1e-4 * scale


def test_a_tilted_stack_is_straightened_even_where_the_recipe_does_not_resample() -> None:
    stack = make_stack(blobs((8, 12, 12)), tilt_mm=0.7)
    ours = prepared_by_us(blobs((8, 12, 12)), stack, (Orient("RAS"),))
    axes = ours.frame.affine[:3, :3]
    assert np.allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-9)


def test_rounded_header_directions_are_no_slant() -> None:
    """Six decimals in ImageOrientationPatient, as many scanners write, must not cost the general resampler."""
    frame = source_frame(make_stack(np.zeros((40, 64, 64), np.float32)).affine, (40, 64, 64))
    rounded = np.round(np.eye(3)[[2, 1, 0]] + 3e-7, 6)
    stack = make_stack(np.zeros((40, 64, 64), np.float32), axes=rounded)
    ours = prepared_by_us(np.zeros((40, 64, 64), np.float32), stack, (Orient("RAS"), Resample((1.5, 1.5, 1.5))))
    assert type(to_source(ours, stack.coordinates, (64, 64), LINEAR_BACK)).__name__ == "Parallel"
    assert oriented(frame, "RAS").shape == resampled(oriented(frame, "RAS"), Resample((-1, -1, -1))).shape
