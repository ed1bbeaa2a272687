"""Clean-up plane by plane, against scipy on whole volumes (`whole.py`) and flood fills written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg.bundle.bundle import Postprocess
from medseg.bundle.recipe import Step
from medseg.inference.pieces.cleanup import decide, largest_pieces
from medseg.inference.pieces.survey import ComponentFinder
from tests.medseg.inference import whole
from tests.medseg.inference.phantoms import make_segment
from tests.medseg.inference.whole import Mask, planes, survey, volumes

ALL_26 = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
FACES = [step for step in ALL_26 if sum(map(abs, step)) == 1]
MASKS = arrays(bool, st.tuples(*[st.integers(1, 5)] * 3))
LABELS = arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 2))


def clean(
    labels: np.ndarray, what: Postprocess, voxel_ml: np.ndarray, *, exclusive: bool = True, backwards: bool = False
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Labels after the clean-up, and what was left out; backwards: planes pass from the last to the first."""
    census = survey(labels, exclusive=exclusive, holes=what.fill_holes, backwards=backwards)
    numbers = list(range(1, census.segments + 1))
    cleaning = decide(
        census,
        voxel_ml[::-1] if backwards else voxel_ml,
        keep_largest=[number - 1 for number in what.keep_largest],
        fill_holes=what.fill_holes,
        min_volume_ml=what.min_volume_ml,
        backwards=backwards,
    )
    passing = enumerate(planes(labels, backwards=backwards))
    cleaned = [cleaning.apply(plane, n, numbers, exclusive=exclusive) for n, plane in passing]
    return np.stack(cleaned[::-1] if backwards else cleaned, axis=-3), cleaning.left_out_ml


def flood(mask: np.ndarray, steps: tuple[Step, ...]) -> list[set[tuple[int, ...]]]:
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


