"""What a first pass has found, as boxes of voxels: pieces as planes pass, their margins, and which boxes become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medseg.bundle.catalog import grid_axes
from medseg.dicom.instance import Vector
from medseg.dicom.series import Stack
from medseg.inference.gathered import Gathered
from medseg.inference.labels import LabelPlane
from medseg.inference.pieces.runs import Numbers, Runs, joined, runs_of, touching

Triple: TypeAlias = tuple[int, int, int]
FEWEST = 3  # voxels along an axis: fewer form no volume


@dataclass(frozen=True)
class RegionBox:
    """Voxels (slice, row, column) from `low` up to `high`, which is beyond. label: of the first pass, else 0."""

    low: Triple
    high: Triple
    label: int = 0

    @property
    def shape(self) -> Triple:
        k, j, i = (high - low for low, high in zip(self.low, self.high, strict=True))
        return k, j, i

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    def meets(self, other: RegionBox) -> bool:
        both = zip(self.low, self.high, other.low, other.high, strict=True)
        return all(low < its_high and its_low < high for low, high, its_low, its_high in both)

    def with_(self, other: RegionBox) -> RegionBox:
        """The box around both."""
        (k, j, i), (z, y, x) = (
            [choice(pair) for pair in zip(mine, its, strict=True)]
            for choice, mine, its in ((min, self.low, other.low), (max, self.high, other.high))
        )
        return replace(self, low=(k, j, i), high=(z, y, x))


@dataclass(frozen=True)
class Piece:
    """One connected thing that was found (26-connected), and the box around it."""

    box: RegionBox
    volume_ml: float


class PieceFinder:
    """Finds pieces while planes (rows, columns) of labels pass, in their order. Of planes, only the one before is held.

    labels: those that count.
    """

    def __init__(self, labels: Iterable[int]) -> None:
        self._labels = sorted(labels)
        self._table = np.full(256, -1, np.int16)
        self._table[self._labels] = np.arange(len(self._labels))
        self._parts = Gathered(np.int64, 7)  # label's index, voxels, plane, first and last row and column
        self._edges = Gathered(np.intp, 2)
        self._before: tuple[Runs, Numbers] | None = None
        self._planes = self._count = 0

    def add(self, plane: LabelPlane) -> None:
        runs = runs_of(plane, self._table)
        part, count = runs.parts()
        row, left = np.divmod(runs.starts, runs.width)
        found = np.zeros((count, 7), np.int64)
        found[part, 0], found[:, 2] = runs.label, self._planes
        np.add.at(found[:, 1], part, runs.ends - runs.starts)
        found[:, [3, 5]] = np.iinfo(np.int64).max
        for column, choose, values in (
            (3, np.minimum, row),
            (4, np.maximum, row),
            (5, np.minimum, left),
            (6, np.maximum, (runs.ends - 1) % runs.width),
        ):
            choose.at(found[:, column], part, values)
        self._parts.add(found)
        numbers = part + self._count
        if self._before is not None:
            below, its = self._before
            pairs = np.concatenate(list(touching(below, runs, [-runs.width, 0, runs.width])))
            self._edges.add(np.stack([its[pairs[:, 0]], numbers[pairs[:, 1]]], axis=1))
        self._before = runs, numbers
        self._planes, self._count = self._planes + 1, self._count + count

    def end(self, voxel_ml: Sequence[float]) -> list[Piece]:
        """What was found, the largest first. voxel_ml: of each plane."""
        parts = self._parts.all()
        if not len(parts):
            return []
        piece = joined(self._count, self._edges.all())
        volume = np.bincount(piece, parts[:, 1] * np.asarray(voxel_ml)[parts[:, 2]])
        low = np.full((len(volume), 3), np.iinfo(np.int64).max)
        high = np.full((len(volume), 3), -1)
        np.minimum.at(low, piece, parts[:, [2, 3, 5]])
        np.maximum.at(high, piece, parts[:, [2, 4, 6]])
        label = np.zeros(len(volume), np.intp)
        label[piece] = parts[:, 0]
        pieces = [
            Piece(RegionBox(_triple(low[n]), _triple(high[n] + 1), self._labels[label[n]]), float(volume[n]))
            for n in range(len(volume))
        ]
        return sorted(pieces, key=lambda one: (-one.volume_ml, one.box.low))


def _triple(numbers: NDArray[np.int64]) -> Triple:
    k, j, i = (int(number) for number in numbers)
    return k, j, i


def with_margin(box: RegionBox, stack: Stack, margin_mm: Sequence[float]) -> RegionBox:
    """A box that is larger by so much along the patient's axes, as far as the image goes."""
    axes = grid_axes(stack)  # of the grid, for each of the patient's
    by_grid = [margin_mm[axes.index(axis)] for axis in range(3)]
    low, high = list(box.low), list(box.high)
    for axis, (size, spacing) in enumerate(zip(stack.shape, stack.spacing_mm, strict=True)):
        away = by_grid[axis] / spacing
        if axis == 0:  # slices may be unevenly spaced
            first, last = stack.coordinates[box.low[0]], stack.coordinates[box.high[0] - 1]
            near = _within(stack.coordinates, first - away, last + away)
            low[0], high[0] = int(near[0]), int(near[-1]) + 1
        else:
            low[axis], high[axis] = max(box.low[axis] - math.ceil(away), 0), min(box.high[axis] + math.ceil(away), size)
    return _thick_enough(replace(box, low=(low[0], low[1], low[2]), high=(high[0], high[1], high[2])), stack)


