"""The pieces networks are made of, for two and for three spatial dimensions.

A family names a piece (`conv(dims)`) and never asks how many dimensions there are. Shapes: (B, C, *S), S the spatial
sizes (j, i) or (k, j, i).

Downsampling rounds up, so it takes any size; what comes back up is at least as large as what left, and is cropped:

    7 -> 4 -> 2 -> 1        pool: ceil(n / 2)
    7 <- 8 .. 4 .. 2 <- 1   twice as large, then `crop` to the size that left
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import UsageError

Norm: TypeAlias = Literal["batch", "group", "instance"]
Activation: TypeAlias = Literal["relu", "elu", "gelu"]

_In2d = TypeVar("_In2d")
_In3d = TypeVar("_In3d")


def _pick(dims: int, in_2d: _In2d, in_3d: _In3d) -> _In2d | _In3d:
    if dims not in (2, 3):
        raise UsageError(f"spatial_dims is {dims}: these networks are for 2 and 3")
    return in_2d if dims == 2 else in_3d


class _OneValueServes(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that also trains where a channel has a single value, whose variance says nothing.

    So it is behind a pool over the whole window when the batch is one window; the running statistics serve there.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(input)


class BatchNorm2d(_OneValueServes, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, and one value per channel will do."""


class BatchNorm3d(_OneValueServes, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, and one value per channel will do."""


class InstanceNorm(nn.Module):
    """Every channel of every window to mean 0 and variance 1, with nothing learned: (B, C, *S) -> (B, C, *S).

    `torch.nn.InstanceNorm2d/3d`, but for a channel of one value, which becomes 0 and is no error.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, x.shape[1])


def conv(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution for `dims` spatial dimensions. Raises UsageError where that is neither 2 nor 3."""
    return _pick(dims, nn.Conv2d, nn.Conv3d)


def conv_transpose(dims: int) -> type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]:
    return _pick(dims, nn.ConvTranspose2d, nn.ConvTranspose3d)


def max_pool(dims: int) -> type[nn.MaxPool2d] | type[nn.MaxPool3d]:
    return _pick(dims, nn.MaxPool2d, nn.MaxPool3d)


def adaptive_pool(dims: int) -> type[nn.AdaptiveAvgPool2d] | type[nn.AdaptiveAvgPool3d]:
    return _pick(dims, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def normalise(dims: int, kind: Norm | None, channels: int) -> nn.Module:
    """batch: over the batch, as most papers here do; needs more than a window or two per step to be steady.

    group: over 16 channels of one window (Wu and He 2018), whatever the batch. instance: over one channel of one
    window, without learned scale: a network that has it sees the window's mean, so windows must not be small.
    """
    if kind is None:
        return nn.Identity()
    if kind == "batch":
        return _pick(dims, BatchNorm2d, BatchNorm3d)(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
    if kind == "instance":
        return InstanceNorm()
    raise UsageError(f"norm is {kind!r}: known are batch, group, instance and None")


def activate(kind: Activation) -> nn.Module:
    if kind == "relu":
        return nn.ReLU(inplace=True)
    if kind == "elu":
        return nn.ELU(inplace=True)
    if kind == "gelu":
        return nn.GELU()
    raise UsageError(f"activation is {kind!r}: known are relu, elu and gelu")


def unit(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    dilation: int = 1,
    groups: int = 1,
    norm: Norm | None = "batch",
    bias: bool = False,
) -> nn.Sequential:
    """Convolution, normalisation, ReLU; the size stays."""
    return nn.Sequential(
        conv(dims)(
            in_channels,
            out_channels,
            kernel,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        ),
        normalise(dims, norm, out_channels),
        activate("relu"),
    )


def separable_unit(
    dims: int, in_channels: int, out_channels: int, *, dilation: int = 1, norm: Norm | None = "batch"
) -> nn.Sequential:
    """A 3-wide unit in two: one filter per channel, then a mix of channels; about 9 (27 in 3D) times fewer weights."""
    return nn.Sequential(
        unit(dims, in_channels, in_channels, dilation=dilation, groups=in_channels, norm=norm),
        unit(dims, in_channels, out_channels, 1, norm=norm),
    )


def stage(dims: int, widths: Sequence[int], *, norm: Norm | None) -> nn.Sequential:
    """VGG's stage: a chain of 3-wide units with biases, from `widths[0]` channels on to `widths[-1]`."""
    return nn.Sequential(*(unit(dims, n, m, norm=norm, bias=True) for n, m in pairwise(widths)))


def stages(
    dims: int, in_channels: int, widths: Sequence[int], depths: Sequence[int], *, norm: Norm | None
) -> nn.ModuleList:
    """An encoder's stages, outermost first: stage i is `depths[i]` convolutions of `widths[i]` channels.

    Raises UsageError where widths and depths differ in number.
    """
    if len(widths) != len(depths):
        raise UsageError(f"{len(widths)} widths and {len(depths)} depths: each stage has one of both")
    rows = zip((in_channels, *widths[:-1]), widths, depths, strict=True)
    return nn.ModuleList(stage(dims, [n] + [m] * depth, norm=norm) for n, m, depth in rows)


class PooledContext(nn.Module):
    """What the window is like as a whole: (B, C, *S) -> (B, K, *S) by averages over a grid of `bins` per axis."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, bins: int, norm: Norm | None) -> None:
        super().__init__()
        self.pool = adaptive_pool(dims)(bins)
        # Scaled by its own few cells a channel would say nothing: with one cell it would always be zero.
        self.project = unit(dims, in_channels, out_channels, 1, norm=None if norm == "instance" else norm)

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.project(self.pool(x)), x.shape[2:])


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation to `size`: voxel edges meet, not voxel centres (`align_corners=False`)."""
    return functional.interpolate(
        x, size=list(size), mode=_pick(x.dim() - 2, "bilinear", "trilinear"), align_corners=False
    )


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` voxels of every spatial axis."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def unpool(x: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Each value back to where max-pooling found it, zero elsewhere: (B, C, *S) -> (B, C, *size).

    `torch.nn.MaxUnpool2d/3d` written as a scatter, which exports to every engine.
    """
    empty = x.new_zeros(*x.shape[:2], math.prod(size))
    return empty.scatter(2, indices.flatten(2), x.flatten(2)).view(*x.shape[:2], *size)


def initialise(net: nn.Module) -> None:
    """Convolutions by He et al. 2015, so that a deep stack without normalisation still learns."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def linear_kernel(dims: int, factor: int) -> Tensor:
    """(2 * factor,) * dims: the weights by which a deconvolution of stride `factor` interpolates linearly.

    factor 2, one axis:  .25 .75 .75 .25
    """
    ramp = (torch.arange(2 * factor) + 0.5) / factor
    line = 1 - (ramp - 1).abs()
    kernel = line
    for _ in range(dims - 1):
        kernel = kernel[..., None] * line
    return kernel
