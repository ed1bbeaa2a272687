"""Runs: maximal stretches of one label along the rows of a plane, from which all that touches is found.

    . a a . b b        starts  1  4  8 11          rows are one place longer than the plane's, so that
    . a . . a b        ends    3  6  9 13          none goes on in the next row and none touches around the edge
                       labels  a  b  a  ...

A plane has some hundred times fewer runs than voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medseg.inference.labels import LabelPlane

Numbers = NDArray[np.intp]
NONE = np.zeros(0, np.intp)
NO_EDGES = np.zeros((0, 2), np.intp)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs row by row, in each from left to right. width: places in a row. label: of each, from 0 on."""

    width: int
    starts: Numbers
    ends: Numbers
    label: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    def parts(self) -> tuple[Numbers, int]:
        """The part, from 0, that each run is of, and how many parts there are: runs of a label that touch by sides or
        corners. Parts are in the order of their labels, those of a label in the order of their first voxel."""
        part = joined(len(self), *touching(self, self, [self.width]))
        _, first = np.unique(part, return_index=True)
        order = np.lexsort((first, self.label[first]))
        place = np.empty(len(order), np.intp)
        place[order] = np.arange(len(order))
        return place[part], len(order)


def runs_of(plane: LabelPlane, table: NDArray[np.int16]) -> Runs:
    """The runs of a plane (rows, columns). table: (256,), the label of each value; below 0: none. Zeros have none."""
    rows, width = plane.shape[0], plane.shape[1] + 1
    row = np.zeros(1 + rows * width, np.uint8)
    row[1:].reshape(rows, width)[:, :-1] = plane
    changes = np.flatnonzero(row[1:] != row[:-1])
    before, after = row[changes], row[changes + 1]
    # A run begins where another, or nothing, ends, so both are in the same order.
    starts, ends, label = changes[after > 0], changes[before > 0], table[after[after > 0]].astype(np.intp)
    if label.min(initial=0) < 0:
        known = label >= 0
        starts, ends, label = starts[known], ends[known], label[known]
    return Runs(width, starts, ends, label)


def touching(some: Runs, others: Runs, shifts: list[int]) -> Iterator[Numbers]:
    """(n, 2): which of some and which of the others have the same label and touch, by sides or corners, once the first
    are moved by so many places; for each shift. Both are of planes of one width."""
    for shift in shifts:
        first = np.searchsorted(others.ends, some.starts + (shift - 1), side="right")
        many = np.searchsorted(others.starts, some.ends + (shift + 1), side="left") - first
        a = np.repeat(np.arange(len(some)), many)
        b = np.arange(len(a)) + np.repeat(first - np.cumsum(many) + many, many)
        same = some.label[a] == others.label[b]
        yield np.stack([a[same], b[same]], axis=1)


def joined(count: int, *edges: Numbers) -> Numbers:
    """The connected component, from 0, of each of `count` nodes; edges: (n, 2) of nodes."""
    ends = np.concatenate([NO_EDGES, *edges])
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


def distinct(a: NDArray[np.integer], b: NDArray[np.integer]) -> Numbers:
    """(n, 2): which a occurs with which b."""
    if not a.size:
        return NO_EDGES
    a, b = a.astype(np.int64), b.astype(np.int64)
    base = int(b.max()) + 1
    keys = a * base + b
    keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]  # most are like the one before
    return np.stack(np.divmod(np.unique(keys), base), axis=1)
