"""Pyramid pooling: every voxel is told what its surroundings are like, at four scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medseg.networks.layers import Norm, PooledContext, conv, initialise, resize, unit
from medseg.networks.resnet import ResNet


class PSPNet(nn.Module):
    """PSPNet on a dilated ResNet-50: (B, C, *S) -> (B, K, *S), any S.

    Deep features are averaged over grids of 1, 2, 3 and 6 cells per axis, brought back up and laid beside the
    features themselves, so that the classifier knows the scene as well as the place.
    Zhao, Shi, Qi, Wang, Jia: Pyramid scene parsing network, CVPR 2017, arXiv:1612.01105.

    The cells divide the window, not the image: the same voxel in another window has another context.

    spatial_dims: 2 or 3. in_channels, out_channels: C and K.
    output_stride: of the deep features: 8 or 16; 4 and 32 also work. bins: cells per axis, one pool each.
    head: channels of the classifier's hidden layer. blocks, width, norm: of `ResNet`. dropout: before the classifier.
    Raises UsageError as `ResNet` does.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"width": 8, "blocks": (1, 1, 2, 1), "head": 64, "norm": "group"}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        output_stride: int = 8,
        bins: Sequence[int] = (1, 2, 3, 6),
        head: int = 512,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        norm: Norm | None = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(
            spatial_dims, in_channels, blocks=blocks, width=width, output_stride=output_stride, norm=norm
        )
        deep = self.backbone.deep_channels
        share = deep // len(bins)  # together the pools weigh as much as the features
        self.pyramid = nn.ModuleList(PooledContext(spatial_dims, deep, share, n, norm) for n in bins)
        self.head = nn.Sequential(
            unit(spatial_dims, deep + share * len(bins), head, norm=norm),
            nn.Dropout(dropout),
            conv(spatial_dims)(head, out_channels, 1),
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        _, deep = self.backbone(x)
        context = [pooled(deep) for pooled in self.pyramid]
        return resize(self.head(torch.cat([deep, *context], dim=1)), x.shape[2:])
