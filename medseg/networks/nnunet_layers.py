"""What nnU-Net's two networks are made of, under the names that their checkpoints have.

A checkpoint names each tensor once for every way that leads to it: `conv` and `all_modules.0` of a block, `encoder` and
`decoder.encoder` of a network. So modules stand here under all of these names, too (dynamic-network-architectures).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.networks.layers import conv, conv_transpose

Sizes = Sequence[int]
"""One number for each spatial axis."""


@dataclass(frozen=True)
class Style:
    """How the blocks of a network are made.

    norm: instance, batch or None; eps, affine: its arguments. slope: of the leaky rectifier, 0 for the plain one, None
    for no nonlinearity. dropout: its probability, which makes no difference but to the names of what follows it.
    nonlin_first: the nonlinearity stands before the normalisation.
    """

    dims: int
    bias: bool = True
    norm: Literal["instance", "batch"] | None = "instance"
    eps: float = 1e-5
    affine: bool = True
    slope: float | None = 0.01
    dropout: float | None = None
    nonlin_first: bool = False

    def normalise(self, channels: int) -> nn.Module:
        """Not called where there is no `norm`. Raises UsageError for one that is not known."""
        flat = self.dims == 2
        if self.norm == "instance":
            return (nn.InstanceNorm2d if flat else nn.InstanceNorm3d)(channels, eps=self.eps, affine=self.affine)
        if self.norm == "batch":
            return (nn.BatchNorm2d if flat else nn.BatchNorm3d)(channels, eps=self.eps, affine=self.affine)
        raise UsageError(f"norm is {self.norm!r}: known are instance, batch and None")

    def activate(self) -> nn.Module:
        return nn.LeakyReLU(self.slope, inplace=True) if self.slope else nn.ReLU(inplace=True)


class Block(nn.Module):
    """Convolution, dropout, normalisation, nonlinearity (ConvDropoutNormReLU)."""

    def __init__(
        self,
        style: Style,
        in_channels: int,
        out_channels: int,
        kernel: Sizes,
        stride: Sizes,
        *,
        bias: bool | None = None,
        last: bool = False,
    ) -> None:
        """bias: instead of the style's. last: neither dropout nor nonlinearity, as before the sum with a skip."""
        super().__init__()
        self.conv = conv(style.dims)(
            in_channels,
            out_channels,
            sized(kernel),
            sized(stride),
            padding=sized([(size - 1) // 2 for size in kernel]),
            bias=style.bias if bias is None else bias,
        )
        steps: list[nn.Module] = [self.conv]
        if style.dropout is not None and not last:
            self.dropout = (nn.Dropout2d if style.dims == 2 else nn.Dropout3d)(style.dropout)
            steps.append(self.dropout)
        after: list[nn.Module] = []
        if style.norm is not None:
            self.norm = style.normalise(out_channels)
            after.append(self.norm)
        if style.slope is not None and not last:
            self.nonlin = style.activate()
            after.append(self.nonlin)
        self.all_modules = nn.Sequential(*steps, *(reversed(after) if style.nonlin_first else after))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.all_modules(x)
        return y


class Blocks(nn.Module):
    """A chain of blocks, the first with the stride (StackedConvBlocks)."""

    def __init__(
        self, style: Style, count: int, in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes
    ) -> None:
        super().__init__()
        first = Block(style, in_channels, out_channels, kernel, stride)
        once = (1,) * style.dims
        rest = (Block(style, out_channels, out_channels, kernel, once) for _ in range(count - 1))
        self.convs = nn.Sequential(first, *rest)

    @property
    def first(self) -> Block:
        """The one with the stride."""
        block = self.convs[0]
        assert isinstance(block, Block)
        return block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(x)
        return y


class Encoder(nn.Module):
    """Stages, whose results all are kept. widths, kernels, strides: of each."""

    def __init__(self, style: Style, widths: Sequence[int], kernels: Sequence[Sizes], strides: Sequence[Sizes]) -> None:
        super().__init__()
        self.style, self.widths, self.kernels, self.strides = style, widths, kernels, strides
        self.stages = nn.Sequential(*self.made())

    def made(self) -> Iterator[nn.Module]:
        """The stages, outermost first."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = []
        for stage in self.stages:
            x = stage(x)
            kept.append(x)
        return kept


class UNetDecoder(nn.Module):
    """From the innermost stage outwards; of the layers that classify, one for each stage, the outermost alone is used.

    The upsampled features come before the skip's: DynUNet and others have it the other way round.
    """

    def __init__(self, encoder: Encoder, out_channels: int, convs: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        style, widths = encoder.style, encoder.widths
        once = (1,) * style.dims
        stages, enlarge, classify = [], [], []
        for n, count in enumerate(convs):
            below, skip = widths[-1 - n], widths[-2 - n]
            stride = sized(encoder.strides[-1 - n])
            enlarge.append(conv_transpose(style.dims)(below, skip, stride, stride, bias=style.bias))
            stages.append(Blocks(style, count, 2 * skip, skip, encoder.kernels[-2 - n], once))
            classify.append(conv(style.dims)(skip, out_channels, 1, bias=True))
        self.stages, self.transpconvs = nn.ModuleList(stages), nn.ModuleList(enlarge)
        self.seg_layers = nn.ModuleList(classify)

    def forward(self, kept: list[Tensor]) -> Tensor:
        x = kept[-1]
        inwards = zip(self.transpconvs, self.stages, reversed(kept[:-1]), strict=True)
        for enlarge, stage, skip in inwards:
            x = stage(torch.cat((enlarge(x), skip), dim=1))
        logits: Tensor = self.seg_layers[-1](x)
        return logits


def sized(sizes: Sizes) -> Any:
    """As torch's layers take sizes, whose types name the dimensions."""
    return tuple(sizes)


def check(dims: int, stages: int, **given: Sequence[object]) -> None:
    """Raise UsageError unless there is one entry for each stage (`..._up`: for each but the innermost)."""
    for name, values in given.items():
        wanted = stages - name.endswith("_up")
        if len(values) != wanted:
            raise UsageError(f"{name} has {len(values)} entries: expected {wanted} for {stages} stages")
    for name in ("kernels", "strides"):
        if not all(isinstance(sizes, Sequence) and len(sizes) == dims for sizes in given[name]):
            raise UsageError(f"{name} are {list(given[name])}: expected {dims} sizes for each stage")
    if stages < 2:
        raise UsageError(f"{stages} stages: at least 2 are needed")
