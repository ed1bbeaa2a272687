"""Where a segment lies, and what the image's values are within it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Pixels, Plane, Vector
from medseg.dicom.series import Stack
from medseg.inference.labels import Box, LabelPlane, boxes
from medseg.inference.planes import LabelSpool

UNITS: Final = {"CT": "HU"}
"""Of what modality's values are in. Those of MR have none; those of PET are in what the series says (PS3.3 C.8.9.1)."""


@dataclass(frozen=True)
class SegmentStatistics:
    """Of one segment; all None where nothing was found.

    mean, sd: of the image's values in the modality's unit (`unit_of`), each voxel counted once; sd of the population.
    centroid_mm: LPS (patient coordinates), each voxel counted by its volume.
    """

    mean: float | None = None
    sd: float | None = None
    centroid_mm: tuple[float, float, float] | None = None


class Mask(NamedTuple):
    """Voxels of a plane: those of a box that are inside."""

    box: Box
    inside: NDArray[np.bool_]


def unit_of(stack: Stack) -> str | None:
    """Of the values that the slices of a stack are read in; None where they have none, or it is not known."""
    instance = stack.slices[0].instance
    if stack.series.modality == "PT" and instance is not None:
        return str(instance.header.get("Units", "")) or None
    return UNITS.get(stack.series.modality) if instance is not None else None


def statistics_of(labels: LabelSpool) -> tuple[SegmentStatistics, ...]:
    """Of each segment, from labels that are final and the slices that they lie on.

    Slices with labels are read once more, one after the other: memory does not grow with their number.
    Raises UndecodablePixels.
    """
    sums = _Sums(len(labels.segments))
    numbers = [segment.number for segment in labels.segments]
    for k, (labelled, slice_) in enumerate(zip(labels, labels.stack.slices, strict=True)):
        if labelled.any():
            values = slice_.read()
            for index, mask in _masks(labelled, numbers, exclusive=labels.exclusive):
                sums.add(index, mask, values, slice_.plane, labels.stack.voxel_ml(k))
    return sums.end()


def _masks(labelled: LabelPlane, numbers: Sequence[int], *, exclusive: bool) -> Iterator[tuple[int, Mask]]:
    """Of each segment in a plane its index, and where it is."""
    if not exclusive:
        found = ((index, box, plane[box] != 0) for index, plane in enumerate(labelled) for box in boxes(plane).values())
    else:
        index_of = {number: index for index, number in enumerate(numbers)}
        found = ((index_of[label], box, labelled[box] == label) for label, box in boxes(labelled).items())
    return ((index, Mask(box, inside)) for index, box, inside in found)


class _Sums:
    """Of each segment: voxels, mean and squared deviations so far (Chan, Golub, LeVeque 1979), volume, moments."""

    def __init__(self, count: int) -> None:
        self._voxels = np.zeros(count)
        self._mean, self._squares = np.zeros(count), np.zeros(count)
        self._volume, self._moments = np.zeros(count), np.zeros((count, 3))

    def add(self, index: int, mask: Mask, values: Pixels, plane: Plane, voxel_ml: float) -> None:
        """What a plane has of a segment."""
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

    def end(self) -> tuple[SegmentStatistics, ...]:
        return tuple(
            SegmentStatistics(
                float(self._mean[index]),
                float(np.sqrt(self._squares[index] / count)),
                (float(centre[0]), float(centre[1]), float(centre[2])),
            )
            if count
            else SegmentStatistics()
            for index, count in enumerate(self._voxels)
            for centre in [self._moments[index] / (self._volume[index] or 1.0)]
        )


def _place(plane: Plane, row: float, column: float) -> Vector:
    """Of a point in a plane: LPS mm (PS3.3 equation C.7.6.2.1-1)."""
    down, across = plane.spacing_mm
    return plane.position_mm + row * down * plane.column_direction + column * across * plane.row_direction
