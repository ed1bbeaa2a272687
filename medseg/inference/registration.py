"""Whether images that are looked at together lie on each other: likely not, where one moved by a little is more alike.

    slices as they pass -> voxels of about 4 mm -> of how much one tells of the other (mutual information), as they lie
    and with one moved by 4 mm, either way along each axis

Nothing is registered, and a small error is not seen: what is asked is whether somebody should look. Memory and time are
bounded by the number of large voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.inference.labels import Flag

SHIFT_MM: Final = 4.0
#: How much more alike images must be when one is moved. Measured, see docs/channels.md.
MORE_ALIKE: Final = 1.07
_MOST: Final = 128  # large voxels along an axis
_LEVELS: Final = 32
_LEAST: Final = 0.02  # nats: images that have less in common tell nothing of how they lie
_FEWEST: Final = 4  # shifts that an axis must have room for

Levels: TypeAlias = NDArray[np.int64]


class LikelyRegistration:
    """The channels of a stack in large voxels, as its slices pass in any order."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._shape = stack, stack.shape
        wide = [
            max(round(SHIFT_MM / mm), math.ceil(n / _MOST), 1)
            for mm, n in zip(stack.spacing_mm, self._shape, strict=True)
        ]
        self._size = k, j, i = wide[0], wide[1], wide[2]
        self._mm = [n * mm for n, mm in zip(wide, stack.spacing_mm, strict=True)]
        slices, rows, columns = self._shape
        self._sums = np.zeros((len(stack.channels), slices // k, rows // j, columns // i), np.float32)
        self._seen = np.zeros(slices // k, np.int64)

    def add(self, k: int, planes: Sequence[Pixels]) -> None:
        """planes: slice k in each channel."""
        at = k // self._size[0]
        if at >= len(self._seen):
            return
        rows, columns = self._sums.shape[2:]
        j, i = self._size[1:]
        self._seen[at] += 1
        for sums, plane in zip(self._sums, planes, strict=True):
            part = plane[: rows * j, : columns * i].reshape(rows, j, columns, i)
            sums[at] += part.sum(axis=(1, 3))

    def flags(self) -> Iterator[Flag]:
        """A doubt for each channel that does not seem to lie on the stack's own images."""
        whole = self._seen == self._size[0]
        stacks = [channel.stack for channel in self._stack.channels]
        own = next((n for n, stack in enumerate(stacks) if stack and stack.slices is self._stack.slices), None)
        if own is None or not whole.any() or not self._sums.size:
            return
        reference = _levels(self._sums[own, whole])
        for n, channel in enumerate(self._stack.channels):
            if n == own or channel.stack is None:
                continue
            more = self._more_alike(reference, _levels(self._sums[n, whole]))
            if more > MORE_ALIKE:
                its = self._stack.channels[own].name
                detail = f"channel {channel.name} may not lie on channel {its}: moved by about {SHIFT_MM:g} mm it is"
                yield Flag("registration_doubtful", f"{detail} {100 * (more - 1):.0f} % more alike: look at both")

    def _more_alike(self, reference: Levels, image: Levels) -> float:
        """How many times as alike they are when the image is moved; at most 1 where they are best as they lie."""
        steps = [max(round(SHIFT_MM / mm), 1) for mm in self._mm]
        steps = [step if size > _FEWEST * step else 0 for step, size in zip(steps, image.shape, strict=True)]
        inner = [slice(step, size - step) for step, size in zip(steps, image.shape, strict=True)]
        there = reference[tuple(inner)]
        here = alike(there, image[tuple(inner)])
        moved = [here]
        for axis, way in product(range(3), (-1, 1)):
            by = way * steps[axis]
            part = slice(inner[axis].start + by, inner[axis].stop + by)
            moved.append(alike(there, image[(*inner[:axis], part, *inner[axis + 1 :])]))
        return max(moved) / here if here > 0 and max(moved) > _LEAST else 1.0


def _levels(values: NDArray[np.float32]) -> Levels:
    """Values as few whole numbers, by their 1st to 99th percentile."""
    low, high = np.percentile(values, [1, 99])
    scaled: NDArray[Any] = (values - low) / max(float(high - low), 1e-6) * (_LEVELS - 1) + 0.5
    levels: Levels = np.clip(scaled, 0, _LEVELS - 1).astype(np.int64)
    return levels


def alike(one: Levels, other: Levels) -> float:
    """Mutual information, in nats."""
    counts = np.bincount((one * _LEVELS + other).ravel(), minlength=_LEVELS * _LEVELS).reshape(_LEVELS, _LEVELS)
    joint = counts / counts.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / apart[there])).sum())
