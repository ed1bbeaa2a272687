"""How far a voxel of the logits sees: the support of its gradient against arithmetic on intervals.

Weights are made positive and equal, maxima made means, unpooling made repetition: the network is then a positive
linear map and its gradient is non-zero exactly where a voxel is seen. The arithmetic walks back from the logits and
names only kernels, strides and dilations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks import FCN, DeepLabV3, DeepLabV3Plus, MeshNet, PSPNet, SegNet, UNet2015, encoder_decoder
from medseg.networks.layers import crop
from medseg.networks.resnet import ResNet
from tests.medseg.networks.families import RESNET, both_dims

Span: TypeAlias = tuple[int, int]
Step: TypeAlias = Callable[[Span], Span]


def kernel(size: int, *, stride: int = 1, dilation: int = 1, padding: int | None = None) -> Step:
    """A convolution or pool: the inputs that the outputs lo..hi read."""
    before = dilation * (size // 2) if padding is None else padding
    return lambda s: (s[0] * stride - before, s[1] * stride - before + dilation * (size - 1))


def pool() -> Step:
    return kernel(2, stride=2, padding=0)


def repeat(factor: int = 2) -> Step:
    """An up-convolution as wide as its stride, or unpooling."""
    return lambda s: (s[0] // factor, s[1] // factor)


def interpolation(factor: int) -> Step:
    """A deconvolution twice as wide as its stride: linear interpolation."""
    return lambda s: (math.floor((s[0] + 0.5) / factor - 0.5), math.floor((s[1] + 0.5) / factor - 0.5) + 1)


def back(span: Span, steps: Iterable[Step]) -> Span:
    for step in steps:
        span = step(span)
    return span


def made_linear(net: nn.Module) -> nn.Module:
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.MaxPool2d | nn.MaxPool3d):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, MeanPool(module))
    return net.eval().double()


class MeanPool(nn.Module):
    """A mean over the same voxels as a max-pool's."""

    def __init__(self, pool: nn.MaxPool2d | nn.MaxPool3d) -> None:
        super().__init__()
        mean = {nn.MaxPool2d: nn.AvgPool2d, nn.MaxPool3d: nn.AvgPool3d}[type(pool)]
        self.mean = mean(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
        self.with_indices = pool.return_indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return (self.mean(x), x) if self.with_indices else self.mean(x)


def seen(net: Callable[[Tensor], Tensor], length: int, at: int, dims: int) -> list[Span]:
    """Axis for axis: first and last voxel that the output at `at` depends on, in a bar along that axis."""
    return [along(net, length, at, axis, dims) for axis in range(dims)]


def along(net: Callable[[Tensor], Tensor], length: int, at: int, axis: int, dims: int) -> Span:
    size, place = [THICK] * dims, [0] * dims
    size[axis], place[axis] = length, at
    x = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    net(x)[(0, 0, *place)].backward()
    assert x.grad is not None
    where = (x.grad[0, 0] > 0).nonzero()[:, axis]
    return int(where.min()), int(where.max())


THICK = 17


@both_dims
@pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 1, 2, 4, 1)])
def test_meshnet(dims: int, dilations: tuple[int, ...]) -> None:
    net = made_linear(MeshNet(dims, 1, 1, channels=2, dilations=dilations))
    radius = sum(dilations)
    assert seen(net, 2 * radius + 5, radius + 2, dims) == [(2, 2 * radius + 2)] * dims


def test_meshnet_of_the_paper_sees_67_voxels() -> None:
    net = made_linear(MeshNet(2, 1, 1))
    assert seen(net, 81, 40, 2) == [(40 - 33, 40 + 33)] * 2


def unet(levels: int) -> list[Step]:
    """The longest way: down to the bottom and up again; two convolutions at each level on either side."""
    steps: list[Step] = []
    for _ in range(levels - 1):
        steps += [kernel(3), kernel(3), repeat()]
    steps += [kernel(3), kernel(3)]
    for _ in range(levels - 1):
        steps += [pool(), kernel(3), kernel(3)]
    return steps


@pytest.mark.parametrize(
    ("dims", "levels", "length", "at"), [(2, 3, 64, 31), (2, 5, 288, 144), (2, 5, 288, 150), (3, 3, 48, 24)]
)
def test_unet(dims: int, levels: int, length: int, at: int) -> None:
    net = made_linear(UNet2015(dims, 1, 1, widths=[1] * levels))
    span = back((at, at), unet(levels))
    assert span[0] > 0 and span[1] < length - 1
    assert seen(net, length, at, dims) == [span] * dims


