"""Polygons of a mask, filled again by the two rules that programs know, point by point."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from medseg.results.outline import outlines

RING = np.pad(np.pad(np.ones((1, 1), bool), 1), 1, constant_values=True)
"""A frame, and a voxel in its hole that touches nothing."""


def windings(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(rows, columns, 2): how often each voxel's centre is gone round, and how many edges lie to its right."""
    seen = np.zeros((*shape, 2), int)
    for (y0, x0), (y1, x1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        for j in range(shape[0]):
            if (y0 <= j) != (y1 <= j):
                crossing = x0 + (j - y0) / (y1 - y0) * (x1 - x0)
                seen[j, np.arange(shape[1]) < crossing] += (1 if y1 > y0 else -1, 1)
    return seen


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@example(RING)
@example(np.pad(RING, ((2, 2), (0, 3)), constant_values=True))
@example(np.indices((6, 7)).sum(axis=0) % 2 == 0)
@settings(deadline=None, max_examples=100)
def test_filling_gives_the_mask(mask: np.ndarray) -> None:
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    polygons = outlines(mask)
    assert len(polygons) == count
    of_part = []
    for polygon in polygons:
        around, crossed = np.moveaxis(windings(polygon, mask.shape), -1, 0)
        assert ((around != 0) == (crossed % 2 == 1)).all()  # non-zero and even-odd
        of_part.append(around != 0)
        assert len(np.unique(parts[of_part[-1]])) == 1
    assert (np.sum(of_part, axis=0) == mask).all()


def test_straight_sides_have_no_points_within() -> None:
    (square,) = outlines(np.ones((40, 30), bool))
    assert len(square) == 8
    assert (square.min(axis=0) == -0.5).all() and (square.max(axis=0) == (39.5, 29.5)).all()
