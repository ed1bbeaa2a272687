from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.networks import PSPNet
from tests.medseg.networks.families import RESNET, both_dims, count

POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def test_parameters_of_the_paper() -> None:
    pyramid = 4 * (2048 * 512 + 2 * 512)
    head = 4096 * 512 * 9 + 2 * 512 + 512 * 21 + 21
    assert count(lambda: PSPNet(2, 3, 21)) == 23_508_032 + pyramid + head == 46_592_597


@both_dims
def test_bins_are_1_2_3_and_6(dims: int) -> None:
    net = PSPNet(dims, 1, 2, **RESNET)
    assert [module.output_size for module in net.modules() if isinstance(module, POOLS)] == [1, 2, 3, 6]


@both_dims
def test_each_pool_gives_its_bins_and_an_equal_share_of_channels(dims: int) -> None:
    net = PSPNet(dims, 1, 2, **RESNET).eval()
    seen: list[tuple[int, ...]] = []
    for pooled in net.pyramid:
        pooled.project.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    with torch.no_grad():
        net(torch.rand(1, 1, *[48] * dims))
    assert seen == [(1, 64 // 4, *[n] * dims) for n in (1, 2, 3, 6)]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(output_stride: int) -> None:
    net = PSPNet(2, 1, 2, output_stride=output_stride, **RESNET).eval()
    with torch.no_grad():
        assert net.backbone(torch.zeros(1, 1, 64, 64))[1].shape[2:] == (64 // output_stride,) * 2
