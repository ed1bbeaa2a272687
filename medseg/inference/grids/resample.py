"""Resampling: per axis where the grids are parallel, plane by plane through the affine where they are not.

A resampled voxel on a parallel grid is a weighted sum along each axis on its own, so an axis has an operator, which
makes each new sample of two old ones at most, and a volume is taken through three of them. Coordinates are made in
float64, weights and voxels are float32. Voxel centres are at whole numbers; index 0 of both grids lies on the same
point unless the map says otherwise (MONAI Spacing's convention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medseg.bundle.recipe import Interpolation, Padding, Resample
from medseg.dicom.instance import Vector
from medseg.inference.grids.grid import ModelFrame, between

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Taps:
    """For each new sample along an axis the two old ones it is made of, and their weights.

    lower, upper: (n,) indices on the old axis. weights: (n, 2), float64. old: size of the old axis.
    step: from one new sample to the next, in old ones. turned: both axes are counted from their other ends; samples are
    still mixed in the order in which they were, so that they have the same bits.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weights: Vector
    old: int
    step: float = 1.0
    turned: bool = False

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def dense(self) -> bool:
        """Whether old samples serve several new ones: what is done to each is better done before."""
        return self.step < 1 - 1e-6

    @property
    def identity(self) -> bool:
        """Whether the new axis is the old one."""
        same = len(self) == self.old and np.array_equal(self.lower, np.arange(self.old))
        return bool(same and np.allclose(self.weights[:, 0], 1.0, atol=1e-6))

    def reversed(self) -> Taps:
        """The same with both axes counted from their other ends."""
        last = self.old - 1
        lower, upper = last - self.upper[::-1], last - self.lower[::-1]
        return Taps(lower, upper, self.weights[::-1, ::-1], self.old, self.step, not self.turned)

    def mix(self, of: Callable[[int], Tensor], k: int) -> Tensor:
        """New sample k out of the old ones, `of` their number."""
        pair = [(int(self.lower[k]), float(self.weights[k, 0])), (int(self.upper[k]), float(self.weights[k, 1]))]
        (first, here), (second, there) = reversed(pair) if self.turned else pair
        return blend(of(first), of(second), here, there)

    def begins_like(self, other: Taps, count: int) -> bool:
        """Whether the first `count` new samples are made as the other's, to the bit (weights count as float32)."""
        return (
            min(len(self), len(other)) >= count
            and np.array_equal(self.lower[:count], other.lower[:count])
            and np.array_equal(self.upper[:count], other.upper[:count])
            and np.array_equal(self.weights[:count].astype(np.float32), other.weights[:count].astype(np.float32))
            and (self.dense, self.turned) == (other.dense, other.turned)
        )


def taps(
    coordinates: Vector, old: int, interpolation: Interpolation, pad: Padding, *, align_corners: bool = False
) -> Taps:
    """The operator that samples an axis of `old` voxels at `coordinates` (n,), as grid_sample does along one axis.

    `align_corners` matters to Padding.REFLECTION alone: about voxel centres if true, else about outer edges.
    """
    place = brought_inside(coordinates, old, pad, align_corners)
    below = np.rint(place) if interpolation is Interpolation.NEAREST else np.floor(place)
    # A whole number missed by rounding error would need the plane after it: take it as whole.
    near = np.rint(place)
    exact = np.abs(place - near) < 1e-9
    below = np.where(exact, near, below)
    share = np.where(exact, 0.0, place - below) if interpolation is Interpolation.LINEAR else np.zeros_like(place)
    weights = np.stack([1.0 - share, share], axis=1)
    inside = np.stack([(below >= 0) & (below < old), (below + 1 >= 0) & (below + 1 < old)], axis=1)
    lower = np.clip(below, 0, old - 1).astype(np.int64)
    upper = np.clip(below + (share > 0), 0, old - 1).astype(np.int64)
    step = float(coordinates[1] - coordinates[0]) if len(coordinates) > 1 else 1.0
    return Taps(lower, upper, weights * inside, old, step)


def places(step: float, first: float, new: int, old: int) -> Vector:
    """first + step * (0 .. new-1) on an axis of `old` voxels, computed as MONAI does, rounding errors included.

    Half-way places are common (resampling by two), and there the last bit decides which voxel is the nearest:
    to agree, coordinates take the way through grid_sample's units of -1 .. 1 (monai to_norm_affine, affine_grid).
    """
    into = np.array([[2 / old, 1 / old - 1], [0, 1]])
    out_of = np.linalg.inv(np.array([[2 / new, 1 / new - 1], [0, 1]]))
    normal = into @ np.array([[step, first], [0, 1]]) @ out_of
    base = torch.linspace(-1, 1, new, dtype=torch.float64).numpy() * (new - 1) / new if new > 1 else np.zeros(1)
    result: Vector = ((base * normal[0, 0] + normal[0, 1] + 1) * old - 1) / 2
    return result


