"""Clean-up of labels on a grid, segment by segment, without ever holding the volume.

In this order: the largest piece alone is kept, its holes are filled, pieces below the least volume are dropped.
Pieces are 26-connected. A hole is a cavity closed on all sides in three dimensions: filling slice by slice would also
close what is open in the next slice (a ring, a vessel, the curve of a hippocampus) and would depend on the direction
in which the scanner cut.

    planes pass -> ComponentFinder -> Components -> decide -> Cleaning -> planes pass again, cleaned one by one
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from medseg.dicom.instance import Vector
from medseg.inference.labels import LabelPlane, boxes
from medseg.inference.pieces.runs import Numbers, joined
from medseg.inference.pieces.survey import ComponentFinder, Components, Mask, cavities_of, parts_of
from medseg.inference.planes import PlaneSpool

_ROUNDING: Final = 1e-9  # relative: twenty voxels of 0.05 ml are 1 ml


@dataclass(frozen=True, eq=False)
class Cleaning:
    """What is to be done. dropped: of each part. filled: of each cavity.

    left_out_ml: of each segment, because its largest piece alone is kept.
    """

    components: Components
    dropped: Mask
    filled: Mask
    left_out_ml: tuple[float, ...]

    @cached_property
    def changed(self) -> tuple[int, ...]:
        """Indices of segments that will not be as they were, ascending."""
        parts, cavities = self.components.parts, self.components.cavities
        return tuple(sorted({*parts.segment[self.dropped].tolist(), *cavities.segment[self.filled].tolist()}))

    def apply(self, plane: LabelPlane, n: int, numbers: Sequence[int], *, exclusive: bool) -> LabelPlane:
        """The n-th plane that was looked at, cleaned; the plane itself where there is nothing to do.

        Filled holes take the segment's number only where there was none: another segment inside it stays.
        """
        cleaned: LabelPlane | None = None
        for index in self.changed:
            parts, cavities = self.components.parts.of(n, index), self.components.cavities.of(n, index)
            dropped, filled = self.dropped[parts], self.filled[cavities]
            if not (dropped.any() or filled.any()):
                continue
            if cleaned is None:
                cleaned = plane.copy()
            image, label = (cleaned, numbers[index]) if exclusive else (cleaned[index], 1)
            inside = image[boxes((image == label).view(np.uint8))[1]]
            mask = inside == label
            if dropped.any():
                inside[_chosen(dropped)[parts_of(mask)[0]]] = 0
            if filled.any():
                inside[_chosen(filled)[cavities_of(mask)[0]] & (inside == 0)] = label
        return plane if cleaned is None else cleaned


def _chosen(regions: Mask) -> Mask:
    """A table by number, which begins at 1."""
    return np.concatenate([[False], regions])


def decide(
    components: Components,
    voxel_ml: Vector,
    *,
    keep_largest: Collection[int] = (),
    fill_holes: bool = False,
    min_volume_ml: float = 0.0,
    backwards: bool = False,
) -> Cleaning:
    """What is to be done with what was found.

    voxel_ml: (planes,), volume of a voxel of each plane, in the order of the finder; backwards: that was from the last
    plane to the first. keep_largest: indices of segments. fill_holes: the finder must have looked for holes.
    """
    parts, cavities, piece = components.parts, components.cavities, components.piece
    count = int(piece.max(initial=-1)) + 1
    part_ml = parts.voxels * voxel_ml[parts.plane]
    kept = np.ones(count, np.bool_)
    kept[piece[np.isin(parts.segment, list(keep_largest))]] = False
    kept |= _largest(components, count, backwards=backwards)
    left = ~kept[piece]
    left_out_ml = tuple(exact_sum(part_ml[left & (parts.segment == index)]) for index in range(components.segments))

    many, filled = len(cavities), np.zeros(len(cavities), np.bool_)
    pieces, inside = components.inner_edges.T
    inner = np.stack([many + piece[pieces], inside], axis=1)  # (piece, cavity)
    if fill_holes:
        # Background without what is left out, which joins all that lies beside it. Nodes: cavities, pieces, the open.
        air = many + count
        region = joined(
            air + 1,
            components.cavity_edges,
            _all_to(components.open_cavities, air),
            inner[~kept[inner[:, 0] - many]],
            _all_to(many + piece[components.touches_outside & left], air),
        )
        closed = region != region[air]
        filled = closed[:many]
        kept |= closed[many:-1]  # pieces that were left out and lie in a hole
    if min_volume_ml > 0:
        body = joined(many + count, *(edges[filled[edges[:, 1]]] for edges in (components.cavity_edges, inner)))
        cavity_ml = np.where(filled, cavities.voxels * voxel_ml[cavities.plane], 0.0)
        piece_ml = np.where(kept, np.bincount(piece, part_ml, count), 0.0)
        body_ml = np.bincount(body, np.concatenate([cavity_ml, piece_ml]))
        enough = body_ml[body] >= min_volume_ml * (1 - _ROUNDING)
        filled, kept = filled & enough[:many], kept & enough[many:]
    return Cleaning(components, ~kept[piece], filled, left_out_ml)


def exact_sum(terms: Vector) -> float:
    """The same to the bit in whatever order planes came."""
    return math.fsum(terms.tolist())


def _largest(components: Components, count: int, *, backwards: bool) -> Mask:
    """Of each piece, whether it has most voxels of its segment; of equals the one that comes first (k, j, i)."""
    parts, piece = components.parts, components.piece
    k = components.shape[0] - 1 - parts.plane if backwards else parts.plane
    segment, first = np.zeros(count, np.intp), np.full(count, np.iinfo(np.intp).max)
    segment[piece] = parts.segment
    np.minimum.at(first, piece, k * len(parts) + np.arange(len(parts)))  # parts of a plane are in (j, i) order
    order = np.lexsort((first, -np.bincount(piece, parts.voxels, count), segment))
    largest = np.zeros(count, np.bool_)
    largest[order[np.flatnonzero(np.diff(segment[order], prepend=-1))]] = True
    return largest


def _all_to(nodes: Numbers, one: int) -> Numbers:
    return np.stack([nodes, np.full(len(nodes), one)], axis=1)


def largest_pieces(
    planes: Iterable[LabelPlane], labels: Sequence[int], *, backwards: bool = False
) -> Iterator[LabelPlane]:
    """Planes (rows, columns) of labels, of which these keep their largest piece alone. backwards: as for `decide`."""
    spool, finder = PlaneSpool(), ComponentFinder(labels, exclusive=True)
    for plane in planes:
        spool.put(plane)
        finder.add(plane)
    cleaning = decide(finder.end(), np.ones(len(spool)), keep_largest=range(len(labels)), backwards=backwards)
    return (cleaning.apply(plane, n, labels, exclusive=True) for n, plane in enumerate(spool))
