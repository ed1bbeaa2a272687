"""nnU-Net's sliding window: spread evenly, weighted, summed in half precision in the order of the windows.

size 10, window 4, step 0.5       ceil((10 - 4) / 2) + 1 = 4 windows, 2 voxels apart
size 11, window 4, step 0.5       ceil((11 - 4) / 2) + 1 = 5 windows, 1.75 apart: 0, 2, 4, 5, 7
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medseg.bundle.nnunet.model import NnUNet

Place: TypeAlias = tuple[slice, slice, slice]
Network: TypeAlias = Callable[[Tensor], Tensor]
"""(1, C, z, y, x) -> (1, K, z, y, x), in single."""
_MOST: float = 10.0  # weight of a window's middle


def extent(patch: Sequence[int]) -> tuple[int, int, int]:
    """A window's size along three axes: one slice where the network has two."""
    z, y, x = (1,) * (3 - len(patch)) + tuple(patch)
    return z, y, x


def padding(shape: Sequence[int], patch: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Voxels (before, after) along each axis that make room for one window; the odd one comes after."""
    missing = [max(size - count, 0) for count, size in zip(shape, extent(patch), strict=True)]
    return tuple((total // 2, total - total // 2) for total in missing)


def starts(length: int, size: int, step: float) -> list[int]:
    """Where windows begin along an axis of at least `size`; halves are rounded to even."""
    count = math.ceil((length - size) / (size * step)) + 1
    apart = (length - size) / (count - 1) if count > 1 else 0.0
    return [round(apart * number) for number in range(count)]


def places(shape: Sequence[int], patch: Sequence[int], step: float) -> list[Place]:
    """Windows over a padded volume, the last axis innermost; slice by slice where the network has two axes."""
    sizes = extent(patch)
    flat = 3 - len(patch)
    begins = [
        list(range(length)) if axis < flat else starts(length, size, step)
        for axis, (length, size) in enumerate(zip(shape, sizes, strict=True))
    ]
    return [
        (slice(z, z + sizes[0]), slice(y, y + sizes[1]), slice(x, x + sizes[2]))
        for z, y, x in itertools.product(*begins)
    ]


@lru_cache(maxsize=4)
def importance(patch: tuple[int, ...]) -> Tensor:
    """Weights of a window's voxels, in half: a Gaussian of an eighth of the window, nowhere 0."""
    point = np.zeros(patch)
    point[tuple(size // 2 for size in patch)] = 1
    weights = ndimage.gaussian_filter(point, [size / 8 for size in patch], 0, mode="constant", cval=0)
    weights /= weights.max() / _MOST
    half = torch.from_numpy(weights).half()
    half[half == 0] = half[half > 0].min()
    return half.reshape(extent(patch))


def count_windows(shape: Sequence[int], model: NnUNet) -> int:
    """Over planes of `shape` (z, y, x)."""
    padded = [sum(pair) + size for pair, size in zip(padding(shape, model.patch), shape, strict=True)]
    return len(places(padded, model.patch, model.step))


def score_planes(
    planes: Iterable[Tensor],
    shape: Sequence[int],
    model: NnUNet,
    network: Network,
    tick: Callable[[int, int], None],
    room: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Scores (K, y, x) in half of each of the planes (C, y, x), of which `shape` (z, y, x) tells how many there are, as
    soon as no window adds to them any more.

    tick: called with windows done, and of how many. room: called before more planes of scores are held.
    The sums are half, too, as nnU-Net's are: what is added to them is rounded window by window.
    """
    pads = padding(shape, model.patch)
    (before, _), *beside = pads
    padded = [low + size + high for (low, high), size in zip(pads, shape, strict=True)]
    within = tuple(slice(low, size - high) for (low, high), size in zip(beside, padded[1:], strict=True))
    windows = places(padded, model.patch, model.step)
    slab, sums = Slab(planes, pads, padded), Sums(model, padded)
    for number, (z, y, x) in enumerate(windows, 1):
        scores = network(slab.window(z, y, x))[0].cpu()
        if z.stop > sums.end:
            room()
        sums.add(scores, z, y, x)
        del scores  # as large as what the network holds
        tick(number, len(windows))
        final = windows[number][0].start if number < len(windows) else padded[0]
        for n in range(sums.first, final):
            plane = sums.take()
            if before <= n < before + shape[0]:
                yield plane[(slice(None), *within)]


class Slab:
    """The padded planes (C, y, x) under a row of windows."""

    def __init__(self, planes: Iterable[Tensor], pads: Sequence[tuple[int, int]], padded: Sequence[int]) -> None:
        (self._before, self._after), *beside = pads
        self._beside = [n for pair in reversed(beside) for n in pair]
        self._planes, self._count = iter(planes), padded[0]
        self._held: deque[Tensor] = deque()
        self._first = 0

    def window(self, z: slice, y: slice, x: slice) -> Tensor:
        """(1, C, *extent); z is never less than before."""
        while self._first + len(self._held) < z.stop:
            self._more(self._first + len(self._held))
        while self._first < z.start:
            self._held.popleft()
            self._first += 1
        return torch.stack([plane[:, y, x] for plane in self._held], dim=1)[None]

    def _more(self, number: int) -> None:
        if number >= self._count - self._after:
            self._held.append(torch.zeros_like(self._held[-1]))
            return
        plane = next(self._planes)
        if any(self._beside):
            plane = functional.pad(plane, self._beside)
        if number == 0:
            self._held.extend(torch.zeros_like(plane) for _ in range(self._before))
        self._held.append(plane)


class Sums:
    """Weighted scores of the padded planes from `first` on, and their weights."""

    def __init__(self, model: NnUNet, padded: Sequence[int]) -> None:
        self.first = 0
        self._heads, self._shape, self._blend = model.labels.heads, tuple(padded[1:]), model.gaussian
        self._weights = importance(model.patch) if model.gaussian else torch.ones(extent(model.patch)).half()
        self._singles = self._weights.float()
        self._held: deque[tuple[Tensor, Tensor]] = deque()

    @property
    def end(self) -> int:
        return self.first + len(self._held)

    def add(self, scores: Tensor, z: slice, y: slice, x: slice) -> None:
        """scores: (K, *extent), of the window there."""
        while self.end < z.stop:
            held = torch.zeros((self._heads, *self._shape), dtype=torch.half)
            self._held.append((held, torch.zeros(self._shape, dtype=torch.half)))
        for n in range(z.start, z.stop):
            total, weight = self._held[n - self.first]
            one = scores[:, n - z.start]
            total[:, y, x] += one * self._singles[n - z.start] if self._blend else one
            weight[y, x] += self._weights[n - z.start]

    def take(self) -> Tensor:
        """The first plane of scores, which goes."""
        total, weight = self._held.popleft()
        self.first += 1
        return total.div_(weight)
