"""Samples of an axis at other places: each a mixture of two old ones, or the nearest. Voxel edges are on each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medseg.inference.nnunet.resample import Array, centres, nearest
from medseg.inference.nnunet.settled import agreed


class Mix:
    """lower, upper: the old samples of each new one. share: of the upper one, in double."""

    def __init__(self, lower: Array, upper: Array, share: Array) -> None:
        self._lower, self._upper = torch.from_numpy(lower), torch.from_numpy(upper)
        self._share = torch.from_numpy(share)
        self._plain = bool((share == 0).all())
        self._there: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, old: int, new: int, *, is_nearest: bool) -> Mix:
        place = centres(old, new)
        if is_nearest or old == new:
            lower = nearest(place, old)
            return cls(lower, lower, np.zeros(new))
        place = np.clip(place, 0, old - 1)
        lower = np.floor(place).astype(np.intp)
        share = place - lower
        return cls(lower, np.where(share == 0, lower, np.minimum(lower + 1, old - 1)), share)

    def __len__(self) -> int:
        return len(self._share)

    def pair(self, n: int) -> tuple[int, int]:
        """The old samples of new sample n."""
        return int(self._lower[n]), int(self._upper[n])

    def span(self, some: slice) -> tuple[int, int]:
        """The first old sample of some new ones, and the one behind the last."""
        return int(self._lower[some][0]), int(self._upper[some][-1]) + 1

    def mixed(self, low: Tensor, high: Tensor, n: int) -> Tensor:
        """New sample n in double, of its pair."""
        share = float(self._share[n])
        low = low.to(high.device)  # the network had to move between them
        if share == 0:
            return low.double()
        return low.double() * (1 - share) + high.double() * share

    def along(self, image: Tensor, axis: int) -> Tensor:
        """All new samples along an axis of an image, on its device."""
        lower, upper, share = self._on(image.device)
        low = image.index_select(axis, lower)
        if self._plain:
            return low
        share = share.reshape([-1 if n == axis else 1 for n in range(image.ndim)])
        return low * (1 - share) + image.index_select(axis, upper) * share

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._there:
            self._there[device] = self._lower.to(device), self._upper.to(device), self._share.to(device)
        return self._there[device]

    def at(self, some: Array, sample: Callable[[Tensor], Tensor]) -> Tensor:
        """Some new samples, (n, K). sample: gives old ones by their numbers."""
        chosen = torch.from_numpy(some)
        low = sample(self._lower[chosen])
        if self._plain:
            return low
        share = self._share[chosen][:, None]
        return low * (1 - share) + sample(self._upper[chosen]) * share

    def agreed(self, labels: Array, axis: int) -> Array:
        """What both old samples of each new one say."""
        lower, upper = self._lower.numpy(), self._upper.numpy()
        low = labels.take(lower, axis)
        return low if self._plain else agreed(low, labels.take(upper, axis))
