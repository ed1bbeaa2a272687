"""nnU-Net's sliding window: spread evenly, weighted, summed in half precision in the order of the windows.

size 10, window 4, step 0.5       ceil((10 - 4) / 2) + 1 = 4 windows, 2 voxels apart
size 11, window 4, step 0.5       ceil((11 - 4) / 2) + 1 = 5 windows, 1.75 apart: 0, 2, 4, 5, 7
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
"""(B, C, z, y, x) -> (B, K, z, y, x), in single."""
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


@dataclass(frozen=True)
class Placing:
    """How planes and scores are held while windows run, and how many of these run together.

    up: brings a plane to where windows are cut. zeros: makes room for sums of scores. room: called before more of them
    are held.
    """

    batch: Callable[[], int] = lambda: 1
    up: Callable[[Tensor], Tensor] = lambda plane: plane
    zeros: Callable[..., Tensor] = torch.zeros
    room: Callable[[], None] = lambda: None


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
    placing: Placing = Placing(),
) -> Iterator[Tensor]:
    """Scores (K, y, x) in half of each of the planes (C, y, x), of which `shape` (z, y, x) tells how many there are, as
    soon as no window adds to them any more.

    tick: called with windows done, and of how many.
    The sums are half, too, as nnU-Net's are: what is added to them is rounded window by window.
    """
    pads = padding(shape, model.patch)
    (before, _), *beside = pads
    padded = [low + size + high for (low, high), size in zip(pads, shape, strict=True)]
    within = tuple(slice(low, size - high) for (low, high), size in zip(beside, padded[1:], strict=True))
    windows = places(padded, model.patch, model.step)
    slab, sums, done = Slab(map(placing.up, planes), pads, padded), Sums(model, padded, placing.zeros), 0
    while done < len(windows):
        some = _alike(windows, done, placing.batch())
        scores = network(slab.batch(some))
        for (z, y, x), of_window in zip(some, scores, strict=True):
            if z.stop > sums.end:
                placing.room()
            sums.add(of_window, z, y, x)
        del scores, of_window  # as large as what the network holds
        done += len(some)
        tick(done, len(windows))
        final = windows[done][0].start if done < len(windows) else padded[0]
        for n in range(sums.first, final):
            plane = sums.take()
            if before <= n < before + shape[0]:
                yield plane[(slice(None), *within)]


def _alike(windows: Sequence[Place], first: int, most: int) -> Sequence[Place]:
    """The next windows that run together, which begin at one plane."""
    z = windows[first][0].start
    return list(itertools.takewhile(lambda place: place[0].start == z, windows[first : first + most]))


class Slab:
    """The padded planes (C, y, x) under a row of windows."""

    def __init__(self, planes: Iterable[Tensor], pads: Sequence[tuple[int, int]], padded: Sequence[int]) -> None:
        (self._before, self._after), *beside = pads
        self._beside = [n for pair in reversed(beside) for n in pair]
        self._planes, self._count = iter(planes), padded[0]
        self._held: deque[Tensor] = deque()
        self._first = 0

    def batch(self, places: Sequence[Place]) -> Tensor:
        """(B, C, *extent)."""
        windows = [self._window(*place) for place in places]
        return windows[0][None] if len(windows) == 1 else torch.stack(windows)

    def _window(self, z: slice, y: slice, x: slice) -> Tensor:
        """z is never less than before."""
        while self._first + len(self._held) < z.stop:
            self._more(self._first + len(self._held))
        while self._first < z.start:
            self._held.popleft()
            self._first += 1
        if len({plane.device for plane in self._held}) > 1:  # those that came last had to stay in the machine's memory
            self._held = deque(plane.cpu() for plane in self._held)
        return torch.stack([plane[:, y, x] for plane in self._held], dim=1)

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

    def __init__(self, model: NnUNet, padded: Sequence[int], zeros: Callable[..., Tensor]) -> None:
        self.first = 0
        self._heads, self._shape, self._blend = model.labels.heads, tuple(padded[1:]), model.gaussian
        self._weights = importance(model.patch) if model.gaussian else torch.ones(extent(model.patch)).half()
        self._singles, self._zeros = self._weights.float(), zeros
        self._held: deque[tuple[Tensor, Tensor]] = deque()

    @property
    def end(self) -> int:
        return self.first + len(self._held)

    def add(self, scores: Tensor, z: slice, y: slice, x: slice) -> None:
        """scores: (K, *extent), of the window there."""
        while self.end < z.stop:
            held = self._zeros(self._heads, *self._shape, dtype=torch.half)
            self._held.append((held, torch.zeros(self._shape, dtype=torch.half, device=held.device)))
        self._weights, self._singles = self._weights.to(scores.device), self._singles.to(scores.device)
        for n in range(z.start, z.stop):
            total, weight = self._held[n - self.first]
            head = scores[:, n - z.start]
            total[:, y, x] += (head * self._singles[n - z.start] if self._blend else head).to(total.device)
            weight[y, x] += self._weights[n - z.start].to(weight.device)

    def take(self) -> Tensor:
        """The first plane of scores, which goes."""
        total, weight = self._held.popleft()
        self.first += 1
        return total.div_(weight)
