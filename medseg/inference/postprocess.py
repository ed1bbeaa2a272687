"""Clean-up of labels on a grid, segment by segment.

In this order: the largest piece alone is kept, its holes are filled, pieces below the least volume are dropped.
Pieces are 26-connected. A hole is a cavity closed on all sides in three dimensions: filling slice by slice would also
close what is open in the next slice (a ring, a vessel, the curve of a hippocampus) and would depend on the direction
in which the scanner cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.bundle.bundle import Postprocess, Segment

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TOUCHING = np.ones((3, 3, 3), dtype=bool)  # faces, edges and corners: 26 neighbours


def pieces(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """26-connected pieces of a (k, j, i) mask, numbered from 1, and how many they are."""
    numbered, count = ndimage.label(mask, structure=TOUCHING)
    return numbered, int(count)


def largest_piece(mask: Mask) -> Mask:
    """The piece with most voxels; of equals the one that comes first in (k, j, i) order."""
    numbered, count = pieces(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    kept: Mask = numbered == sizes.argmax()
    return kept


def without_small_pieces(mask: Mask, voxel_ml: NDArray[np.float64], least_ml: float) -> Mask:
    """Without pieces of less than `least_ml`; voxel_ml: (k,), volume of a voxel of each slice."""
    numbered, count = pieces(mask)
    if count == 0:
        return mask
    weights = np.broadcast_to(voxel_ml[:, None, None], mask.shape)[mask]
    volumes = np.bincount(numbered[mask], weights, minlength=count + 1)
    keep = volumes >= least_ml
    keep[0] = False
    kept: Mask = keep[numbered]
    return kept


def box(mask: Mask) -> tuple[slice, slice, slice] | None:
    """The smallest box around what is set."""
    found = ndimage.find_objects(mask.astype(np.uint8, copy=False))
    return found[0] if found else None


def clean(
    labels: Labels,
    segments: Sequence[Segment],
    what: Postprocess,
    voxel_ml: NDArray[np.float64],
    *,
    exclusive: bool,
) -> tuple[float, ...]:
    """Clean `labels` in place: (k, j, i) of segment numbers, or (segments, k, j, i) of 0 and 1.

    Filled holes take the segment's number only where there was none: another segment inside it stays.
    Returns what was left out of each segment because only its largest piece is kept, in ml.
    """
    left_out = [0.0] * len(segments)
    for index, segment in enumerate(segments):
        volume, value = (labels, segment.number) if exclusive else (labels[index], 1)
        place = box(volume == value)
        if place is None:
            continue
        inside = volume[place]
        kept = mask = inside == value
        if segment.number in what.keep_largest:
            kept = largest_piece(kept)
            left_out[index] = float((mask & ~kept).sum(axis=(1, 2)) @ voxel_ml[place[0]])
        if what.fill_holes:
            kept = ndimage.binary_fill_holes(kept)
        if what.min_volume_ml > 0:
            kept = without_small_pieces(kept, voxel_ml[place[0]], what.min_volume_ml)
        inside[mask & ~kept] = 0
        inside[kept & (inside == 0)] = value
    return tuple(left_out)
