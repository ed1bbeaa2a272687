"""Inferers of our own that a bundle may name; they run in MONAI as its own do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SliceInferer
from torch import Tensor


class SliceStackInferer(SliceInferer):  # type: ignore[misc]  # MONAI is not typed
    """A 2D network over a volume, slice by slice, each with its neighbours as channels (2.5D).

    slices: how many the network sees at once, odd, the middle one its own; beyond the first and the last slice these
        are repeated. A volume of C channels becomes windows of slices * C: all channels of the first neighbour, then
        of the next. Other arguments as MONAI's SliceInferer.
    """

    def __init__(self, slices: int, spatial_dim: int = 0, *args: Any, **kwargs: Any) -> None:
        super().__init__(spatial_dim, *args, **kwargs)
        self.slices = slices

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """inputs (B, C, x, y, z) -> the network's scores (B, K, x, y, z)."""
        stacked = neighbours(inputs, self.spatial_dim + 2, self.slices)
        return super().__call__(stacked, network, *args, **kwargs)


def neighbours(volume: Tensor, dim: int, slices: int) -> Tensor:
    """(B, C, *S) -> (B, slices * C, *S): with the slices before and after along an axis as further channels."""
    last = volume.shape[dim] - 1
    places = torch.arange(last + 1, device=volume.device)
    reach = slices // 2
    return torch.cat(
        [volume.index_select(dim, (places + away).clamp(0, last)) for away in range(-reach, reach + 1)], dim=1
    )
