"""Outlines of a mask as polygons that any program fills to the same mask.

    . # # .      corners of voxels' edges, followed with the inside on the right, give loops; a polygon's points are
    . # . #      the middles of these edges, half-way between voxels in and out. So every voxel's centre is a third of
    . # # #      a voxel or more away from each outline, and no rounding moves it to the other side.

Where two voxels touch by a corner alone the inside stays connected. A hole is a part of its polygon: a channel without
width leads from its right side along the row to what bounds the inside there, which is the outline itself or a hole
further to the right. Holes as outlines of their own would be filled by programs that join all outlines of a plane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Polygon = NDArray[np.float64]
_Steps = NDArray[np.intp]

# Along the edges of a voxel, clockwise: its top to the right, its right side down, its bottom to the left, its left up.
_RIGHT_SIDE, _LEFT_SIDE = 1, 3
_BEGINS = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])  # corner (row, column), from that above and left of the voxel
_MIDDLES = np.array([(-0.5, 0.0), (0.0, 0.5), (0.5, 0.0), (0.0, -0.5)])  # from the voxel's centre


def outlines(mask: Mask) -> list[Polygon]:
    """Of each 8-connected part of a mask, (n, 2): row and column of its polygon's points, the last joined to the first.

    Even-odd and non-zero filling, at the centres of voxels, give the mask.
    """
    voxels, sides = _edges(mask)
    if not len(sides):
        return []
    follows, turns = _followers(voxels, sides, mask.shape)
    loops = _loops(follows)
    holes = [bool(turns[loop].sum() < 0) for loop in loops]
    _join_holes(loops, holes, voxels, sides, mask.shape[1])
    middles = voxels + _MIDDLES[sides]
    return [_corners(middles[loop]) for loop, hole in zip(loops, holes, strict=True) if not hole]


def _edges(mask: Mask) -> tuple[_Steps, _Steps]:
    """Edges between in and out: (n, 2) the voxel that each is of, and which of its sides."""
    padded = np.pad(mask, 1)
    beside = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    each = [np.argwhere(mask & ~other) for other in beside]
    return np.concatenate(each), np.repeat(np.arange(4), [len(voxels) for voxels in each])


def _followers(voxels: _Steps, sides: _Steps, shape: tuple[int, ...]) -> tuple[_Steps, _Steps]:
    """Of each edge the one that begins where it ends, and by what quarter turn to the right that goes on."""
    width = shape[1] + 1
    begins = (voxels + _BEGINS[sides]) @ np.array([width, 1])
    ends = (voxels + _BEGINS[(sides + 1) % 4]) @ np.array([width, 1])
    at = np.full((shape[0] + 1) * width * 4, -1, np.intp)
    at[begins * 4 + sides] = np.arange(len(sides))
    follows, turns = np.full(len(sides), -1, np.intp), np.zeros(len(sides), np.intp)
    for turn in (1, 0, -1):  # where two begin, the one to the left: it leads on to the voxel at the corner
        there = at[ends * 4 + (sides + turn) % 4]
        follows, turns = np.where(there >= 0, there, follows), np.where(there >= 0, turn, turns)
    return follows, turns


def _loops(follows: _Steps) -> list[list[int]]:
    after, seen = follows.tolist(), bytearray(len(follows))
    loops = []
    for first in range(len(after)):
        if seen[first]:
            continue
        loop, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            loop.append(edge)
            edge = after[edge]
        loops.append(loop)
    return loops


def _join_holes(loops: list[list[int]], holes: list[bool], voxels: _Steps, sides: _Steps, columns: int) -> None:
    """Put each hole into the loop that bounds the inside to the right of its right end."""
    loop_of = np.empty(len(sides), np.intp)
    for number, loop in enumerate(loops):
        loop_of[loop] = number
    right = np.flatnonzero(sides == _RIGHT_SIDE)  # in order of rows, in each of columns
    keys = voxels[right] @ np.array([columns, 1])
    bridges = []
    for number, loop in enumerate(loops):
        if holes[number]:
            here = [edge for edge in loop if sides[edge] == _LEFT_SIDE]
            bridges.append((max((int(voxels[edge, 1]), edge) for edge in here), number))
    for (_, edge), number in sorted(bridges):  # what it goes into lies further to the right, so that comes later
        opposite = int(right[np.searchsorted(keys, voxels[edge] @ np.array([columns, 1]))])
        hole, into = loops[number], loops[loop_of[opposite]]
        at, begin = into.index(opposite), hole.index(edge)
        into[at:at] = [opposite, *hole[begin:], *hole[:begin], edge]


def _corners(points: Polygon) -> Polygon:
    """Points at which the direction changes."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onward = (before * after).sum(axis=1) > 0
    turning: Polygon = points[(cross != 0) | ~onward]
    return turning