@pytest.mark.parametrize(("dims", "depths", "length", "at"), [(2, (2, 2, 3, 3, 3), 448, 224), (3, (1, 2), 32, 15)])
def test_segnet(dims: int, depths: tuple[int, ...], length: int, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def repeated(x: Tensor, _: Tensor, size: tuple[int, ...]) -> Tensor:
        return crop(functional.interpolate(x, scale_factor=2), size)

    monkeypatch.setattr(encoder_decoder, "unpool", repeated)
    net = made_linear(SegNet(dims, 1, 1, widths=[1] * len(depths), depths=depths))
    decoder = [step for depth in depths for step in (*[kernel(3)] * depth, repeat())]
    encoder = [step for depth in reversed(depths) for step in (pool(), *[kernel(3)] * depth)]
    span = back((at, at), decoder + encoder)
    assert span[0] > 0 and span[1] < length - 1
    assert seen(net, length, at, dims) == [span] * dims


def vgg(depths: tuple[int, ...], head: int) -> list[Step]:
    return [kernel(head), *(step for depth in reversed(depths) for step in (pool(), *[kernel(3)] * depth))]


def test_vggs_classifier_sees_404_voxels() -> None:
    lo, hi = back((0, 0), vgg((2, 2, 3, 3, 3), 7))
    assert hi - lo + 1 == 404  # the figure known of VGG16


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    ("dims", "depths", "head", "length"), [(2, (2, 2, 3, 3, 3), 7, 704), (3, (1, 1, 1, 1, 1), 1, 192)]
)
def test_fcn(dims: int, depths: tuple[int, ...], head: int, length: int, stride: int) -> None:
    at = length // 2
    net = made_linear(FCN(dims, 1, 1, stride, widths=[1] * 5, depths=depths, head=1, head_kernel=head, dropout=0.0))
    up = {8: [interpolation(8), interpolation(2), interpolation(2)], 16: [interpolation(16), interpolation(2)]}
    span = back((at, at), [*up.get(stride, [interpolation(32)]), *vgg(depths, head)])
    assert span[0] > 0 and span[1] < length - 1
    assert seen(net, length, at, dims) == [span] * dims


def resnet(blocks: tuple[int, ...], grids: list[tuple[int, int, int]]) -> list[Step]:
    steps: list[Step] = []
    for count, (stride, first, rest) in reversed(list(zip(blocks, grids, strict=True))):
        steps += [kernel(3, dilation=rest)] * (count - 1) + [kernel(3, stride=stride, dilation=first)]
    return [*steps, kernel(3, stride=2), kernel(7, stride=2)]


AT_32 = [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
AT_8 = [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]


@pytest.mark.parametrize(
    ("dims", "blocks", "length"), [(2, (3, 4, 6, 3), 480), (2, (1, 1, 1, 1), 128), (3, (1, 1, 1, 1), 192)]
)
@pytest.mark.parametrize(("output_stride", "grids"), [(32, AT_32), (8, AT_8)])
def test_backbone(
    dims: int, blocks: tuple[int, ...], length: int, output_stride: int, grids: list[tuple[int, int, int]]
) -> None:
    net = made_linear(ResNet(dims, 1, width=1, blocks=blocks, output_stride=output_stride))
    at = length // output_stride // 2
    span = back((at, at), resnet(blocks, grids))
    assert span[0] > 0 and span[1] < length - 1
    assert seen(lambda x: net(x)[1], length, at, dims) == [span] * dims
    if blocks == (3, 4, 6, 3):
        assert span[1] - span[0] + 1 == 427  # the figure known of ResNet-50, whatever its output stride


@pytest.mark.parametrize("network", [PSPNet, DeepLabV3, DeepLabV3Plus])
@both_dims
def test_pyramids_see_the_whole_window_and_so_not_the_image(network: type[nn.Module], dims: int) -> None:
    net = made_linear(network(dims, 1, 1, **RESNET))
    for length in (128, 160) if dims == 2 else (96,):
        assert seen(net, length, 5, dims) == [(0, length - 1)] * dims
