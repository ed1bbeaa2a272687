"""Where segments lie, and what the image's values are within them, from planes that pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Pixels, Plane, Vector
from medseg.inference.labels import Box, LabelPlane, Within, boxes


class Mask(NamedTuple):
    """Voxels of a plane: those of a box that are inside."""

    box: Box
    inside: NDArray[np.bool_]


def _masks(labelled: LabelPlane, numbers: Sequence[int], *, exclusive: bool) -> Iterator[tuple[int, Mask]]:
    """Of each segment in a plane its index, and where it is."""
    if not exclusive:
        found = ((index, box, plane[box] != 0) for index, plane in enumerate(labelled) for box in boxes(plane).values())
    else:
        index_of = {number: index for index, number in enumerate(numbers)}
        found = ((index_of[label], box, labelled[box] == label) for label, box in boxes(labelled).items())
    return ((index, Mask(box, inside)) for index, box, inside in found)


class SegmentSums:
    """Of each segment: voxels, mean and squared deviations so far (Chan, Golub, LeVeque 1979), volume, moments.

    numbers, exclusive: see `ComponentFinder`.
    """

    def __init__(self, numbers: Sequence[int], *, exclusive: bool) -> None:
        self._numbers, self._exclusive, count = numbers, exclusive, len(numbers)
        self._voxels = np.zeros(count)
        self._mean, self._squares = np.zeros(count), np.zeros(count)
        self._volume, self._moments = np.zeros(count), np.zeros((count, 3))

    def add(self, labels: LabelPlane, values: Pixels, plane: Plane, voxel_ml: float) -> None:
        """A plane's labels, its values and where it lies."""
        for index, mask in _masks(labels, self._numbers, exclusive=self._exclusive):
            self._add(index, mask, values, plane, voxel_ml)

    def _add(self, index: int, mask: Mask, values: Pixels, plane: Plane, voxel_ml: float) -> None:
        inside = values[mask.box][mask.inside].astype(np.float64)
        volume = inside.size * voxel_ml
        row, column = (
            begin.start + float(mask.inside.sum(axis=1 - axis) @ np.arange(mask.inside.shape[axis])) / inside.size
            for axis, begin in enumerate(mask.box)
        )
        self._volume[index] += volume
        self._moments[index] += volume * _place(plane, row, column)
        count, before = inside.size, self._voxels[index]
        mean = float(inside.mean())
        squares, apart = float(((inside - mean) ** 2).sum()), mean - self._mean[index]
        self._voxels[index] = together = before + count
        self._mean[index] += apart * count / together
        self._squares[index] += squares + apart**2 * before * count / together

    def end(self) -> tuple[Within, ...]:
        return tuple(
            Within(
                float(self._mean[index]),
                float(np.sqrt(self._squares[index] / count)),
                (float(centre[0]), float(centre[1]), float(centre[2])),
            )
            if count
            else Within()
            for index, count in enumerate(self._voxels)
            for centre in [self._moments[index] / (self._volume[index] or 1.0)]
        )


def _place(plane: Plane, row: float, column: float) -> Vector:
    """Of a point in a plane: LPS mm (PS3.3 equation C.7.6.2.1-1)."""
    down, across = plane.spacing_mm
    return plane.position_mm + row * down * plane.column_direction + column * across * plane.row_direction
