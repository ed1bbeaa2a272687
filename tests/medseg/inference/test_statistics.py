"""What is gathered plane by plane is what numpy and MONAI find in the whole volume, in any order of the planes."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.transforms import NormalizeIntensity, ScaleIntensity, Transform
from numpy.typing import NDArray

from medseg.bundle.recipe import ChannelWise, Intensity, Normalize, ScaleMinMax, ScalePercentiles, ScaleRange
from medseg.inference.grids.prepare import scale, scale_settled
from medseg.inference.grids.statistics import VolumeStatistics

VOLUMES = st.one_of(
    arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=values)
    for values in (
        st.floats(-1e6, 1e6, width=32),
        st.sampled_from([np.float32(x) for x in (-0.0, 0.0, 1.0, -1.0, 1.0000001, 2.5e-38)]),
        st.integers(-1024, 3071).map(float),
    )
)
PERCENTS = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 50.0, 99.0, 99.5, 100.0]), st.floats(0, 100))


def settled(step: Intensity, volume: NDArray[np.float32], order: list[int]) -> Intensity:
    planes = torch.from_numpy(volume)
    gathering = VolumeStatistics(step)
    for k in order:
        gathering.add(planes[k])
    return gathering.settle(lambda: (planes[k] for k in reversed(order)))


@given(VOLUMES, PERCENTS, PERCENTS, st.randoms(use_true_random=False))
def test_percentiles_are_numpys_to_the_bit(
    volume: NDArray[np.float32], one: float, other: float, random: Random
) -> None:
    order = random.sample(range(len(volume)), len(volume))
    step = settled(ScalePercentiles(one, other, 0, 1, clip=True), volume, order)
    assert isinstance(step, ScaleRange)
    low, high = np.percentile(volume, [one, other])
    assert (step.a_min, step.a_max) == (low, high)


@given(VOLUMES, st.booleans(), st.randoms(use_true_random=False))
def test_mean_and_deviation_are_the_same_bits_in_any_order(
    volume: NDArray[np.float32], nonzero: bool, random: Random
) -> None:
    straight, jumbled = list(range(len(volume))), random.sample(range(len(volume)), len(volume))
    step = Normalize(nonzero=nonzero)
    assert settled(step, volume, straight) == settled(step, volume, jumbled)


@pytest.mark.parametrize(
    ("step", "monai"),
    [
        (ScaleMinMax(), ScaleIntensity()),
        (ScaleMinMax(-1.0, 2.0), ScaleIntensity(-1.0, 2.0)),
        (ScaleMinMax(0.1, 0.5), ScaleIntensity(0.1, 0.5)),
        (Normalize(), NormalizeIntensity()),
        (Normalize(nonzero=True), NormalizeIntensity(nonzero=True)),
        (Normalize(subtrahend=7.0), NormalizeIntensity(subtrahend=7.0)),
        (Normalize(divisor=3.0), NormalizeIntensity(divisor=3.0)),
    ],
)
@pytest.mark.parametrize("flat", [None, 0.0, 42.0], ids=["varied", "nothing", "flat"])
def test_steps_are_monais(step: Intensity, monai: Transform, flat: float | None) -> None:
    volume = np.random.default_rng(0).normal(100, 50, (6, 8, 9)).round().astype(np.float32)
    volume[volume < 90] = 0
    if flat is not None:
        volume[:] = flat
    found = scale_settled(torch.from_numpy(volume.copy())[None], settled(step, volume, list(range(6))))
    expected = torch.as_tensor(np.asarray(monai(volume[None].copy())))
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("own", [ScalePercentiles(5, 90, 0, 1, clip=True), ScaleMinMax(), Normalize(nonzero=True)])
def test_each_channel_has_its_own(own: ScalePercentiles | ScaleMinMax | Normalize) -> None:
    """One of them is not there: zeros, which stay zeros."""
    volume = torch.from_numpy(np.random.default_rng(0).normal(40, 9, (3, 4, 5, 6)).astype(np.float32))
    volume[2], volume[1, 0] = 0, 0
    step = ChannelWise((own,) * 3)
    found = scale(volume.clone(), step)
    for channel, alone in zip(found, volume, strict=True):
        assert torch.equal(channel[None], scale(alone[None].clone(), own))
    assert not found[2].any()
