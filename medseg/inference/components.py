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

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medseg.inference.labels import LabelPlane

Numbers = NDArray[np.intp]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice]

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


def boxes(plane: LabelPlane) -> list[Box | None]:
    """The box around each label of a plane; that of label n is at n - 1."""
    found: list[Box | None] = ndimage.find_objects(plane)
    return found


def joined(count: int, *edges: NDArray[np.intp]) -> Numbers:
    """The connected component, from 0, of each of `count` nodes; edges: (n, 2) of nodes."""
    ends = np.concatenate([_NO_EDGES, *edges])
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


@dataclass(frozen=True, eq=False)
class Regions:
    """Parts, or pockets, of all planes, plane by plane, in each plane by segment as `Survey` was told of them.

    segment: index of it. plane: in the order in which planes came. voxels: how many.
    """

    segment: Numbers
    plane: Numbers
    voxels: Numbers

    def __len__(self) -> int:
        return len(self.segment)

    def of(self, plane: int, segment: int) -> slice:
        """Where those of one segment in one plane are, in the order of their numbers."""
        begin, end = np.searchsorted(self.plane, [plane, plane + 1])
        first, last = np.searchsorted(self.segment[begin:end], [segment, segment + 1])
        return slice(int(begin + first), int(begin + last))


@dataclass(frozen=True, eq=False)
class Census:
    """What `Survey` has found in all planes.

    piece: of each part. low, high: (segments, 3), the box (plane, row, column) around each segment; low > high where
    there is none. pocket_edges: pockets one above the other. open_pockets: pockets that lie below the open.
    inner_edges: (part, pocket) side by side. airy: parts beside what is open within their plane.
    """

    shape: tuple[int, int, int]
    parts: Regions
    piece: Numbers
    low: Numbers
    high: Numbers
    pockets: Regions
    pocket_edges: NDArray[np.intp]
    open_pockets: Numbers
    inner_edges: NDArray[np.intp]
    airy: Mask

    @property
    def segments(self) -> int:
        return len(self.low)


class _Gathered:
    """Regions that become more, plane by plane."""

    def __init__(self) -> None:
        self.count = 0
        self._segment: list[NDArray[np.uint16]] = []
        self._plane: list[NDArray[np.int32]] = []
        self._voxels: list[NDArray[np.int32]] = []

    def add(self, segment: int, plane: int, voxels: NDArray[np.intp]) -> int:
        """The number, from 0, of the first of these."""
        first, many = self.count, len(voxels)
        self._segment.append(np.full(many, segment, np.uint16))
        self._plane.append(np.full(many, plane, np.int32))
        self._voxels.append(voxels.astype(np.int32))
        self.count += many
        return first

    def all(self) -> Regions:
        return Regions(*(np.concatenate([_NONE, *one]) for one in (self._segment, self._plane, self._voxels)))


@dataclass(eq=False)
class _Layer:
    """One image of labels in the plane that was seen last.

    values: segment index of each label that is looked for. box: around all of these, with a margin of one voxel, which
    may lie outside the plane. labels, parts: what is in it; parts are numbered from 1, through all planes.
    pocket_keys: place of each pocket voxel in the plane + voxels of a plane * segment index, ascending. pockets: whose.
    """

    values: dict[int, int]
    image: LabelPlane | None = None
    box: Box = (slice(0, 0), slice(0, 0))
    labels: LabelPlane = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    parts: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    pocket_keys: Numbers = field(default_factory=lambda: _NONE)
    pockets: Numbers = field(default_factory=lambda: _NONE)


class Survey:
    """Finds pieces while planes pass: `add` them in their order or against it, then `end`.

    numbers: of the segments. exclusive: planes are (rows, columns) of these numbers, else (segments, rows, columns) of
    0 and 1. pockets: whether to look for holes.
    """

    def __init__(self, numbers: Sequence[int], *, exclusive: bool, pockets: bool = False) -> None:
        self._exclusive, self._looks_for_pockets = exclusive, pockets
        shared = [{number: index for index, number in enumerate(numbers)}]
        self._layers = [_Layer(one) for one in (shared if exclusive else [{1: i} for i in range(len(numbers))])]
        self._labels = {index: label for layer in self._layers for label, index in layer.values.items()}
        self._planes, self._size = 0, (0, 0)
        self._parts, self._pockets = _Gathered(), _Gathered()
        self._low = np.full((len(numbers), 3), np.iinfo(np.intp).max)
        self._high = np.full((len(numbers), 3), -1)
        self._part_edges: list[NDArray[np.intp]] = []
        self._pocket_edges: list[NDArray[np.intp]] = []
        self._inner_edges: list[NDArray[np.intp]] = []
        self._open: list[Numbers] = []
        self._airy: list[Mask] = []

    def add(self, plane: LabelPlane) -> None:
        images = plane[None] if self._exclusive else plane
        self._size = (int(images.shape[1]), int(images.shape[2]))
        for number, image in enumerate(images):
            below = self._layers[number]
            self._layers[number] = layer = self._look(image, below.values)
            self._join_parts(below, layer)
            if self._looks_for_pockets:
                self._pocket_edges.append(self._join_pockets(layer, below))
                self._join_pockets(below, layer)
        self._planes += 1

    def end(self) -> Census:
        for layer in self._layers:
            self._open.append(layer.pockets)  # nothing lies above
        return Census(
            (self._planes, *self._size),
            self._parts.all(),
            joined(self._parts.count, *self._part_edges),
            self._low,
            self._high,
            self._pockets.all(),
            np.concatenate([_NO_EDGES, *self._pocket_edges]),
            np.unique(np.concatenate([_NONE, *self._open])),
            np.concatenate([_NO_EDGES, *self._inner_edges]),
            np.concatenate([np.zeros(0, bool), *self._airy]),
        )

    def _look(self, image: LabelPlane, values: dict[int, int]) -> _Layer:
        places = {
            label: place for label, place in enumerate(boxes(image), start=1) if place is not None and label in values
        }
        if not places:
            return _Layer(values, image)
        box = _around(places.values())
        rows, columns = box
        layer = _Layer(values, image, box)
        layer.labels = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        layer.parts = np.zeros(layer.labels.shape, np.int32)
        keys, numbers = [_NONE], [_NONE]
        for label in sorted(places, key=values.__getitem__):
            place, segment = places[label], values[label]
            mask = image[place] == label
            parts, count = parts_of(mask)
            first = self._parts.add(segment, self._planes, np.bincount(parts.ravel(), minlength=count + 1)[1:])
            inside = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(place, box, strict=True))
            np.copyto(layer.labels[inside], label, where=mask, casting="unsafe")
            np.copyto(layer.parts[inside], parts + (first + 1), where=mask)
            at = np.array([[self._planes, p.start, q.stop - 1] for p, q in ()] or [self._planes, *(p.start for p in place)])
            np.minimum(self._low[segment], at, out=self._low[segment])
            at = np.array([self._planes, *(p.stop - 1 for p in place)])
            np.maximum(self._high[segment], at, out=self._high[segment])
            if self._looks_for_pockets:
                key, number = self._look_into(mask, parts, count, first, segment, place)
                keys.append(key)
                numbers.append(number)
        layer.pocket_keys, layer.pockets = np.concatenate(keys), np.concatenate(numbers)
        return layer
