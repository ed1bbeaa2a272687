"""Resampling that leaves a zero exactly where MONAI leaves one.

MONAI samples in float64, at coordinates that miss whole numbers by rounding errors: beside a voxel of 100, one of 0
that stays where it is becomes 1e-12, and is no longer blank to a step that asks what is not zero. Which voxels do
depends on the last bit of every coordinate, so here coordinates are made in MONAI's own operations (`SpatialResample`,
`to_norm_affine`, `affine_grid`), and sampled in float64 where values of both signs can cancel out. It costs more than
`resample`, and only recipes that ask for what is not zero after a resampling (`Recipe.zeros_matter`) take this way.

    theta   [-1, 1] of the new grid -> [-1, 1] of the old one, 4x4, model axes
    place   ((theta @ (x, y, z, 1) + 1) * size - 1) / 2     voxels, along the axis of the slices
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg.bundle.recipe import Interpolation, Resample
from medseg.dicom.instance import Vector
from medseg.inference.grids.grid import Axes, ModelFrame, between, parallel
from medseg.inference.grids.resample import InPlane, Taps, brought_inside


@dataclass(frozen=True, eq=False)
class Sampler:
    """From the grid `old` to `new`, whose axes are parallel, slice by slice in stored order (k, j, i).

    turned: slices of both grids are counted from their other ends.
    """

    step: Resample
    old: ModelFrame
    new: ModelFrame
    turned: bool = False

    @staticmethod
    def between(old: ModelFrame, new: ModelFrame, step: Resample) -> Sampler | None:
        """None for grids or an interpolation that this way is not for."""
        fits = step.interpolation is Interpolation.LINEAR and parallel(old, new)
        return Sampler(step, old, new) if fits else None

    def reversed(self) -> Sampler:
        """The same with slices counted from their other ends."""
        return replace(self, turned=not self.turned)

    def same(self, other: Sampler) -> bool:
        """To the bit."""
        mine = self.step, self.turned, self.old.shape, self.new.shape
        its = other.step, other.turned, other.old.shape, other.new.shape
        return mine == its and np.array_equal(self._theta, other._theta)

    def span(self, k: int) -> tuple[int, int]:
        """First and last old slice that new slice k is made of."""
        if self.aligned is not None:
            slices = self.aligned[0]
            return int(min(slices.lower[k], slices.upper[k])), int(max(slices.lower[k], slices.upper[k]))
        place = self._place(self._coordinates(self._number(k)))
        ends = sorted(self._stored(n) for n in self._reach(place))
        return ends[0], ends[1]

    @cached_property
    def aligned(self) -> tuple[Taps, Taps, Taps] | None:
        """Operators along the stored axes k, j, i, where no coordinate depends on another; else None."""
        if np.count_nonzero(self._theta[:3, :3] - np.diag(np.diag(self._theta[:3, :3]))):
            return None

        def along(stored: int) -> Taps:
            axis = self.new.axes.model_axis(stored)
            row, size = self._theta[axis], self.old.shape[axis]
            place = self._voxels(self._lines[axis] * row[axis] + row[3], size)
            below = np.floor(place)
            weights = np.stack([below + 1 - place, place - below], axis=1)
            within = np.stack([(below >= 0) & (below < size), (below + 1 >= 0) & (below + 1 < size)], axis=1)
            lower, upper = (np.clip(n, 0, size - 1).astype(np.int64) for n in (below, below + 1))
            result = Taps(lower, upper, weights * within, size)
            backwards = self.new.axes.flipped[axis] != (self.turned and stored == 0)
            return result.reversed() if backwards else result

        return along(0), along(1), along(2)

    def plane(self, k: int, of: Callable[[int], Tensor]) -> Tensor:
        """New slice k (C, rows, columns) out of the old ones, `of` their number; float32."""
        coordinates = self._coordinates(self._number(k))
        place = self._place(coordinates)
        below = np.floor(place)
        rows, columns = (coordinates[axis] for axis in self._in_plane)
        grid = torch.zeros((1, 1, *rows.shape, 3), dtype=torch.float64)
        grid[0, 0, :, :, 0], grid[0, 0, :, :, 1] = torch.from_numpy(columns), torch.from_numpy(rows)
        first, last = self._reach(place)
        result: Tensor | None = None
        for n in range(first, last + 1):
            weights = np.where(below == n, below + 1 - place, np.where(below + 1 == n, place - below, 0.0))
            if not weights.any():
                continue
            sampled = self._sampled(of(self._stored(n)), grid).mul_(torch.from_numpy(weights))
            result = sampled if result is None else result.add_(sampled)
        if result is None:  # outside the old grid, where there are zeros
            result = torch.zeros((of(self._stored(first)).shape[0], *rows.shape))
        return _as_stored(result.float(), self.new.axes)

    def _sampled(self, plane: Tensor, grid: Tensor) -> Tensor:
        """(C, j, i) at `grid`: (C, *in-plane model axes), float64."""
        image = _as_seen(plane, self.old.axes).double().contiguous()[None, :, None]
        align, pad = self.step.align_corners, str(self.step.padding)
        return functional.grid_sample(image, grid, "bilinear", pad, align_corners=align)[0, :, 0]

    # ---- numbers of slices: stored, or along the model's axis

    @cached_property
    def _axis(self) -> int:
        return self.new.axes.model_axis(0)

    @cached_property
    def _in_plane(self) -> tuple[int, int]:
        first, second = (axis for axis in range(3) if axis != self._axis)
        return first, second

    def _backwards(self) -> bool:
        return self.new.axes.flipped[self._axis] != self.turned

    def _number(self, k: int) -> int:
        return self.new.shape[self._axis] - 1 - k if self._backwards() else k

    def _stored(self, n: int) -> int:
        return self.old.shape[self._axis] - 1 - n if self._backwards() else n

    def _reach(self, place: Vector) -> tuple[int, int]:
        last = self.old.shape[self._axis] - 1
        low, high = int(np.floor(place.min())), int(np.floor(place.max())) + 1
        return min(max(low, 0), last), min(max(high, 0), last)

    # ---- coordinates, each operation as MONAI's, in its order

    @cached_property
    def _theta(self) -> Vector:
        align = self.step.align_corners
        there, back = _to_unit(self.old.shape, align), np.linalg.inv(_to_unit(self.new.shape, align))
        map_ = torch.from_numpy(between(self.old, self.new))
        theta: Vector = (torch.from_numpy(there) @ map_ @ torch.from_numpy(back)).numpy()
        return theta

    @cached_property
    def _lines(self) -> tuple[Vector, Vector, Vector]:
        """Of each model axis, the places of its voxels in [-1, 1] (affine_grid)."""
        x, y, z = (_line(size, self.step.align_corners) for size in self.new.shape)
        return x, y, z

    def _coordinates(self, n: int) -> list[Vector]:
        """Where the voxels of slice n along the model's axis lie on the old grid's three axes, in [-1, 1]."""
        lines: list[Vector] = []
        for axis, line in enumerate(self._lines):
            if axis == self._axis:
                lines.append(line[n : n + 1, None])
            else:
                lines.append(line[:, None] if axis == self._in_plane[0] else line[None, :])
        shape = tuple(self.new.shape[axis] for axis in self._in_plane)
        x, y, z = lines
        unit = np.ones(shape)
        return [(((z * row[2] + y * row[1]) + x * row[0]) + row[3]) * unit for row in self._theta[:3]]

    def _place(self, coordinates: list[Vector]) -> Vector:
        """Along the axis of the slices, in voxels (grid_sample's unnormalize, then its padding)."""
        return self._voxels(coordinates[self._axis], self.old.shape[self._axis])

    def _voxels(self, given: Vector, size: int) -> Vector:
        align = self.step.align_corners
        place: Vector = (given + 1) / 2 * (size - 1) if align else ((given + 1) * size - 1) / 2
        return brought_inside(place, size, self.step.padding, align)


class Sampling:
    """New slices by a sampler, one after another. of: old slices (C, j, i) by their number."""

    def __init__(self, sampler: Sampler, of: Callable[[int], Tensor]) -> None:
        self.sampler, self._of = sampler, of
        self._in_plane = InPlane(*sampler.aligned[1:]) if sampler.aligned else None
        self._ready: dict[int, Tensor] = {}  # old slices at the new rows and columns

    def plane(self, k: int) -> Tensor:
        """New slice k (C, rows, columns), float32."""
        if self.sampler.aligned is None or self._in_plane is None:
            return self.sampler.plane(k, self._of)
        slices, in_plane = self.sampler.aligned[0], self._in_plane
        pair = zip((slices.lower[k], slices.upper[k]), slices.weights[k], strict=True)
        parts = {int(n): float(weight) for n, weight in pair if weight} or {int(slices.lower[k]): 0.0}
        self._ready = {n: self._ready[n] if n in self._ready else in_plane(_fit(self._of(n))) for n in parts}
        (first, weight), *others = ((self._ready[n], weight) for n, weight in parts.items())
        result = first * weight
        for other, weight in others:
            result = torch.add(result, other, alpha=weight)
        return result.float()


def _fit(plane: Tensor) -> Tensor:
    """In a precision in which weighted sums are zero where they are in float64.

    Without negative values that is where every part is zero, in float32, too; else parts can cancel out.
    """
    return plane if float(plane.min()) >= 0 else plane.double()


def _to_unit(shape: tuple[int, int, int], align: bool) -> Vector:
    """4x4: voxels to [-1, 1] (normalize_transform)."""
    size = np.array(shape, dtype=float)
    ends = np.where(size <= 1.0, 2.0, size) - 1.0 if align else size
    matrix = np.diag([*(2.0 / ends), 1.0])
    matrix[:3, 3] = -1.0 if align else 1.0 / size - 1.0
    return matrix


def _line(size: int, align: bool) -> Vector:
    if size == 1:
        return np.zeros(1)
    ends: Vector = torch.linspace(-1, 1, size, dtype=torch.float64).numpy()
    return ends if align else ends * (size - 1) / size


def _as_seen(plane: Tensor, axes: Axes) -> Tensor:
    """(C, j, i) -> (C, *the model's two axes in the plane)."""
    flips = [1 + n for n, stored in enumerate((1, 2)) if axes.flipped[axes.model_axis(stored)]]
    plane = plane.flip(flips) if flips else plane
    return plane.mT if axes.model_axis(1) > axes.model_axis(2) else plane


def _as_stored(plane: Tensor, axes: Axes) -> Tensor:
    """Undoes `_as_seen`."""
    plane = plane.mT if axes.model_axis(1) > axes.model_axis(2) else plane
    flips = [1 + n for n, stored in enumerate((1, 2)) if axes.flipped[axes.model_axis(stored)]]
    return plane.flip(flips) if flips else plane.contiguous()
