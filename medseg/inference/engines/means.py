"""Means of whole windows, by halves.

OpenVINO (2026.4) adds the voxels of a channel up one after the other, in single precision: of two million, as a window
of 128^3 has, the sum is off by what it likes, and an instance normalisation with it. A mean of means of eight is exact
to the last bits, and as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MeanOfMeans(nn.Module):
    """Computes what an instance normalisation does, which keeps no statistics."""

    def __init__(self, of: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self._flat, self._eps, self._affine = isinstance(of, nn.InstanceNorm2d), of.eps, of.affine
        self.weight, self.bias = of.weight, of.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> the same."""
        away = x - self._mean(x)
        scale = torch.rsqrt(self._mean(away * away) + self._eps)
        if not self._affine:
            return away * scale
        channels = (1, -1, *(1,) * (x.ndim - 2))
        return away * (scale * self.weight.reshape(channels)) + self.bias.reshape(channels)

    def _mean(self, x: Tensor) -> Tensor:
        pool = functional.avg_pool2d if self._flat else functional.avg_pool3d
        while max(x.shape[2:]) > 1:
            x = pool(x, [2 if size % 2 == 0 else size for size in x.shape[2:]])
        return x


def in_means(network: nn.Module) -> nn.Module:
    """The network, with its instance normalisations replaced. It is changed."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # whatever names one has, under each of them
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and not child.track_running_stats:
                setattr(parent, name, MeanOfMeans(child))
    return network