def axis_taps(
    old: ModelFrame,
    new: ModelFrame,
    interpolation: Interpolation,
    pad: Padding,
    *,
    align_corners: bool,
    at: Vector | None = None,
) -> tuple[Taps, Taps, Taps]:
    """Operators from `old` to `new`, whose axes are parallel, for the stored axes k, j, i.

    at: the slices of the new grid wanted, as places on its k axis; all of them by default.
    """
    matrix = between(old, new)

    def along(stored: int) -> Taps:
        axis = new.axes.model_axis(stored)
        step, first, size = float(matrix[axis, axis]), float(matrix[axis, 3]), new.shape[axis]
        flipped = new.axes.flipped[axis]
        wanted = np.arange(size, dtype=float)
        if stored == 0 and at is not None:
            wanted = size - 1 - at[::-1] if flipped else at
        # Plain, so that a slice lies where it lies whatever the number of slices ...
        on_old = first + step * wanted
        if interpolation is Interpolation.NEAREST:  # ... but for half-way places, where the last bit decides
            whole = np.rint(wanted).astype(int)
            exact = np.abs(wanted - whole) < 1e-6
            on_old = np.where(exact, places(step, first, size, old.shape[axis])[np.clip(whole, 0, size - 1)], on_old)
        result = taps(on_old, old.shape[axis], interpolation, pad, align_corners=align_corners)
        return result.reversed() if flipped else result

    return along(0), along(1), along(2)


def brought_inside(place: Vector, size: int, pad: Padding, align_corners: bool) -> Vector:
    """Coordinates brought back into an axis of `size` voxels; left as they are for zeros outside."""
    if pad is Padding.ZEROS:
        return place
    if pad is Padding.REFLECTION:
        edge = 0.0 if align_corners else 0.5
        span = max(size - 1 + 2 * edge, 1e-9)
        turns, rest = np.divmod(np.abs(place + edge), span)
        place = np.where(turns % 2 == 0, rest, span - rest) - edge
    return np.clip(place, 0.0, size - 1.0)


def resample_slices(volume: Tensor, along: Taps) -> Tensor:
    """(C, old, j, i) -> (C, new, j, i)."""
    result = torch.empty((volume.shape[0], len(along), *volume.shape[2:]), dtype=volume.dtype, device=volume.device)
    for k in range(len(along)):
        result[:, k] = along.mix(lambda old: volume[:, old], k)
    return result


def blend(first: Tensor, second: Tensor, here: float, there: float) -> Tensor:
    """The weighted sum of two slices; the first itself where it has all the weight."""
    weighted = first if here == 1.0 else first * here
    return weighted if there == 0.0 else torch.add(weighted, second, alpha=there)


@dataclass(frozen=True, eq=False)
class InPlane:
    """Operators along rows and columns, in the planes' own precision; None keeps them as they are."""

    rows: Taps | None
    columns: Taps | None
    _on: dict[tuple[torch.device, torch.dtype], tuple[Pairs | None, Pairs | None]] = field(default_factory=dict)

    @staticmethod
    def of(rows: Taps, columns: Taps) -> InPlane:
        return InPlane(None if rows.identity else rows, None if columns.identity else columns)

    def __call__(self, planes: Tensor) -> Tensor:
        """(C, j, i) -> (C, new j, new i)."""
        place = planes.device, planes.dtype
        if place not in self._on:
            self._on[place] = _pairs(self.rows, *place), _pairs(self.columns, *place)
        rows, columns = self._on[place]
        if columns is not None:
            lower, upper, here, there = columns
            given, planes = planes, planes.new_empty(*planes.shape[:2], len(lower))
            for old, new in _pieces(given, planes):
                torch.gather(old, 2, lower.expand(*new.shape), out=new)
                new.mul_(here).add_(old.gather(2, upper.expand(*new.shape)).mul_(there))
        if rows is not None:
            lower, upper, here, there = rows
            given, planes = planes, planes.new_empty(planes.shape[0], len(lower), planes.shape[2])
            for old, new in _pieces(given, planes):
                torch.index_select(old, 1, lower, out=new)
                new.mul_(here[:, None]).add_(old.index_select(1, upper).mul_(there[:, None]))
        return planes


Pairs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""An operator on a device: indices of the old samples `lower` and `upper`, and their weights, each (n,)."""


def _pairs(along: Taps | None, device: torch.device, dtype: torch.dtype) -> Pairs | None:
    if along is None:
        return None
    given = along.lower, along.upper, *along.weights.T
    lower, upper, here, there = (torch.from_numpy(column.copy()).to(device) for column in given)
    return lower, upper, here.to(dtype), there.to(dtype)


def _pieces(old: Tensor, new: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Channel by channel, so that what lies between stays in a CPU's cache; all at once on a GPU."""
    size = 1 if old.device.type == "cpu" else len(old)
    return zip(torch.split(old, size), torch.split(new, size), strict=True)


