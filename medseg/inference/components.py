"""Pieces of segments, and background that lies within them, found in planes that pass one at a time.

    plane n-1   . a a . .      parts of the plane (8-connected), a and b here, ...
    plane n     . . . b b      ... are one piece where they touch in three dimensions (26-connected)

    plane n     . a a a .      background of the plane (4-connected) that is closed in by a part is a pocket, p; it is
                . a p a .      a hole, unless the pockets that lie above and below it (6-connected) lead into the open
                . a a a .

Each plane is looked at in two dimensions, in the box around each segment; what touches what is remembered as edges of a
graph, whose connected components are what would be found in the volume. Of planes, only the one before is held.

Background that no part closes in within its plane is in the open, since it reaches the border of the image straight on;
so is everything beyond the first and the last plane. That is `scipy.ndimage.binary_fill_holes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medseg.inference.labels import Box, LabelPlane, boxes

T = TypeVar("T", bound=np.generic)
Numbers = NDArray[np.intp]
Mask = NDArray[np.bool_]

_TOUCHING = np.ones((3, 3), dtype=bool)  # sides and corners
_NONE = np.zeros(0, np.intp)
_NO_EDGES = np.zeros((0, 2), np.intp)


def parts_of(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """8-connected parts of a plane, numbered from 1 in the order of their first voxel, and how many they are."""
    numbered, count = ndimage.label(mask, structure=_TOUCHING)
    return numbered, int(count)


def pockets_of(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """4-connected background of a plane that does not reach its border, numbered from 1, and how many there are."""
    if min(mask.shape) < 3 or mask.all():
        return np.zeros(mask.shape, np.int32), 0
    background, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.maximum(background[1:-1, 1:-1] - 1, 0), int(count) - 1  # 1 is what surrounds the plane


def joined(count: int, *edges: NDArray[np.intp]) -> Numbers:
    """The connected component, from 0, of each of `count` nodes; edges: (n, 2) of nodes."""
    ends = np.concatenate([_NO_EDGES, *edges])
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


@dataclass(frozen=True, eq=False)
class Regions:
    """Parts, or pockets, of all planes: plane by plane, in each by segment, then in the order of their numbers.

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
class Census:
    """What was found in all planes.

    shape: of the volume. piece: of each part. low, high: (segments, 3), first and last voxel (plane, row, column) of
    the box around each segment, low > high where there is none of it. pocket_edges: (n, 2) pockets that lie one above
    the other. open_pockets: those that lie above or below what is open. inner_edges: (n, 2), a part and a pocket side
    by side. airy: parts side by side with what is open within their plane.
    """

    shape: tuple[int, int, int]
    parts: Regions
    piece: Numbers
    low: Numbers
    high: Numbers
    pockets: Regions
    pocket_edges: Numbers
    open_pockets: Numbers
    inner_edges: Numbers
    airy: Mask

    @property
    def segments(self) -> int:
        return len(self.low)


@dataclass(eq=False)
class _Layer:
    """An image of labels, of the plane that was seen last.

    box: around the labels that are looked for, with a margin of one voxel. labels, parts: what is in it; parts are
    numbered from 1 through all planes. pocket_keys: segment * voxels of a plane + place in the plane, ascending, of
    each voxel of a pocket; pockets: which pocket.
    """

    image: LabelPlane
    box: Box = (slice(0, 0), slice(0, 0))
    labels: LabelPlane = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    parts: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    pocket_keys: Numbers = field(default_factory=lambda: _NONE)
    pockets: Numbers = field(default_factory=lambda: _NONE)