def as_mask(shape: tuple[int, ...], voxels: set[tuple[int, ...]]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for at in voxels:
        mask[at] = True
    return mask


CLEANINGS = st.builds(
    Postprocess,
    keep_largest=st.sets(st.integers(1, 3)).map(lambda chosen: tuple(sorted(chosen))),
    fill_holes=st.booleans(),
    min_volume_ml=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
)


@settings(deadline=None, max_examples=150)
@given(volumes(), CLEANINGS, st.booleans(), st.booleans())
def test_planes_that_pass_are_cleaned_as_the_whole_volume(
    volume: tuple[np.ndarray, bool], what: Postprocess, uneven: bool, backwards: bool
) -> None:
    labels, exclusive = volume
    if exclusive:
        labels[0, 0, 0] = 3  # so that three segments are known
    voxel_ml = np.resize([0.5, 1.0, 0.25], labels.shape[-3]) if uneven else np.full(labels.shape[-3], 0.5)
    expected = labels.copy()
    left_out = whole.clean(expected, [make_segment(n) for n in (1, 2, 3)], what, voxel_ml, exclusive=exclusive)
    before = labels.copy()
    found, found_left_out = clean(labels, what, voxel_ml, exclusive=exclusive, backwards=backwards)
    assert np.array_equal(found, expected)
    assert found_left_out == pytest.approx(left_out, rel=1e-9)
    assert np.array_equal(labels, before)  # planes are not changed in place


@settings(deadline=None, max_examples=50)
@given(MASKS)
def test_pieces_are_26_connected(mask: Mask) -> None:
    assert len(set(survey(mask.astype(np.uint8)).piece)) == len(flood(mask, ALL_26))


@settings(deadline=None, max_examples=50)
@given(MASKS)
def test_largest_piece(mask: Mask) -> None:
    expected = max(flood(mask, ALL_26), key=len, default=set())
    kept = np.stack(list(largest_pieces(iter(mask.astype(np.uint8)), [1])))
    assert np.array_equal(kept, as_mask(mask.shape, expected))


@settings(deadline=None, max_examples=50)
@given(MASKS, st.floats(0, 6))
def test_small_pieces_go_by_their_volume(mask: Mask, least: float) -> None:
    voxel_ml = np.arange(1, mask.shape[0] + 1) * 0.5
    kept = [piece for piece in flood(mask, ALL_26) if sum(voxel_ml[k] for k, _, _ in piece) >= least]
    expected = as_mask(mask.shape, set().union(*kept))
    found, _ = clean(mask.astype(np.uint8), Postprocess(min_volume_ml=least), voxel_ml)
    assert np.array_equal(found, expected)


def test_a_piece_of_just_the_least_volume_stays() -> None:
    """Ten voxels of 0.1 ml are 1 ml, whatever a computer makes of ten tenths."""
    labels = np.ones((1, 2, 5), np.uint8)
    assert clean(labels, Postprocess(min_volume_ml=1.0), np.array([0.1]))[0].all()
    assert not clean(labels, Postprocess(min_volume_ml=1.1), np.array([0.1]))[0].any()


@settings(deadline=None, max_examples=50)
@given(LABELS)
def test_holes_are_cavities_closed_in_three_dimensions(labels: np.ndarray) -> None:
    """Background that cannot reach the border through faces is filled, with the segment around it."""
    expected = labels.copy()
    for number in (1, 2):
        outside = np.pad(expected != number, 1, constant_values=True)
        open_air = next(piece for piece in flood(outside, FACES) if (0, 0, 0) in piece)
        closed = [at for at in np.ndindex(*labels.shape) if tuple(n + 1 for n in at) not in open_air]
        for at in closed:
            if expected[at] == 0:
                expected[at] = number
    found, _ = clean(labels, Postprocess(fill_holes=True), np.ones(len(labels)))
    assert np.array_equal(found, expected)


def test_a_hole_that_leads_out_by_a_winding_way_is_none() -> None:
    """A corridor that goes up, along, down and out at the side; then with its door shut."""
    labels = np.ones((7, 5, 9), np.uint8)
    for k, i in [(2, 1), (3, 1), (4, 1), (4, 2), (4, 3), (3, 3), (2, 3), (1, 3), (1, 4), (1, 5), (2, 5), (3, 5)]:
        labels[k, 2, i] = 0
    door = (slice(3, 4), slice(2, 3), slice(5, 9))
    shut, _ = clean(labels, Postprocess(fill_holes=True), np.ones(7))
    labels[door] = 0
    open_, _ = clean(labels, Postprocess(fill_holes=True), np.ones(7))
    assert shut.all()
    assert np.array_equal(open_, labels)


@settings(deadline=None, max_examples=50)
@given(LABELS, st.sampled_from([Postprocess((1, 2), True, 1.5), Postprocess((2,), False, 0.0)]))
def test_overlapping_segments_are_cleaned_each_on_its_own(labels: np.ndarray, what: Postprocess) -> None:
    bits = np.stack([labels > 0, labels == 2]).astype(np.uint8)
    voxel_ml = np.full(len(labels), 0.5)
    alone = [clean(one * np.uint8(n), what, voxel_ml)[0] > 0 for n, one in enumerate(bits, start=1)]
    found, _ = clean(bits, what, voxel_ml, exclusive=False)
    assert np.array_equal(found > 0, np.stack(alone))


@pytest.mark.parametrize("exclusive", [True, False])
def test_nothing_asked_nothing_changed(exclusive: bool) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (1, 4, 5, 6)[exclusive:], dtype=np.uint8)
    assert np.array_equal(clean(labels, Postprocess(), np.ones(4), exclusive=exclusive)[0], labels)


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_the_largest_piece_leaves_behind_is_told(exclusive: bool) -> None:
    """Three pieces of 12, 3 and 1 voxels in slices of different thickness; then specks, which do not count."""
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0, :3, :4] = 1
    labels[2, 0, 3:6] = 1
    labels[3, 5, 5] = 1
    given = labels if exclusive else labels[None]
    what = Postprocess(keep_largest=(1,))
    assert clean(given, what, np.array([1.0, 2.0, 3.0, 5.0]), exclusive=exclusive)[1] == (3 * 3.0 + 5.0,)
    assert clean(given, Postprocess(min_volume_ml=4), np.ones(4), exclusive=exclusive)[1] == (0.0,)


@pytest.mark.parametrize("backwards", [False, True])
def test_of_equal_pieces_the_first_is_kept_whichever_way_planes_pass(backwards: bool) -> None:
    labels = np.zeros((5, 4, 4), np.uint8)
    labels[1, 2, :2] = labels[3, 0, :2] = 1
    found, _ = clean(labels, Postprocess(keep_largest=(1,)), np.ones(5), backwards=backwards)
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [1]


def test_nothing_is_cleaned_of_no_plane_at_all() -> None:
    assert (
        decide(ComponentFinder([1], exclusive=True).end(), np.zeros(0), keep_largest=[0], min_volume_ml=1).changed == ()
    )