def resample_separable(volume: Tensor, axes: tuple[Taps, Taps, Taps]) -> Tensor:
    """(C, k, j, i) -> (C, *new) along the three stored axes; the volume itself where nothing changes.

    Nothing but the result is made: a new slice is blended and then brought to its rows and columns, or the other way
    round where there are more new slices than old ones and each old one serves several.
    """
    slices, rows, columns = axes
    if slices.identity and rows.identity and columns.identity:
        return volume
    in_plane = InPlane.of(rows, columns)
    shape = (volume.shape[0], len(slices), len(rows), len(columns))
    result = torch.empty(shape, dtype=volume.dtype, device=volume.device)
    if not slices.dense:
        for k in range(len(slices)):
            result[:, k] = in_plane(slices.mix(lambda old: volume[:, old], k))
        return result
    pair: dict[int, Tensor] = {}
    for k, (lower, upper) in enumerate(zip(slices.lower.tolist(), slices.upper.tolist(), strict=True)):
        pair = {old: pair[old] if old in pair else in_plane(volume[:, old]) for old in (lower, upper)}
        result[:, k] = slices.mix(pair.__getitem__, k)
    return result


def span_of_plane(matrix: Vector, k: float, shape: tuple[int, int], old: int) -> tuple[int, int]:
    """First and last old slice that new plane k of (rows, columns) needs through `matrix` (new to old index)."""
    j, i = shape[0] - 1, shape[1] - 1
    corners = np.array([[k, row, column, 1.0] for row in (0, j) for column in (0, i)])
    reach = corners @ matrix[0]
    low, high = int(np.floor(reach.min() - 1e-6)), int(np.ceil(reach.max() + 1e-6))
    return min(max(low, 0), old - 1), min(max(high, 0), old - 1)


def resample_plane(
    slab: Tensor,
    first: int,
    matrix: Vector,
    k: float,
    shape: tuple[int, int],
    depth: int,
    interpolation: Interpolation,
    pad: Padding,
    *,
    align_corners: bool = False,
) -> Tensor:
    """New plane k (C, rows, columns) of a grid that may lie in any way to the old one, which has `depth` slices.

    slab: (C, d, j, i), old slices first..first+d-1, enough for `span_of_plane`; matrix: new to old index, stored order.
    """
    rows, columns = shape
    at_j = np.arange(rows)[:, None, None] * matrix[:3, 1]
    at_i = np.arange(columns)[None, :, None] * matrix[:3, 2]
    place = at_j + at_i + (matrix[:3, 0] * k + matrix[:3, 3])  # (rows, columns, 3): old index (k, j, i)
    for axis, size in enumerate((depth, *slab.shape[2:])):
        place[..., axis] = brought_inside(place[..., axis], size, pad, align_corners)
    place[..., 0] -= first
    scaled = (2.0 * place + 1.0) / np.array(slab.shape[1:]) - 1.0  # grid_sample's units with align_corners=False
    grid = torch.from_numpy(scaled[None, None, :, :, ::-1].astype(np.float32)).to(slab.device)
    outside = "zeros" if pad is Padding.ZEROS else "border"
    return functional.grid_sample(slab[None], grid, str(interpolation), outside, align_corners=False)[0, :, 0]


@dataclass(frozen=True, eq=False)
class Across:
    """New planes of (rows, columns) = `shape` that may lie in any way to the old slices, `depth` of them.

    matrix: new to old index, stored order.
    """

    step: Resample
    matrix: Vector
    shape: tuple[int, int]
    depth: int

    def span(self, k: int) -> tuple[int, int]:
        """First and last old slice that new plane k is made of."""
        return span_of_plane(self.matrix, k, self.shape, self.depth)

    def plane(self, slab: Tensor, first: int, k: int) -> Tensor:
        """New plane k (C, rows, columns) out of old slices (C, d, j, i), from number `first` on."""
        step = self.step
        return resample_plane(
            slab,
            first,
            self.matrix,
            k,
            self.shape,
            self.depth,
            step.interpolation,
            step.padding,
            align_corners=step.align_corners,
        )


def resample_affine(volume: Tensor, matrix: Vector, shape: Shape, step: Resample) -> Tensor:
    """(C, k, j, i) -> (C, *shape) through `matrix` (new to old index), one plane at a time."""
    across = Across(step, matrix, shape[1:], volume.shape[1])
    result = torch.empty((volume.shape[0], *shape), dtype=volume.dtype, device=volume.device)
    for k in range(shape[0]):
        low, high = across.span(k)
        result[:, k] = across.plane(volume[:, low : high + 1], low, k)
    return result