class Survey:
    """Finds pieces while planes pass: `add` planes in their order or against it, then `end`.

    numbers: of the segments. exclusive: planes are (rows, columns) of these numbers, else (segments, rows, columns) of
    0 and 1. holes: whether they are looked for.
    """

    def __init__(self, numbers: Sequence[int], *, exclusive: bool, holes: bool = False) -> None:
        self._exclusive, self._holes = exclusive, holes
        self._segments: list[dict[int, int]] = (  # of each image of a plane: label -> index
            [{number: index for index, number in enumerate(numbers)}]
            if exclusive
            else [{1: index} for index in range(len(numbers))]
        )
        self._label = np.array(numbers if exclusive else [1] * len(numbers), np.uint8)
        self._before: list[_Layer | None] = [None] * len(self._segments)
        self._size = (0, 0)
        self._planes = 0
        self._parts, self._pockets = _Gathered(), _Gathered()
        self._low = np.full((len(numbers), 3), np.iinfo(np.intp).max, np.intp)
        self._high = np.full((len(numbers), 3), -1, np.intp)
        self._part_edges: list[Numbers] = []
        self._pocket_edges: list[Numbers] = []
        self._inner_edges: list[Numbers] = []
        self._open: list[Numbers] = []
        self._airy: list[Mask] = []

    def add(self, plane: LabelPlane) -> None:
        """The next plane, which must not change until the one after it has been added."""
        images = plane[None] if self._exclusive else plane
        self._size = (int(images.shape[1]), int(images.shape[2]))
        for at, image in enumerate(images):
            before, layer = self._before[at], self._numbered(image, self._segments[at])
            if before is not None:
                self._part_edges.append(_touching_parts(before, layer))
            if self._holes:
                self._join_pockets(layer, before)
                if before is not None:
                    self._join_pockets(before, layer)
            self._before[at] = layer
        self._planes += 1

    def end(self) -> Census:
        """What was found in all planes."""
        for layer in self._before:
            if layer is not None:
                self._join_pockets(layer, None)
        return Census(
            (self._planes, *self._size),
            self._parts.all(),
            joined(self._parts.count, *self._part_edges),
            self._low,
            self._high,
            self._pockets.all(),
            np.concatenate([_NO_EDGES, *self._pocket_edges]),
            np.concatenate([_NONE, *self._open]),
            np.concatenate([_NO_EDGES, *self._inner_edges]),
            np.concatenate([np.zeros(0, np.bool_), *self._airy]),
        )

    def _numbered(self, image: LabelPlane, segments: dict[int, int]) -> _Layer:
        """Parts and pockets of an image, numbered and counted."""
        places = {label: place for label, place in boxes(image).items() if label in segments}
        if not places:
            return _Layer(image)
        (top, bottom), (left, right) = (
            (min(place[axis].start for place in places.values()), max(place[axis].stop for place in places.values()))
            for axis in (0, 1)
        )
        shape = bottom - top + 2, right - left + 2
        layer = _Layer(image, (slice(top - 1, bottom + 1), slice(left - 1, right + 1)))
        layer.labels, layer.parts = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
        keys: list[Numbers] = [_NONE]
        pockets: list[Numbers] = [_NONE]
        for label in sorted(places, key=segments.__getitem__):
            segment, (rows, columns) = segments[label], places[label]
            mask = image[rows, columns] == label
            parts, count = parts_of(mask)
            first = self._parts.add(segment, self._planes, parts, count)
            self._low[segment] = np.minimum(self._low[segment], (self._planes, rows.start, columns.start))
            self._high[segment] = np.maximum(self._high[segment], (self._planes, rows.stop - 1, columns.stop - 1))
            inside = (
                slice(rows.start - top + 1, rows.stop - top + 1),
                slice(columns.start - left + 1, columns.stop - left + 1),
            )
            np.copyto(layer.labels[inside], np.uint8(label), where=mask)
            np.copyto(layer.parts[inside], parts + np.int32(first), where=mask)
            if self._holes:
                inner = self._numbered_pockets(segment, mask, parts, first, count)
                if inner is not None:
                    j, i = np.nonzero(inner)
                    place = (j + rows.start) * image.shape[1] + i + columns.start
                    keys.append(segment * image.size + place)
                    pockets.append(np.asarray(inner[j, i] - 1, np.intp))
        layer.pocket_keys, layer.pockets = np.concatenate(keys), np.concatenate(pockets)
        return layer

    def _numbered_pockets(
        self, segment: int, mask: Mask, parts: NDArray[np.int32], first: int, count: int
    ) -> NDArray[np.int32] | None:
        """Pockets numbered from 1 through all planes; None where there are none. Notes what lies beside each part."""
        inner, many = pockets_of(mask)
        if many == 0:
            self._airy.append(np.ones(count, np.bool_))
            return None
        beside = _side_by_side(parts, inner)
        first_pocket = self._pockets.add(segment, self._planes, inner, many)
        airy = np.zeros(count, np.bool_)
        airy[beside[beside[:, 1] == 0, 0] - 1] = True
        self._airy.append(airy)
        self._inner_edges.append(beside[beside[:, 1] > 0] + np.array([first - 1, first_pocket - 1], np.intp))
        return np.where(inner > 0, inner + np.int32(first_pocket), np.int32(0))

    def _join_pockets(self, layer: _Layer, other: _Layer | None) -> None:
        """Join pockets with what lies at their place in the plane above or below; beyond the last there is the open."""
        if other is None:
            self._open.append(np.unique(layer.pockets))
            return
        if not layer.pockets.size:
            return
        segment, place = np.divmod(layer.pocket_keys, layer.image.size)
        at = np.searchsorted(other.pocket_keys, layer.pocket_keys)
        is_pocket = at < len(other.pocket_keys)
        is_pocket[is_pocket] = other.pocket_keys[at[is_pocket]] == layer.pocket_keys[is_pocket]
        is_open = ~is_pocket & (other.image.reshape(-1)[place] != self._label[segment])
        self._open.append(np.unique(layer.pockets[is_open]))
        self._pocket_edges.append(_distinct(layer.pockets[is_pocket], other.pockets[at[is_pocket]]))


