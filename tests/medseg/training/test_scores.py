"""Scores against hand counts and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medseg.training.scores import WHOLE, score, score_mask, summarise


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def hausdorff95(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    """The definition, with scipy: surface voxels, distance maps, the larger of the two 95th percentiles."""

    def surface(mask: np.ndarray) -> np.ndarray:
        return mask & ~ndimage.binary_erosion(mask)

    def directed(x: np.ndarray, y: np.ndarray) -> float:
        away = ndimage.distance_transform_edt(~surface(y), sampling=spacing_mm)
        return float(np.percentile(away[surface(x)], 95))

    return max(directed(a, b), directed(b, a))


def test_two_cubes_by_hand() -> None:
    a, b = np.zeros((2, 10, 10, 10), dtype=bool)
    a[2:6, 2:6, 2:6] = True
    b[4:8, 2:6, 2:6] = True
    found = score_mask(a, b, (1, 1, 1))
    assert found.dice == pytest.approx(0.5)  # 2 * 32 / (64 + 64)
    assert found.volume_ml == pytest.approx(0.064)
    assert found.volume_error_ml == 0
    assert found.hausdorff95_mm == pytest.approx(2)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0)])
@pytest.mark.parametrize("shift", [0.0, 1.5, 4.0])
def test_balls_against_scipy(spacing_mm: tuple[float, ...], shift: float) -> None:
    a, b = ball((24, 26, 28), (12, 12, 12), 6), ball((24, 26, 28), (12 + shift, 13, 12), 7)
    found = score_mask(a, b, spacing_mm)
    assert found.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found.hausdorff95_mm == pytest.approx(hausdorff95(a, b, spacing_mm), rel=1e-5)
    assert found.volume_error_percent == pytest.approx(100 * (a.sum() / b.sum() - 1))


def test_masks_may_be_views_that_run_backwards() -> None:
    a, b = ball((12, 12, 12), (5, 5, 5), 3), ball((12, 12, 12), (6, 5, 5), 4)
    assert score_mask(a[..., ::-1], b[..., ::-1], (1, 1, 1)) == score_mask(a, b, (1, 1, 1))


def test_two_dimensions() -> None:
    a, b = ball((20, 20), (9, 9), 5), ball((20, 20), (11, 9), 5)
    assert score_mask(a, b, (0.5, 0.5)).hausdorff95_mm == pytest.approx(hausdorff95(a, b, (0.5, 0.5)), rel=1e-5)


def test_lesions_by_hand() -> None:
    """Three in the reference: one found, one found in two places, one missed; two findings beside them all."""
    true, found = np.zeros((2, 12, 12, 12), dtype=bool)
    true[1:3, 1:3, 1:3] = found[2, 2, 2] = True
    true[6, 6, :] = True
    found[6, 6, 0:3] = found[6, 6, 8:10] = True
    true[10, 1, 1] = True
    found[0, 10, 10] = found[1, 11, 11] = True  # corner to corner: one piece
    found[11, 11, 0] = True
    scored = score_mask(found, true, (1, 1, 1))
    assert (scored.lesions, scored.lesions_found, scored.false_positives) == (3, 2, 2)
    assert scored.lesion_sensitivity == pytest.approx(2 / 3)


def test_no_lesions_to_find() -> None:
    nothing, something = np.zeros((5, 5, 5), dtype=bool), np.eye(5, dtype=bool)[None].repeat(5, 0)
    assert score_mask(nothing, nothing, (1, 1, 1)).false_positives == 0
    found = score_mask(something, nothing, (1, 1, 1))
    assert (found.lesions, found.lesions_found, found.false_positives) == (0, 0, 1)
    assert math.isnan(found.lesion_sensitivity)
    missed = score_mask(nothing, something, (1, 1, 1))
    assert (missed.lesion_sensitivity, missed.false_positives) == (0.0, 0)


def test_empty_masks() -> None:
    nothing, something = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    both, one = score_mask(nothing, nothing, (1, 1, 1)), score_mask(nothing, something, (1, 1, 1))
    assert (both.dice, both.hausdorff95_mm) == (1, 0)
    assert one.dice == 0
    assert math.isnan(one.hausdorff95_mm)
    assert one.volume_error_percent == -100
    assert math.isnan(score_mask(something, nothing, (1, 1, 1)).volume_error_percent)


def test_the_whole_is_the_union_of_the_structures() -> None:
    true = np.zeros((2, 8, 8, 8), dtype=bool)
    true[0, 2:4, 2:6, 2:6], true[1, 4:6, 2:6, 2:6] = True, True
    found = score(true[::-1], true, (1, 1, 1), ["head", "tail"])
    assert (found["head"].dice, found["tail"].dice, found[WHOLE].dice) == (0, 0, 1)


def test_one_structure_has_no_separate_whole() -> None:
    mask = np.ones((1, 4, 4, 4), dtype=bool)
    assert list(score(mask, mask, (1, 1, 1), ["lesion"])) == ["lesion"]


def test_interval_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(1)
    few, many = (summarise(rng.normal(0.9, 0.03, n).tolist(), higher_is_better=True) for n in (10, 1000))
    assert few.low < few.mean < few.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.03 / math.sqrt(1000), rel=0.15)
    assert many.high - many.low < few.high - few.low


def test_worst_is_lowest_or_farthest_from_zero() -> None:
    assert summarise([0.9, 0.7, 0.8], higher_is_better=True).worst == 0.7
    assert summarise([0.2, -0.9, 0.8], higher_is_better=False).worst == -0.9
    assert math.isnan(summarise([3.1, 4.2], higher_is_better=None).worst)
    assert summarise([0.9, math.nan], higher_is_better=True).mean == 0.9
    assert math.isnan(summarise([math.nan], higher_is_better=True).mean)
