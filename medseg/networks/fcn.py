"""Fully convolutional networks: a classifier slid over the image, its coarse scores refined by finer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import UsageError
from medseg.networks.layers import Norm, conv, conv_transpose, crop, initialise, linear_kernel, max_pool, stages, unit

STRIDES: Final = (2, 4, 8, 16, 32)  # at which VGG's stages end; the scores of pool4 and pool3 are the skips


class FCN(nn.Module):
    """FCN-32s, FCN-16s and FCN-8s on VGG16: (B, C, *S) -> (B, K, *S), any S.

    VGG16's dense layers become convolutions, so the classifier scores every 32nd voxel. Deconvolutions, born as linear
    interpolation, bring scores back up; on the way FCN-16s adds those of pool4, FCN-8s also those of pool3.
    Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation, CVPR 2015, arXiv:1411.4038;
    Simonyan, Zisserman: Very deep convolutional networks, ICLR 2015, arXiv:1409.1556.

    The paper pads the image by 100 and crops; here convolutions pad, pools round up, and what comes up is cropped.

    spatial_dims: 2 or 3. in_channels, out_channels: C and K.
    stride: of the finest scores used: 32, 16 or 8.
    widths, depths: channels and convolutions of VGG's five stages. head, head_kernel: channels of fc6 and fc7, and
    the width of fc6's kernel (VGG's in 3D would be 719 million weights). norm: None is VGG; a training from scratch
    wants one. dropout: behind fc6 and fc7.
    Raises UsageError for another stride, another number of stages or of dimensions.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "widths": (8, 16, 32, 64, 64),
        "depths": (1, 1, 2, 2, 2),
        "head": 128,
        "head_kernel": 3,
        "norm": "batch",
        "dropout": 0.1,
    }

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int = 8,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        head: int = 4096,
        head_kernel: int = 7,
        norm: Norm | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise UsageError(f"stride is {stride}: an FCN's is 8, 16 or 32")
        if len(widths) != len(STRIDES):
            raise UsageError(f"{len(widths)} widths: VGG has {len(STRIDES)} stages")
        self.skips = [i for i in (3, 2) if STRIDES[i] >= stride]
        self.stages = stages(spatial_dims, in_channels, widths, depths, norm=norm)
        self.pool = max_pool(spatial_dims)(2, ceil_mode=True)
        self.head = nn.Sequential(
            unit(spatial_dims, widths[-1], head, head_kernel, norm=norm, bias=True),
            nn.Dropout(dropout),
            unit(spatial_dims, head, head, 1, norm=norm, bias=True),
            nn.Dropout(dropout),
        )
        self.score = conv(spatial_dims)(head, out_channels, 1)
        self.skip_scores = nn.ModuleList(conv(spatial_dims)(widths[i], out_channels, 1) for i in self.skips)
        self.doublings = nn.ModuleList(Deconvolution(spatial_dims, out_channels, 2) for _ in self.skips)
        self.last = Deconvolution(spatial_dims, out_channels, stride)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        features = x
        for convolutions in self.stages:
            features = self.pool(convolutions(features))
            pooled.append(features)
        scores = self.score(self.head(features))
        for i, score, double in zip(self.skips, self.skip_scores, self.doublings, strict=True):
            finer = score(pooled[i])
            scores = crop(double(scores), finer.shape[2:]) + finer
        return crop(self.last(scores), x.shape[2:])


class Deconvolution(nn.Module):
    """A learned upsampling, born as linear interpolation: (B, K, *S) -> (B, K, *(factor * S)).

    The edge is repeated first, so that it too interpolates and a window shows no dark rim. factor is even.
    """

    def __init__(self, dims: int, channels: int, factor: int) -> None:
        super().__init__()
        self.rim = (1, 1) * dims
        self.deconv = conv_transpose(dims)(
            channels, channels, 2 * factor, stride=factor, padding=factor + factor // 2, bias=False
        )
        with torch.no_grad():
            nn.init.zeros_(self.deconv.weight)
            self.deconv.weight[range(channels), range(channels)] = linear_kernel(dims, factor).to(self.deconv.weight)

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.deconv(functional.pad(x, self.rim, mode="replicate"))
        return up