class _Gathered:
    """Regions that become more, plane by plane."""

    def __init__(self) -> None:
        self.count = 0
        self._columns: list[tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.int32]]] = []

    def add(self, segment: int, plane: int, numbered: NDArray[np.int32], count: int) -> int:
        """Count the voxels of regions 1 .. count; how many regions there were before these."""
        if count == 1:
            voxels = np.array([np.count_nonzero(numbered)], np.int32)
        else:
            voxels = np.bincount(numbered.reshape(-1), minlength=count + 1)[1:].astype(np.int32)
        self._columns.append((np.full(count, segment, np.uint16), np.full(count, plane, np.int32), voxels))
        before, self.count = self.count, self.count + count
        return before

    def all(self) -> Regions:
        columns = zip(*self._columns, strict=True) if self._columns else ((), (), ())
        return Regions(*(np.concatenate([_NONE, *column]) for column in columns))


def _touching_parts(below: _Layer, above: _Layer) -> Numbers:
    """(n, 2) parts, from 0, of one label that touch in two planes, by faces, edges or corners."""
    rows, columns = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(below.box, above.box, strict=True)
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return _NO_EDGES

    def cut(layer: _Layer, of: NDArray[T]) -> NDArray[T]:
        (top, left) = (side.start for side in layer.box)
        return of[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

    labels, its = cut(above, above.labels), cut(below, below.labels)
    parts, its_parts = cut(above, above.parts), cut(below, below.parts)
    straight = (labels == its) & (labels > 0)
    # Along a row most are like the one before.
    changed = straight.copy()
    same = (parts[:, 1:] == parts[:, :-1]) & (its_parts[:, 1:] == its_parts[:, :-1])
    changed[:, 1:] &= ~(straight[:, :-1] & same)
    lower, upper = [its_parts[changed]], [parts[changed]]
    # Only a voxel with another label below can touch a part askew that its neighbours do not touch straight on.
    j, i = np.nonzero((labels > 0) & ~straight)
    if j.size:
        its, its_parts = np.pad(its, 1), np.pad(its_parts, 1)
        for down, right in product((0, 1, 2), repeat=2):
            same = its[j + down, i + right] == labels[j, i]
            lower.append(its_parts[j + down, i + right][same])
            upper.append(parts[j, i][same])
    return _distinct(np.concatenate(lower), np.concatenate(upper)) - 1


def _side_by_side(parts: NDArray[np.int32], inner: NDArray[np.int32]) -> Numbers:
    """(n, 2) numbers of parts, and of the pockets beside them in a row; 0 for what is open.

    That suffices: whatever region of space lies around a piece, or within it, or around a region within it, touches it
    at its first voxel along the rows, and around that voxel it is one region.
    """
    parts, inner = np.pad(parts, ((0, 0), (1, 1))), np.pad(inner, ((0, 0), (1, 1)))
    sides = (np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :-1], np.s_[:, 1:])
    edge = [(parts[one] > 0) & (parts[beside] == 0) for one, beside in sides]
    return _distinct(
        np.concatenate([parts[one][at] for (one, _), at in zip(sides, edge, strict=True)]),
        np.concatenate([inner[beside][at] for (_, beside), at in zip(sides, edge, strict=True)]),
    )


def _distinct(a: NDArray[np.integer], b: NDArray[np.integer]) -> Numbers:
    """(n, 2): which a occurs with which b."""
    if not a.size:
        return _NO_EDGES
    a, b = a.astype(np.int64), b.astype(np.int64)
    base = int(b.max()) + 1
    keys = a * base + b
    keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]  # most are like the one before
    return np.stack(np.divmod(np.unique(keys), base), axis=1)
