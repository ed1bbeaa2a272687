"""Clean-up against brute force: flood fills written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg.bundle.bundle import Postprocess
from medseg.inference.postprocess import clean, largest_piece, pieces, without_small_pieces
from tests.medseg.inference.phantoms import make_segment

ALL_26 = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
FACES = [step for step in ALL_26 if sum(map(abs, step)) == 1]
MASKS = arrays(bool, st.tuples(*[st.integers(1, 5)] * 3))
LABELS = arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 2))


def flood(mask: np.ndarray, steps) -> list[set[tuple[int, ...]]]:
    """Pieces of a mask, in the order of their first voxel."""
    left = {tuple(int(n) for n in at) for at in np.argwhere(mask)}
    found = []
    for seed in sorted(left):
        if seed not in left:
            continue
        piece, edge = set(), [seed]
        while edge:
            at = edge.pop()
            if at in left:
                left.remove(at)
                piece.add(at)
                edge += [tuple(a + d for a, d in zip(at, step, strict=True)) for step in steps]
        found.append(piece)
    return found


def as_mask(shape, voxels) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for at in voxels:
        mask[at] = True
    return mask


@settings(deadline=None)
@given(MASKS)
def test_pieces_are_26_connected(mask):
    assert pieces(mask)[1] == len(flood(mask, ALL_26))


@settings(deadline=None)
@given(MASKS)
def test_largest_piece(mask):
    expected = max(flood(mask, ALL_26), key=len, default=set())
    assert np.array_equal(largest_piece(mask), as_mask(mask.shape, expected))


@settings(deadline=None)
@given(MASKS, st.floats(0, 6))
def test_small_pieces_go_by_their_volume(mask, least):
    voxel_ml = np.arange(1, mask.shape[0] + 1) * 0.5
    kept = [piece for piece in flood(mask, ALL_26) if sum(voxel_ml[k] for k, _, _ in piece) >= least]
    expected = as_mask(mask.shape, set().union(*kept))
    assert np.array_equal(without_small_pieces(mask, voxel_ml, least), expected)


@settings(deadline=None)
@given(LABELS)
def test_holes_are_cavities_closed_in_three_dimensions(labels):
    """Background that cannot reach the border through faces is filled, with the segment around it."""
    expected = labels.copy()
    for number in (1, 2):
        outside = np.pad(expected != number, 1, constant_values=True)
        open_air = next(piece for piece in flood(outside, FACES) if (0, 0, 0) in piece)
        closed = [at for at in np.ndindex(*labels.shape) if tuple(n + 1 for n in at) not in open_air]
        for at in closed:
            if expected[at] == 0:
                expected[at] = number
    found = labels.copy()
    clean(found, [make_segment(1), make_segment(2)], Postprocess(fill_holes=True), np.ones(len(labels)), exclusive=True)
    assert np.array_equal(found, expected)


@settings(deadline=None)
@given(LABELS)
def test_only_named_segments_lose_their_pieces(labels):
    found = labels.copy()
    clean(
        found, [make_segment(1), make_segment(2)], Postprocess(keep_largest=(2,)), np.ones(len(labels)), exclusive=True
    )
    assert np.array_equal(found == 1, labels == 1)
    assert np.array_equal(found == 2, largest_piece(labels == 2))


@settings(deadline=None)
@given(LABELS, st.sampled_from([Postprocess((1, 2), True, 1.5), Postprocess((2,), False, 0.0)]))
def test_overlapping_segments_are_cleaned_each_on_its_own(labels, what):
    segments = [make_segment(1), make_segment(2)]
    bits = np.stack([labels > 0, labels == 2]).astype(np.uint8)
    voxel_ml = np.full(len(labels), 0.5)
    alone = []
    for index, segment in enumerate(segments):
        one = bits[index] * np.uint8(segment.number)
        clean(one, [segment], what, voxel_ml, exclusive=True)
        alone.append(one > 0)
    clean(bits, segments, what, voxel_ml, exclusive=False)
    assert np.array_equal(bits > 0, np.stack(alone))


@pytest.mark.parametrize("exclusive", [True, False])
def test_nothing_asked_nothing_changed(exclusive):
    labels = np.random.default_rng(0).integers(0, 2, (1, 4, 5, 6)[exclusive:], dtype=np.uint8)
    before = labels.copy()
    clean(labels, [make_segment(1)], Postprocess(), np.ones(4), exclusive=exclusive)
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_the_largest_piece_leaves_behind_is_told(exclusive):
    """Three pieces of 12, 3 and 1 voxels in slices of different thickness; then specks, which do not count."""
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0, :3, :4] = 1
    labels[2, 0, 3:6] = 1
    labels[3, 5, 5] = 1
    given = labels if exclusive else labels[None]
    what = Postprocess(keep_largest=(1,))
    left_out = clean(given.copy(), [make_segment(1)], what, np.array([1.0, 2.0, 3.0, 5.0]), exclusive=exclusive)
    assert left_out == (3 * 3.0 + 5.0,)
    assert clean(given, [make_segment(1)], Postprocess(min_volume_ml=4), np.ones(4), exclusive=exclusive) == (0.0,)
