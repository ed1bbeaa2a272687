"""Pieces of segments, and background that lies within them, found in planes that pass one at a time.

    plane n-1   . a a . .      parts of the plane (8-connected), a and b here, ...
    plane n     . . . b b      ... are one piece where they touch in three dimensions (26-connected)

    plane n     . a a a .      background of the plane (4-connected) that is closed in by a part is a cavity, p; it is
                . a p a .      a hole, unless the cavities that lie above and below it (6-connected) lead into the open
                . a a a .

Each plane is looked at in two dimensions, by its runs (`runs`); what touches what is remembered as edges of a graph,
whose connected components are what would be found in the volume. Of planes, only the one before is held.

Background that no part closes in within its plane is in the open, since it reaches the border of the image straight on;
so is everything beyond the first and the last plane. That is `scipy.ndimage.binary_fill_holes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.inference.gathered import Gathered
from medseg.inference.labels import LabelPlane, boxes
from medseg.inference.pieces.runs import NONE, Numbers, Runs, distinct, joined, runs_of, touching

Mask = NDArray[np.bool_]

_TOUCHING = np.ones((3, 3), dtype=bool)  # sides and corners


def parts_of(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """8-connected parts of a plane, numbered from 1 in the order of their first voxel, and how many they are."""
    numbered, count = ndimage.label(mask, structure=_TOUCHING)
    return numbered, int(count)


def cavities_of(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """4-connected background of a plane that does not reach its border, numbered from 1, and how many there are."""
    if min(mask.shape) < 3 or mask.all():
        return np.zeros(mask.shape, np.int32), 0
    background, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.maximum(background[1:-1, 1:-1] - 1, 0), int(count) - 1  # 1 is what surrounds the plane


@dataclass(frozen=True, eq=False)
class Regions:
    """Parts, or cavities, of all planes: plane by plane, in each by segment, then in the order of their numbers.

    segment: its index. plane: in the order in which planes came. voxels: how many.
    """

    segment: Numbers
    plane: Numbers
    voxels: Numbers

    def __len__(self) -> int:
        return len(self.segment)

    def of(self, plane: int, segment: int) -> slice:
        """Where those of one segment in one plane are."""
        begin, end = np.searchsorted(self.plane, [plane, plane + 1])
        first, last = np.searchsorted(self.segment[begin:end], [segment, segment + 1])
        return slice(int(begin + first), int(begin + last))


@dataclass(frozen=True, eq=False)
class Components:
    """What was found in all planes.

    shape: of the volume. piece: of each part. low, high: (segments, 3), first and last voxel (plane, row, column) of
    the box around each segment, low > high where there is none of it. cavity_edges: (n, 2) cavities that lie one above
    the other. open_cavities: those that lie above or below what is open. inner_edges: (n, 2), a part and a cavity side
    by side. airy: parts side by side with what is open within their plane.
    """

    shape: tuple[int, int, int]
    parts: Regions
    piece: Numbers
    low: Numbers
    high: Numbers
    cavities: Regions
    cavity_edges: Numbers
    open_cavities: Numbers
    inner_edges: Numbers
    touches_outside: Mask

    @property
    def segments(self) -> int:
        return len(self.low)


@dataclass(frozen=True, eq=False)
class _Layer:
    """An image of labels, of the plane that was seen last.

    runs: whose labels are segments, by index. part: of each run, numbered from 0 through all planes. pocket_keys:
    segment * voxels of a plane + place in the plane, ascending, of each voxel of a cavity; cavities: which cavity.
    """

    image: LabelPlane
    runs: Runs
    part: Numbers
    cavity_keys: Numbers
    cavities: Numbers


class ComponentFinder:
    """Finds pieces while planes pass: `add` planes in their order or against it, then `end`.

    numbers: of the segments. exclusive: planes are (rows, columns) of these numbers, else (segments, rows, columns) of
    0 and 1. holes: whether they are looked for.
    """

    def __init__(self, numbers: Sequence[int], *, exclusive: bool, holes: bool = False) -> None:
        self._exclusive, self._holes = exclusive, holes
        self._label = np.array(numbers if exclusive else [1] * len(numbers), np.uint8)
        # Of each image of a plane: the segment, by its index, that a value means
        self._tables = np.full((1 if exclusive else len(numbers), 256), -1, np.int16)
        self._tables[0 if exclusive else np.arange(len(numbers)), self._label] = np.arange(len(numbers))
        self._before: list[_Layer | None] = [None] * len(self._tables)
        self._size = (0, 0)
        self._planes = 0
        self._parts, self._cavities = _Found(), _Found()
        self._low = np.full((len(numbers), 3), np.iinfo(np.intp).max, np.intp)
        self._high = np.full((len(numbers), 3), -1, np.intp)
        self._part_edges, self._cavity_edges = Gathered(np.intp, 2), Gathered(np.intp, 2)
        self._inner_edges, self._open = Gathered(np.intp, 2), Gathered(np.intp)
        self._airy = Gathered(np.bool_)

    def add(self, plane: LabelPlane) -> None:
        """The next plane, which must not change until the one after it has been added."""
        images = plane[None] if self._exclusive else plane
        self._size = (int(images.shape[1]), int(images.shape[2]))
        for at, image in enumerate(images):
            before, layer = self._before[at], self._numbered(image, self._tables[at])
            if before is not None:
                self._part_edges.add(_touching_parts(before, layer))
            if self._holes:
                self._join_cavities(layer, before)
                if before is not None:
                    self._join_cavities(before, layer)
            self._before[at] = layer
        self._planes += 1

    def end(self) -> Components:
        """What was found in all planes."""
        for layer in self._before:
            if layer is not None:
                self._join_cavities(layer, None)
        return Components(
            (self._planes, *self._size),
            self._parts.all(),
            joined(self._parts.count, self._part_edges.all()),
            self._low,
            self._high,
            self._cavities.all(),
            self._cavity_edges.all(),
            self._open.all(),
            self._inner_edges.all(),
            self._airy.all(),
        )

    def _numbered(self, image: LabelPlane, table: NDArray[np.int16]) -> _Layer:
        """Parts and cavities of an image, numbered and counted."""
        runs = runs_of(image, table)
        if not len(runs):
            return _Layer(image, runs, NONE, NONE, NONE)
        part, count = runs.parts()
        segment = np.zeros(count, np.intp)
        segment[part] = runs.label
        voxels = np.bincount(part, runs.ends - runs.starts, count)
        first = self._parts.add(segment, self._planes, voxels)
        (j, left), right = np.divmod(runs.starts, runs.width), (runs.ends - 1) % runs.width
        for axis, (low, high) in enumerate(((np.full_like(j, self._planes),) * 2, (j, j), (left, right))):
            np.minimum.at(self._low[:, axis], runs.label, low)
            np.maximum.at(self._high[:, axis], runs.label, high)
        keys, cavities = self._numbered_cavities(image, segment, first) if self._holes else (NONE, NONE)
        return _Layer(image, runs, part + first, keys, cavities)

    def _numbered_cavities(self, image: LabelPlane, segment: Numbers, first: int) -> tuple[Numbers, Numbers]:
        """Where cavities are, and which, numbered from 0 through all planes. Notes what lies beside each part.

        segment: of each part of the image, ascending; first: the number of the first part.
        """
        keys, cavities, around = [NONE], [NONE], boxes(image)
        for index, count in zip(*np.unique(segment, return_counts=True), strict=True):
            rows, columns = around[int(self._label[index])]
            mask = image[rows, columns] == self._label[index]
            inner, many = cavities_of(mask)
            touches_outside = np.ones(count, np.bool_)
            if many:
                beside = _side_by_side(parts_of(mask)[0], inner)
                touches_outside[:] = False
                touches_outside[beside[beside[:, 1] == 0, 0] - 1] = True
                closed = np.array([index] * many)
                first_cavity = self._cavities.add(closed, self._planes, np.bincount(inner.reshape(-1))[1:])
                self._inner_edges.add(beside[beside[:, 1] > 0] + np.array([first - 1, first_cavity - 1], np.intp))
                j, i = np.nonzero(inner)
                keys.append(index * image.size + (j + rows.start) * image.shape[1] + i + columns.start)
                cavities.append(np.asarray(inner[j, i] + (first_cavity - 1), np.intp))
            self._airy.add(touches_outside)
            first += int(count)
        return np.concatenate(keys), np.concatenate(cavities)

    def _join_cavities(self, layer: _Layer, other: _Layer | None) -> None:
        """Join cavities with what lies at their place in the plane above or below; beyond the last is the open."""
        if other is None:
            self._open.add(np.unique(layer.cavities))
            return
        if not layer.cavities.size:
            return
        segment, place = np.divmod(layer.cavity_keys, layer.image.size)
        at = np.searchsorted(other.cavity_keys, layer.cavity_keys)
        is_cavity = at < len(other.cavity_keys)
        is_cavity[is_cavity] = other.cavity_keys[at[is_cavity]] == layer.cavity_keys[is_cavity]
        is_open = ~is_cavity & (other.image.reshape(-1)[place] != self._label[segment])
        self._open.add(np.unique(layer.cavities[is_open]))
        self._cavity_edges.add(distinct(layer.cavities[is_cavity], other.cavities[at[is_cavity]]))


class _Found:
    """Regions that become more, plane by plane."""

    def __init__(self) -> None:
        self.count = 0
        self._segment, self._plane, self._voxels = Gathered(np.uint16), Gathered(np.int32), Gathered(np.int32)

    def add(self, segment: Numbers, plane: int, voxels: NDArray[np.number]) -> int:
        """Regions of a plane, ascending by segment; how many regions there were before these."""
        self._segment.add(segment)
        self._plane.add(np.full(len(segment), plane))
        self._voxels.add(voxels)
        before, self.count = self.count, self.count + len(segment)
        return before

    def all(self) -> Regions:
        return Regions(*(column.all().astype(np.intp) for column in (self._segment, self._plane, self._voxels)))


def _touching_parts(below: _Layer, above: _Layer) -> Numbers:
    """(n, 2) parts of one segment that touch in two planes, by faces, edges or corners."""
    width = below.runs.width
    pairs = np.concatenate(list(touching(below.runs, above.runs, [-width, 0, width])))
    return distinct(below.part[pairs[:, 0]], above.part[pairs[:, 1]])


def _side_by_side(parts: NDArray[np.int32], inner: NDArray[np.int32]) -> Numbers:
    """(n, 2) numbers of parts, and of the cavities beside them in a row; 0 for what is open.

    That suffices: whatever region of space lies around a piece, or within it, or around a region within it, touches it
    at its first voxel along the rows, and around that voxel it is one region.
    """
    parts, inner = np.pad(parts, ((0, 0), (1, 1))), np.pad(inner, ((0, 0), (1, 1)))
    sides = (np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :-1], np.s_[:, 1:])
    edge = [(parts[one] > 0) & (parts[beside] == 0) for one, beside in sides]
    return distinct(
        np.concatenate([parts[one][at] for (one, _), at in zip(sides, edge, strict=True)]),
        np.concatenate([inner[beside][at] for (_, beside), at in zip(sides, edge, strict=True)]),
    )
