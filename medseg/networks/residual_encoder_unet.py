"""nnU-Net's U-Net with a residual encoder (the ResEnc plans)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from medseg.networks.nnunet_layers import Block, Blocks, Encoder, Sizes, Style, UNetDecoder, check, sized


class ResidualEncoderUNet(nn.Module):
    """A stem and stages of residual blocks, a plain decoder: (B, C, *S) -> (B, K, *S) for S that all strides divide.

    Isensee et al.: nnU-Net Revisited, MICCAI 2024, arXiv:2404.09556. Blocks are ResNet-D's (He et al. 2019,
    arXiv:1812.01187): the skip is pooled, then mixed.

    Arguments as those of `PlainConvUNet`; blocks: of each stage, two convolutions each. stem: its width.
    Parameters are named as nnU-Net's.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        kernels: Sequence[Sizes],
        strides: Sequence[Sizes],
        blocks: Sequence[int],
        convs_up: Sequence[int],
        stem: int | None = None,
        **style: Any,
    ) -> None:
        super().__init__()
        check(spatial_dims, len(widths), kernels=kernels, strides=strides, blocks=blocks, convs_up=convs_up)
        made = Style(spatial_dims, **style)
        self.encoder = _Encoder(made, in_channels, stem or widths[0], widths, kernels, strides, blocks)
        self.decoder = UNetDecoder(self.encoder, out_channels, convs_up)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


class _Residual(nn.Module):
    """Two convolutions, their result added to what came in (BasicBlockD)."""

    def __init__(self, style: Style, in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes) -> None:
        super().__init__()
        once = (1,) * style.dims
        self.conv1 = Block(style, in_channels, out_channels, kernel, stride)
        self.conv2 = Block(style, out_channels, out_channels, kernel, once, last=True)
        self.nonlin2 = style.activate() if style.slope is not None else nn.Identity()
        skip: list[nn.Module] = []
        if any(step != 1 for step in stride):
            skip.append((nn.AvgPool2d if style.dims == 2 else nn.AvgPool3d)(sized(stride), sized(stride)))
        if in_channels != out_channels:
            skip.append(Block(style, in_channels, out_channels, once, once, bias=False, last=True))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))
        return y


class _Residuals(nn.Module):
    """A chain of residual blocks, the first with the stride."""

    def __init__(
        self, style: Style, count: int, in_channels: int, out_channels: int, kernel: Sizes, stride: Sizes
    ) -> None:
        super().__init__()
        once = (1,) * style.dims
        first = _Residual(style, in_channels, out_channels, kernel, stride)
        rest = (_Residual(style, out_channels, out_channels, kernel, once) for _ in range(count - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


class _Encoder(Encoder):
    def __init__(
        self,
        style: Style,
        in_channels: int,
        stem: int,
        widths: Sequence[int],
        kernels: Sequence[Sizes],
        strides: Sequence[Sizes],
        blocks: Sequence[int],
    ) -> None:
        self._stem, self._blocks = stem, blocks
        super().__init__(style, widths, kernels, strides)
        self.stem = Blocks(style, 1, in_channels, stem, kernels[0], (1,) * style.dims)

    def made(self) -> Iterator[nn.Module]:
        rows = zip((self._stem, *self.widths), self.widths, self.kernels, self.strides, self._blocks, strict=False)
        for before, width, kernel, stride, count in rows:
            yield _Residuals(self.style, count, before, width, kernel, stride)

    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(self.stem(x))
