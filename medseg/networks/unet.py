"""The U-Net as it was published; MONAI has its descendants, and those are used as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medseg.networks.layers import Norm, conv, conv_transpose, crop, initialise, max_pool, stage, stages


class UNet2015(nn.Module):
    """The U-Net of 2015: (B, C, *S) -> (B, K, *S), any S.

    A path down sees more and more, a path up says where; at each level the upper joins what the lower had kept.
    Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, arXiv:1505.04597; in 3D as Cicek et al. 2016, arXiv:1606.06650.

    The paper's convolutions are valid and shrink the image by 184 pixels; here they pad, and the size stays.

    spatial_dims: 2 or 3. in_channels, out_channels: C and K.
    widths: channels of each level, outermost first; two convolutions to a level. norm: None is the paper.
    dropout: at the end of the path down.
    Raises UsageError for other dimensions.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"widths": (8, 16, 32, 64), "norm": "batch", "dropout": 0.1}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        levels = list(pairwise(widths))
        self.down = stages(spatial_dims, in_channels, widths, [2] * len(widths), norm=norm)
        self.pool = max_pool(spatial_dims)(2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        self.enlarge = nn.ModuleList(conv_transpose(spatial_dims)(m, n, 2, stride=2) for n, m in levels)
        self.up = nn.ModuleList(stage(spatial_dims, (2 * n, n, n), norm=norm) for n, _ in levels)
        self.classify = conv(spatial_dims)(widths[0], out_channels, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        *outer, bottom = self.down
        kept = []
        for convolutions in outer:
            x = convolutions(x)
            kept.append(x)
            x = self.pool(x)
        x = self.dropout(bottom(x))
        inwards = zip(self.enlarge, self.up, kept, strict=True)
        for enlarge, convolutions, skip in reversed(list(inwards)):
            x = convolutions(torch.cat((skip, crop(enlarge(x), skip.shape[2:])), dim=1))
        logits: Tensor = self.classify(x)
        return logits
