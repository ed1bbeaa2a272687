"""Transposed convolutions as plain ones, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn

from medseg.inference.engines.polyphase import Phases, in_phases


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.ConvTranspose2d | nn.ConvTranspose3d, tuple[int, ...]]:
    """A layer, and the size of what it is given."""
    dims = draw(st.sampled_from([2, 3]))
    kernel, stride, padding, more, size = [], [], [], [], []
    for _ in range(dims):
        s, k = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        p, o = draw(st.integers(0, k - 1)), draw(st.integers(0, s - 1))
        least = max(1, -(-(1 + 2 * p - k - o) // s) + 1)  # of which at least one voxel is made
        kernel, stride, padding, more = [*kernel, k], [*stride, s], [*padding, p], [*more, o]
        size.append(draw(st.integers(least, least + 4)))
    made = (nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d)(
        draw(st.integers(1, 3)), draw(st.integers(1, 3)), tuple(kernel), tuple(stride), tuple(padding), tuple(more),
        bias=draw(st.booleans()),
    )  # fmt: skip
    return made, tuple(size)


@settings(deadline=None, max_examples=200)
@given(layers(), st.integers(1, 2), st.integers(0, 99))
def test_phases_are_the_transposed_convolution(layer: nn.Module, batch: int, seed: int) -> None:
    made, size = layer
    x = torch.randn(batch, made.in_channels, *size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        expected, found = made(x), Phases(made)(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


def kinds(network: nn.Module) -> list[type]:
    return [type(one) for one in network.modules() if type(one) in (Phases, nn.ConvTranspose2d, nn.ConvTranspose3d)]


@pytest.mark.parametrize("dims", [2, 3])
def test_of_a_unet_the_last_layer_alone_is_worth_it(dims: int) -> None:
    network = UNet(dims, 1, 2, [16, 32, 64], [2, 2], num_res_units=2, norm="batch").eval()
    before = copy.deepcopy(network)
    changed = in_phases(network)
    assert kinds(changed).count(Phases) == 1 and len(kinds(changed)) == len(kinds(before))
    x = torch.rand(2, 1, *[24] * dims, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(changed(x), before(x), atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(8, 16, 3, 2, 1, 1),  # vectors are full
        nn.ConvTranspose3d(8, 16, 2, 2),
        nn.ConvTranspose3d(4, 2, 3, 2, 1, 1, groups=2),
        nn.ConvTranspose3d(4, 2, 3, 2, 1, 1, dilation=2),
        nn.utils.parametrizations.weight_norm(nn.ConvTranspose3d(8, 2, 3, 2, 1, 1)),
    ],
)
def test_others_stay_as_they_are(layer: nn.Module) -> None:
    assert not any(isinstance(one, Phases) for one in in_phases(nn.Sequential(layer)).modules())