def _thick_enough(box: RegionBox, stack: Stack) -> RegionBox:
    """The box, larger where it holds too few voxels along an axis to be a volume."""
    low, high = list(box.low), list(box.high)
    for axis, size in enumerate(stack.shape):
        while high[axis] - low[axis] < min(FEWEST, size):
            low[axis], high[axis] = max(low[axis] - 1, 0), min(high[axis] + 1, size)
    return replace(box, low=(low[0], low[1], low[2]), high=(high[0], high[1], high[2]))


def about_middle(box: RegionBox, stack: Stack, size_mm: Sequence[float]) -> RegionBox:
    """The box of that size along the patient's axes about the middle of another, as far as the image goes."""
    axes = grid_axes(stack)
    low, high = list(box.low), list(box.high)
    places = [stack.coordinates, np.arange(stack.shape[1]), np.arange(stack.shape[2])]
    for axis, spacing in enumerate(stack.spacing_mm):
        middle = (places[axis][box.low[axis]] + places[axis][box.high[axis] - 1]) / 2
        half = size_mm[axes.index(axis)] / 2 / spacing
        # Voxels whose middle lies within, on both sides alike, from whichever end they are counted
        low[axis] = int(np.searchsorted(places[axis], middle - half - 1e-6))
        high[axis] = int(np.searchsorted(places[axis], middle + half + 1e-6))
    return _thick_enough(replace(box, low=_triple(np.array(low)), high=_triple(np.array(high))), stack)


def _within(coordinates: Vector, low: float, high: float) -> NDArray[np.intp]:
    """Slices from `low` to `high`, and the next one on either side where that lies between two."""
    first = int(np.searchsorted(coordinates, low + 1e-6, side="right")) - 1
    last = int(np.searchsorted(coordinates, high - 1e-6, side="left"))
    return np.arange(max(first, 0), min(last, len(coordinates) - 1) + 1)


def merged(boxes: Iterable[RegionBox], together: Callable[[RegionBox, RegionBox], bool]) -> tuple[RegionBox, ...]:
    """Boxes, of which two that belong together become the one around both, until none do. Those of other labels of
    the first pass stay apart."""
    left = list(boxes)
    while True:
        alike = ((one, other) for one, other in combinations(left, 2) if one.label == other.label)
        pair = next((pair for pair in alike if together(*pair)), None)
        if pair is None:
            return tuple(sorted(left, key=lambda box: (box.low, box.high, box.label)))
        left = [pair[0].with_(pair[1]), *(box for box in left if box not in pair)]


def share_of(boxes: Sequence[RegionBox], shape: Triple) -> float:
    """Of an image's voxels, how many lie in a box; each counts once."""
    inside = np.zeros(shape[0], np.int64)
    for k in range(shape[0]):
        here = [box for box in boxes if box.low[0] <= k < box.high[0]]
        if len(here) == 1:
            inside[k] = here[0].shape[1] * here[0].shape[2]
        elif here:
            plane = np.zeros(shape[1:], np.bool_)
            for box in here:
                plane[box.low[1] : box.high[1], box.low[2] : box.high[2]] = True
            inside[k] = np.count_nonzero(plane)
    return float(inside.sum()) / math.prod(shape)
