"""nnU-Net's plain U-Net: stages of convolutions, strided instead of pooled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from medseg.networks.nnunet_layers import Blocks, Encoder, Sizes, Style, UNetDecoder, check


class PlainConvUNet(nn.Module):
    """nnU-Net's default: (B, C, *S) -> (B, K, *S) for S that all strides together divide.

    Isensee et al.: nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature
    Methods 2021.

    spatial_dims: 2 or 3. in_channels, out_channels: C and K. widths, kernels, strides, convs: of each stage of the
    encoder, outermost first; convs_up: of the decoder, innermost first. style: `nnunet_layers.Style`.
    Parameters are named as nnU-Net's. Raises UsageError for numbers of entries that contradict each other.
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
        convs: Sequence[int],
        convs_up: Sequence[int],
        **style: Any,
    ) -> None:
        super().__init__()
        check(spatial_dims, len(widths), kernels=kernels, strides=strides, convs=convs, convs_up=convs_up)
        self.encoder = _Encoder(Style(spatial_dims, **style), in_channels, widths, kernels, strides, convs)
        self.decoder = UNetDecoder(self.encoder, out_channels, convs_up)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


class _Encoder(Encoder):
    def __init__(
        self,
        style: Style,
        in_channels: int,
        widths: Sequence[int],
        kernels: Sequence[Sizes],
        strides: Sequence[Sizes],
        convs: Sequence[int],
    ) -> None:
        self._in, self._convs = in_channels, convs
        super().__init__(style, widths, kernels, strides)

    def made(self) -> Iterator[nn.Module]:
        rows = zip((self._in, *self.widths), self.widths, self.kernels, self.strides, self._convs, strict=False)
        for before, width, kernel, stride, count in rows:
            yield nn.Sequential(Blocks(self.style, count, before, width, kernel, stride))
