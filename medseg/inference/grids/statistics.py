"""What an intensity step needs to know of a whole volume, gathered plane by plane.

    planes as they come -> Gathering.add -> all have come -> Gathering.settle -> the step with its numbers in place

In whatever order the planes come, the numbers are the same to the bit: counts are whole, extremes and percentiles are
voxels' own values, and the sums of planes are added exactly. Memory does not grow with the number of planes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.bundle.recipe import (
    ChannelWise,
    Intensity,
    Normalize,
    Pointwise,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    needs_whole,
)

Values: TypeAlias = NDArray[np.float32]
Again: TypeAlias = Callable[[], Iterable[Tensor]]
"""The planes once more, in any order."""

_HALF: Final = 1 << 16


class VolumeStatistics:
    """The statistics of a step, of each channel where it asks for that. Planes: (C, rows, columns) float32, finite."""

    def __init__(self, step: Intensity) -> None:
        """step: one that `Recipe.barriers` counts among those that need the whole volume."""
        self._step = step
        each = step.each if isinstance(step, ChannelWise) else (step,)
        asked = ((n, one) for n, one in enumerate(each) if one is not None and needs_whole(one))
        self._each = {n: OneStatistic(one) for n, one in asked}

    def add(self, plane: Tensor) -> None:
        """Take one plane into account."""
        for n, statistic in self._each.items():
            statistic.add(self._part(plane, n))

    def settle(self, again: Again) -> Intensity:
        """The step as it is, once all planes have come, without need of anything else."""

        def parts(n: int) -> Iterable[Tensor]:
            return (self._part(plane, n) for plane in again())

        settled = {n: statistic.settle(partial(parts, n)) for n, statistic in self._each.items()}
        if isinstance(self._step, ChannelWise):
            return ChannelWise(tuple(settled.get(n, one) for n, one in enumerate(self._step.each)))
        return settled[0]

    def _part(self, plane: Tensor, n: int) -> Tensor:
        return plane[n] if isinstance(self._step, ChannelWise) else plane


class OneStatistic:
    """The statistics of one step. Planes: float32 of any shape."""

    def __init__(self, step: Pointwise) -> None:
        self._step = step
        self._count = 0
        self._low, self._high = math.inf, -math.inf
        self._sums: list[float] = []
        self._upper = np.zeros(_HALF, np.int64)  # voxels by the upper half of their bits, in order of their values

    def add(self, plane: Tensor) -> None:
        """Take one plane into account."""
        values = _values(plane)
        match self._step:
            case ScalePercentiles():
                self._upper += np.bincount(_ordered(values) >> 16, minlength=_HALF)
            case ScaleMinMax():
                self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
            case Normalize():
                values = self._counted(values)
                self._sums.append(float(values.sum(dtype=np.float64)))
        self._count += values.size

    def settle(self, again: Again) -> Pointwise:
        """The step as it is, once all planes have come, without need of anything else."""
        match self._step:
            case ScalePercentiles() as step:
                low, high = _percentiles(self._upper, again, [step.lower, step.upper])
                b_min, b_max = step.b_min, step.b_max
                if step.relative and b_min is not None and b_max is not None:
                    wide = b_max - b_min
                    b_min, b_max = wide * (step.lower / 100.0) + b_min, wide * (step.upper / 100.0) + b_min
                return ScaleRange(low, high, b_min, b_max, step.clip)
            case ScaleMinMax() as step if self._low < self._high:
                return ScaleRange(self._low, self._high, step.minv, step.maxv, clip=False)
            case ScaleMinMax() as step:  # as MONAI's rescale_array: a flat volume times the least value
                return ScaleMinMax(None, None, None if step.minv is None else step.minv - 1.0)
            case Normalize() as step if self._count:
                mean = math.fsum(self._sums) / self._count
                deviation = 1.0 if step.divisor is not None else self._deviation(mean, again)
                given = step.subtrahend, step.divisor
                return replace(
                    step,
                    subtrahend=mean if given[0] is None else given[0],
                    divisor=(deviation or 1.0) if given[1] is None else given[1],
                )
        return ScaleMinMax(None, None, None)  # no voxel counts: nothing is changed

    def _deviation(self, mean: float, again: Again) -> float:
        squares = (np.square(self._counted(_values(plane)).astype(np.float64) - mean).sum() for plane in again())
        return math.sqrt(math.fsum(squares) / self._count)

    def _counted(self, values: Values) -> Values:
        blank_left_out = isinstance(self._step, Normalize) and self._step.nonzero
        return values[values != 0] if blank_left_out else values


def _values(plane: Tensor) -> Values:
    values: Values = plane.cpu().numpy().reshape(-1)
    return values


def _ordered(values: Values) -> NDArray[np.uint32]:
    """Numbers that are in the order of the values: their bits, turned round where the sign is set."""
    bits = (values + np.float32(0)).view(np.int32)  # no zero with a sign
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) ^ np.int32(-0x80000000)).view(np.uint32)


def _percentiles(upper: NDArray[np.int64], again: Again, percents: Sequence[float]) -> list[float]:
    """As numpy.percentile of all planes, linear between two neighbours, to the bit."""
    count = int(upper.sum())
    place = np.true_divide(np.asarray(percents), 100) * (count - 1)
    below = np.floor(place).astype(np.int64)
    ranks = np.concatenate([below, np.minimum(below + 1, count - 1)])
    before = np.cumsum(upper)
    halves = np.searchsorted(before, ranks, side="right")
    lower = {int(half): np.zeros(_HALF, np.int64) for half in halves}
    for plane in again():
        ordered = _ordered(_values(plane))
        for half, found in lower.items():
            found += np.bincount(ordered[ordered >> 16 == half] & 0xFFFF, minlength=_HALF)
    keys = []
    for rank, half in zip(ranks, halves, strict=True):
        within = rank - (before[half] - upper[half])
        keys.append(int(half) << 16 | int(np.searchsorted(np.cumsum(lower[int(half)]), within, side="right")))
    values = _of_order(np.array(keys, np.uint32))
    a, b, t = values[: len(below)], values[len(below) :], place - below
    between: Any = np.where(t >= 0.5, b - (b - a) * (1 - t), a + (b - a) * t)  # as numpy's own
    return [float(value) for value in between]


def _of_order(ordered: NDArray[np.uint32]) -> Values:
    """The values that `_ordered` made these numbers of."""
    bits = (ordered ^ np.uint32(0x80000000)).view(np.int32)
    values: Values = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    return values
