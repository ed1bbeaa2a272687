"""Clean-up and measures of whole label volumes with plain scipy: what planes that pass are held to; and volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from medseg.bundle.bundle import Postprocess, Segment
from medseg.inference.pieces.survey import ComponentFinder, Components

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
    return numbered == sizes.argmax()


def without_small_pieces(mask: Mask, voxel_ml: NDArray[np.float64], least_ml: float) -> Mask:
    """Without pieces of less than `least_ml`; voxel_ml: (k,), volume of a voxel of each slice."""
    numbered, count = pieces(mask)
    weights = np.broadcast_to(voxel_ml[:, None, None], mask.shape)[mask]
    volumes = np.bincount(numbered[mask], weights, minlength=count + 1)
    keep = volumes >= least_ml
    keep[0] = False
    return keep[numbered]


def clean(
    labels: Labels,
    segments: Sequence[Segment],
    what: Postprocess,
    voxel_ml: NDArray[np.float64],
    *,
    exclusive: bool,
) -> tuple[float, ...]:
    """Clean `labels` in place: (k, j, i) of segment numbers, or (segments, k, j, i) of 0 and 1.

    Filled holes take the segment's number only where there was none. Returns what was left out of each segment because
    only its largest piece is kept, in ml.
    """
    left_out = []
    for index, segment in enumerate(segments):
        volume, value = (labels, segment.number) if exclusive else (labels[index], 1)
        kept = mask = volume == value
        if segment.number in what.keep_largest:
            kept = largest_piece(kept)
        left_out.append(float((mask & ~kept).sum(axis=(1, 2)) @ voxel_ml))
        if what.fill_holes:
            kept = ndimage.binary_fill_holes(kept)
        if what.min_volume_ml > 0:
            kept = without_small_pieces(kept, voxel_ml, what.min_volume_ml)
        volume[mask & ~kept] = 0
        volume[kept & (volume == 0)] = value
    return tuple(left_out)


def touches_ends(mask: Mask) -> bool:
    """Whether anything lies in the first or the last slice."""
    return bool(mask[[0, -1]].any())


def touches_border(mask: Mask) -> bool:
    """Whether anything lies on another face of the volume."""
    return any(bool(np.take(mask, end, axis).any()) for axis in (1, 2) for end in (0, -1))


def survey(labels: np.ndarray, *, exclusive: bool = True, holes: bool = False, backwards: bool = False) -> Components:
    """Of (k, j, i) of segment numbers 1, 2, ..., or (segments, k, j, i) of 0 and 1."""
    numbers = range(1, (int(labels.max(initial=1)) if exclusive else len(labels)) + 1)
    found = ComponentFinder(list(numbers), exclusive=exclusive, holes=holes)
    for plane in planes(labels, backwards=backwards):
        found.add(plane)
    return found.end()


def planes(labels: np.ndarray, *, backwards: bool = False) -> list[np.ndarray]:
    each = list(np.moveaxis(labels, -3, 0))
    return each[::-1] if backwards else each


@st.composite
def volumes(draw: st.DrawFn) -> tuple[np.ndarray, bool]:
    """Labels and whether they exclude each other: specks, blobs with cavities, shells in shells."""
    shape = tuple(draw(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))))
    rng, exclusive, count = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.booleans()), 3
    size = shape if exclusive else (count, *shape)
    values = rng.random(size)
    smooth = draw(st.sampled_from([0.0, 0.6, 1.0]))
    if smooth:
        values = ndimage.gaussian_filter(values, smooth, axes=(-3, -2, -1))
    bounds = np.quantile(values, sorted(draw(st.lists(st.floats(0.05, 0.95), min_size=count, max_size=count))))
    if not exclusive:
        return (values > bounds[:, None, None, None]).astype(np.uint8), False
    return rng.permutation(count + 1).astype(np.uint8)[np.digitize(values, bounds)], True
