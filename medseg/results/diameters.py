"""The longest diameter of a part of a slice, and the longest one perpendicular to it, as calipers take them.

Ends lie on the edges of voxels, in the middle between in and out, so that a row of n voxels is n voxels long. Calipers
span what is hollow: it is the convex hull that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from medseg.dicom.instance import Plane, Vector

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Diameters:
    """Of a part of slice k. long, short: both ends, LPS mm; short is perpendicular to long."""

    k: int
    long: tuple[Point, Point]
    short: tuple[Point, Point]

    @property
    def long_mm(self) -> float:
        return float(np.linalg.norm(np.subtract(*self.long)))

    @property
    def short_mm(self) -> float:
        return float(np.linalg.norm(np.subtract(*self.short)))


def longest_possible_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> float:
    """No diameter of what fills a box is longer."""
    if mask.size == 1:
        return max(spacing_mm)
    return float(np.hypot(mask.shape[0] * spacing_mm[0], mask.shape[1] * spacing_mm[1]))


def diameters_of(mask: NDArray[np.bool_], first: tuple[int, int], k: int, plane: Plane) -> Diameters:
    """Of a mask that is not empty, whose first voxel is `first` (row, column) of slice k."""
    hull = _hull_mm(mask, plane.spacing_mm)
    apart = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    a, b = np.unravel_index(apart.argmax(), apart.shape)
    along = (hull[b] - hull[a]) / apart[a, b]
    across = np.array([-along[1], along[0]])
    ordered = np.roll(hull, -a, axis=0)  # a is the first now, and lies lowest along the diameter, as b lies highest
    to = int(b - a) % len(hull)
    t, s = ordered @ along, ordered @ across
    one_side = np.interp(t, t[: to + 1], s[: to + 1])
    other_side = np.interp(t, np.append(t[to:], t[0])[::-1], np.append(s[to:], s[0])[::-1])
    widest = int(np.abs(one_side - other_side).argmax())
    ends = [t[widest] * along + side[widest] * across for side in (one_side, other_side)]
    return Diameters(k, _in_patient(hull[a], hull[b], first, plane), _in_patient(ends[0], ends[1], first, plane))


def _hull_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> Vector:
    """(n, 2) corners of the convex hull, one after the other: mm down and across from the centre of the first voxel."""
    points: list[Vector] = []
    for axis in (0, 1):
        lines = np.flatnonzero(mask.any(axis=1 - axis))
        inside = mask.take(lines, axis=axis) if axis == 0 else mask.take(lines, axis=axis).T
        begin, end = inside.argmax(axis=1) - 0.5, inside.shape[1] - 0.5 - inside[:, ::-1].argmax(axis=1)
        points += [np.stack([lines, at] if axis == 0 else [at, lines], axis=1) for at in (begin, end)]
    mm = np.concatenate(points) * spacing_mm
    corners: Vector = mm[ConvexHull(mm).vertices]
    return corners


def _in_patient(one: Vector, other: Vector, first: tuple[int, int], plane: Plane) -> tuple[Point, Point]:
    start = plane.position_mm + first[0] * plane.spacing_mm[0] * plane.column_direction
    start = start + first[1] * plane.spacing_mm[1] * plane.row_direction
    ends = [start + at[0] * plane.column_direction + at[1] * plane.row_direction for at in (one, other)]
    (a, b), (c, d) = ((float(x), (float(y), float(z))) for x, y, z in ends)
    return (a, *b), (c, *d)
