"""Convolutions of two things side by side as the sum of one of each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medseg.inference.engines.summed import SummedDecoder, in_sums
from medseg.networks.plain_conv_unet import PlainConvUNet
from medseg.networks.residual_encoder_unet import ResidualEncoderUNet


def plain(**style: object) -> nn.Module:
    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    return PlainConvUNet(
        3, 2, 4, widths=[4, 6, 8], kernels=kernels, strides=strides, convs=[2, 1, 2], convs_up=[2, 1], **style
    )


def residual() -> nn.Module:
    strides, kernels = [[1, 1], [2, 2]], [[3, 3], [3, 3]]
    return ResidualEncoderUNet(2, 1, 3, widths=[4, 8], kernels=kernels, strides=strides, blocks=[1, 2], convs_up=[1])


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (plain(), (2, 8, 8, 8)),
        (plain(bias=False, nonlin_first=True), (2, 8, 8, 8)),
        (plain(norm="batch", dropout=0.1), (2, 8, 8, 8)),
        (residual(), (1, 16, 8)),
    ],
)
def test_a_network_whose_decoder_adds_gives_the_same_scores(network: nn.Module, shape: tuple[int, ...]) -> None:
    network.eval()
    summed = in_sums(copy.deepcopy(network))
    assert any(isinstance(module, SummedDecoder) for module in summed.modules())
    windows = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = network(windows)
        assert torch.allclose(summed(windows), scores, atol=1e-5 * float(scores.abs().max()))


def test_other_networks_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 1, 1))
    assert in_sums(network) is network
    assert [type(module) for module in network] == [nn.Conv3d, nn.Conv3d]
