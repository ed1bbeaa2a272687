"""nnU-Net's sliding window: spread evenly, weighted, summed in half precision in the order of the windows.

size 10, window 4, step 0.5       ceil((10 - 4) / 2) + 1 = 4 windows, 2 voxels apart
size 11, window 4, step 0.5       ceil((11 - 4) / 2) + 1 = 5 windows, 1.75 apart: 0, 2, 4, 5, 7
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

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


def window_scores(voxels: Tensor, model: NnUNet, network: Network, tick: Callable[[int, int], None]) -> Tensor:
    """Scores (K, z, y, x) in half of a prepared volume (C, z, y, x). tick: called with windows done, and of how many.

    The sums are half, too, as nnU-Net's are: what is added to them is rounded window by window.
    """
    before = padding(voxels.shape[1:], model.patch)
    padded = torch.nn.functional.pad(voxels, [n for pair in reversed(before) for n in pair])
    room = tuple(padded.shape[1:])
    weights = importance(model.patch) if model.gaussian else torch.ones((1, 1, 1), dtype=torch.half)
    total = torch.zeros((model.labels.heads, *room), dtype=torch.half)
    weight = torch.zeros(room, dtype=torch.half)
    windows = places(room, model.patch, model.step)
    for number, (place, window) in enumerate(_cut(padded, windows), 1):
        scores = network(window)[0].cpu()
        if model.gaussian:
            scores = scores * weights
        total[(slice(None), *place)] += scores
        weight[place] += weights
        tick(number, len(windows))
    del padded
    total /= weight
    within = tuple(slice(low, size - high) for (low, high), size in zip(before, room, strict=True))
    return total[(slice(None), *within)]


def _cut(padded: Tensor, windows: Sequence[Place]) -> Iterator[tuple[Place, Tensor]]:
    for place in windows:
        yield place, padded[(slice(None), *place)][None].contiguous()
