"""DeepLab: the same features read through kernels spread to several rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from medseg.networks.layers import Norm, PooledContext, conv, initialise, resize, separable_unit, unit
from medseg.networks.resnet import ResNet

SMALL: Final[Mapping[str, Any]] = {
    "width": 8,
    "blocks": (1, 1, 2, 1),
    "output_stride": 8,
    "rates": (1, 2, 3),
    "head": 64,
    "norm": "group",
    "dropout": 0.1,
}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, C, *S) -> (B, K, *S).

    A single-voxel kernel, one 3-wide kernel per rate, and the mean of the window, joined by a single-voxel kernel.

        rate 1  . . . x x x . . .        rate 3  x . . x . . x . .
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        separable: bool,
        norm: Norm | None,
        dropout: float,
    ) -> None:
        super().__init__()
        atrous = separable_unit if separable else unit
        self.branches = nn.ModuleList(
            [
                unit(dims, in_channels, out_channels, 1, norm=norm),
                *(atrous(dims, in_channels, out_channels, dilation=rate, norm=norm) for rate in rates),
                PooledContext(dims, in_channels, out_channels, 1, norm),
            ]
        )
        self.project = nn.Sequential(
            unit(dims, len(self.branches) * out_channels, out_channels, 1, norm=norm), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
        return joined


def at_stride(rates: Sequence[int], output_stride: int) -> list[int]:
    """Rates are told for an output stride of 16; on a grid twice as fine the same reach is twice the rate."""
    return [max(1, rate * 16 // output_stride) for rate in rates]


class DeepLabV3(nn.Module):
    """DeepLab v3 on a dilated ResNet-50: (B, C, *S) -> (B, K, *S), any S.

    Strides are traded for dilation, so deep features stay dense; `ASPP` reads them at several rates at once, from
    detail to surroundings, and with the mean of the window.
    Chen, Papandreou, Schroff, Adam: Rethinking atrous convolution, 2017, arXiv:1706.05587.

    The mean is the window's, not the image's. A rate wider than the feature grid sees only padding beside its
    centre: a window wants more than 2 * rate * output_stride voxels along an axis (`rates` below are for stride 16).

    spatial_dims: 2 or 3. in_channels, out_channels: C and K.
    output_stride: of the deep features: 16 (the paper trains with it) or 8 (it evaluates with it); 4 and 32 also work.
    rates: of ASPP at output stride 16; {6, 12, 18} becomes {12, 24, 36} at 8. head: channels of ASPP and after.
    blocks, width, norm: of `ResNet`. dropout: behind ASPP.
    Raises UsageError as `ResNet` does.
    """

    SMALL: ClassVar[Mapping[str, Any]] = SMALL

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        output_stride: int = 16,
        rates: Sequence[int] = (6, 12, 18),
        head: int = 256,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        norm: Norm | None = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(
            spatial_dims, in_channels, blocks=blocks, width=width, output_stride=output_stride, norm=norm
        )
        self.aspp = ASPP(
            spatial_dims,
            self.backbone.deep_channels,
            head,
            at_stride(rates, output_stride),
            separable=False,
            norm=norm,
            dropout=dropout,
        )
        self.head = nn.Sequential(unit(spatial_dims, head, head, norm=norm), conv(spatial_dims)(head, out_channels, 1))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        _, deep = self.backbone(x)
        return resize(self.head(self.aspp(deep)), x.shape[2:])


class DeepLabV3Plus(nn.Module):
    """DeepLab v3+ on a dilated ResNet-50: (B, C, *S) -> (B, K, *S), any S.

    DeepLab v3 with a small decoder: what ASPP found is brought to stride 4 and laid beside what the first layer saw
    there, narrowed, so that borders are drawn from fine features. Kernels of ASPP and decoder are separable.
    Chen, Zhu, Papandreou, Schroff, Adam: Encoder-decoder with atrous separable convolution, ECCV 2018,
    arXiv:1802.02611.

    Parameters as `DeepLabV3`, and
    fine: channels that the fine features are narrowed to. separable: False for plain kernels.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {**SMALL, "fine": 16}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        output_stride: int = 16,
        rates: Sequence[int] = (6, 12, 18),
        head: int = 256,
        fine: int = 48,
        separable: bool = True,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        norm: Norm | None = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(
            spatial_dims, in_channels, blocks=blocks, width=width, output_stride=output_stride, norm=norm
        )
        self.aspp = ASPP(
            spatial_dims,
            self.backbone.deep_channels,
            head,
            at_stride(rates, output_stride),
            separable=separable,
            norm=norm,
            dropout=dropout,
        )
        self.narrow = unit(spatial_dims, self.backbone.fine_channels, fine, 1, norm=norm)
        refine = separable_unit if separable else unit
        self.head = nn.Sequential(
            refine(spatial_dims, head + fine, head, norm=norm),
            refine(spatial_dims, head, head, norm=norm),
            conv(spatial_dims)(head, out_channels, 1),
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        fine, deep = self.backbone(x)
        context = resize(self.aspp(deep), fine.shape[2:])
        return resize(self.head(torch.cat((context, self.narrow(fine)), dim=1)), x.shape[2:])
