from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.networks import DeepLabV3, DeepLabV3Plus
from tests.medseg.networks.families import RESNET, both_dims, count

RESNET_50, DEEP, FINE, HEAD, CLASSES = 23_508_032, 2048, 256, 256, 21


def unit(n: int, m: int, kernel: int = 1) -> int:
    """A convolution without bias and its normalisation's scale and shift."""
    return n * m * kernel + 2 * m


def separable(n: int, m: int) -> int:
    return (9 * n + 2 * n) + unit(n, m)


def test_parameters_of_v3() -> None:
    aspp = 2 * unit(DEEP, HEAD) + 3 * unit(DEEP, HEAD, 9) + unit(5 * HEAD, HEAD)
    head = unit(HEAD, HEAD, 9) + HEAD * CLASSES + CLASSES
    assert count(lambda: DeepLabV3(2, 3, 21)) == RESNET_50 + aspp + head == 39_638_869
    assert count(lambda: DeepLabV3(2, 3, 21, output_stride=8)) == 39_638_869
    assert count(lambda: DeepLabV3(2, 3, 21, blocks=(3, 4, 23, 3))) == 58_630_997  # torchvision's deeplabv3_resnet101


def test_parameters_of_v3_plus() -> None:
    ends = 2 * unit(DEEP, HEAD) + unit(5 * HEAD, HEAD) + unit(FINE, 48) + HEAD * CLASSES + CLASSES
    apart = 3 * separable(DEEP, HEAD) + separable(HEAD + 48, HEAD) + separable(HEAD, HEAD)
    plain = 3 * unit(DEEP, HEAD, 9) + unit(HEAD + 48, HEAD, 9) + unit(HEAD, HEAD, 9)
    assert count(lambda: DeepLabV3Plus(2, 3, 21)) == RESNET_50 + ends + apart == 26_696_133
    assert count(lambda: DeepLabV3Plus(2, 3, 21, separable=False)) == RESNET_50 + ends + plain == 40_352_181


@pytest.mark.parametrize(("output_stride", "rates"), [(16, {6, 12, 18}), (8, {12, 24, 36})])
@pytest.mark.parametrize("network", [DeepLabV3, DeepLabV3Plus])
@both_dims
def test_rates(network: type[nn.Module], dims: int, output_stride: int, rates: set[int]) -> None:
    net = network(dims, 1, 2, output_stride=output_stride, **RESNET)
    convolutions = [m for m in net.aspp.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    atrous = [m for m in convolutions if m.kernel_size[0] == 3]
    assert {m.dilation for m in atrous} == {(rate,) * dims for rate in rates} and len(atrous) == 3
    assert all(m.kernel_size == (1,) * dims for m in convolutions if m not in atrous)
    pools = [m for m in net.modules() if isinstance(m, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d)]
    assert [m.output_size for m in pools] == [1]


@pytest.mark.parametrize("network", [DeepLabV3, DeepLabV3Plus])
@pytest.mark.parametrize("output_stride", [8, 16])
@both_dims
def test_output_stride(network: type[nn.Module], dims: int, output_stride: int) -> None:
    net = network(dims, 1, 2, output_stride=output_stride, **RESNET).eval()
    seen: list[int] = []
    net.aspp.register_forward_hook(lambda _, __, out: seen.append(64 // out.shape[-1]))
    with torch.no_grad():
        net(torch.zeros(1, 1, *[64] * dims))
    assert seen == [output_stride]


def test_v3_plus_decides_at_stride_4() -> None:
    net = DeepLabV3Plus(2, 1, 2, **RESNET).eval()
    seen: list[tuple[int, ...]] = []
    net.head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    with torch.no_grad():
        net(torch.zeros(1, 1, 65, 48))
    assert seen == [(17, 12)]
