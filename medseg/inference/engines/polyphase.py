"""Transposed convolutions as plain ones, where those compute less.

OpenVINO computes the output channels of a convolution in vectors of 16. The last layers of many networks, the U-Net's
of MONAI among them, are transposed convolutions to two or three classes at full size, which leave most of a vector
empty. The voxels of a transposed convolution of stride s come in s phases per axis, each an own plain convolution of
the input's size; all phases together are one with as many times the channels, whose voxels are then put between each
other.

    along one axis, stride 2, kernel 3 (weights w0 w1 w2), padding 1
    input      x0        x1        x2
    phase 0    w1 x0     w1 x1     w1 x2                         -> output 0, 2, 4
    phase 1    w2 x0 + w0 x1       w2 x1 + w0 x2    w2 x2        -> output 1, 3, 5
"""

from __future__ import annotations

import math
from itertools import product
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

_LANES: Final = 16  # numbers of float32 in a vector of AVX-512
_WORTH: Final = 0.7  # of the multiplications; the voxels have to be put in order afterwards

Transposed: TypeAlias = nn.ConvTranspose2d | nn.ConvTranspose3d


class Phases(nn.Module):
    """Computes what a transposed convolution does, up to the order of additions."""

    def __init__(self, of: Transposed) -> None:
        super().__init__()
        along = _along(of)
        self._kernel: tuple[int, ...] = of.kernel_size
        self._stride: tuple[int, ...] = of.stride
        self._padding = tuple(p for _, _, p in along)
        self._more: tuple[int, ...] = of.output_padding
        self._channels = of.out_channels
        self._first = [first_tap(k, s, p) for k, s, p in along]
        self._taps = [taps(k, s, p) for k, s, p in along]
        weight = torch.zeros(*of.stride, *self._taps, of.out_channels, of.in_channels, dtype=of.weight.dtype)
        given = of.weight.detach().movedim((0, 1), (-1, -2))
        for phase in product(*map(range, of.stride)):
            for tap in product(*map(range, self._taps)):
                at = tuple(
                    r + p - s * (f + t) for r, t, f, (_, s, p) in zip(phase, tap, self._first, along, strict=True)
                )
                if all(0 <= one < k for one, (k, _, _) in zip(at, along, strict=True)):
                    weight[phase + tap] = given[at]
        weight = weight.movedim((-2, -1), (len(along), len(along) + 1))
        self.weight = nn.Parameter(weight.flatten(0, len(along)), requires_grad=False)
        bias = None if of.bias is None else of.bias.detach().repeat(math.prod(of.stride))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, K, *size)."""
        dims, size, stride = len(self._stride), x.shape[2:], self._stride
        out = [
            (n - 1) * s - 2 * p + k + more
            for n, k, s, p, more in zip(size, self._kernel, stride, self._padding, self._more, strict=True)
        ]
        count = [-(-n // s) for n, s in zip(out, stride, strict=True)]  # of each phase; its last may be cut off
        pads: list[int] = []
        for first, number, given, n in zip(self._first, self._taps, size, count, strict=True):
            pads = [-first, n - 1 + first + number - given, *pads]  # torch pads the last axis first
        x = functional.pad(x, pads)
        x = (functional.conv2d if dims == 2 else functional.conv3d)(x, self.weight, self.bias)
        # By way of channels last, as which OpenVINO has it
        x = x.permute(0, *range(2, dims + 2), 1).reshape(-1, *count, *stride, self._channels)
        x = x.permute(0, 2 * dims + 1, *(axis for n in range(1, dims + 1) for axis in (n, dims + n)))
        x = x.reshape(-1, self._channels, *(n * s for n, s in zip(count, stride, strict=True)))
        for axis, n in enumerate(out, start=2):
            x = x.narrow(axis, 0, n)
        return x


def first_tap(kernel: int, stride: int, padding: int) -> int:
    """The first input voxel, counted from number q, that outputs stride * q .. stride * (q + 1) - 1 are made of."""
    return math.ceil((padding - kernel + 1) / stride)


def taps(kernel: int, stride: int, padding: int) -> int:
    """How many input voxels these are made of."""
    return (stride - 1 + padding) // stride - first_tap(kernel, stride, padding) + 1


def in_phases(network: nn.Module) -> nn.Module:
    """The network, with transposed convolutions replaced where phases compute less. It is changed."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Transposed) and _less(child):
                setattr(parent, name, Phases(child).train(child.training))
    return network


def _less(of: Transposed) -> bool:
    kind = type(of) in (nn.ConvTranspose2d, nn.ConvTranspose3d)  # not one made of them, as by weight_norm
    if not kind or of.groups != 1 or set(of.dilation) != {1} or of._forward_hooks or of._forward_pre_hooks:
        return False
    number = math.prod(taps(*along) for along in _along(of))
    phases = number * _filled(of.out_channels * math.prod(of.stride))
    return phases <= _WORTH * math.prod(of.kernel_size) * _filled(of.out_channels)


def _along(of: Transposed) -> list[tuple[int, int, int]]:
    """Kernel, stride and padding, per axis."""
    assert not isinstance(of.padding, str)  # it takes none
    sizes: list[tuple[int, ...]] = [of.kernel_size, of.stride, of.padding]
    return [(k, s, p) for k, s, p in zip(*sizes, strict=True)]


def _filled(channels: int) -> int:
    return -(-channels // _LANES) * _LANES
