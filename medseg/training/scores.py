"""How well labels agree with a reference, and how sure a mean over cases is.

A lesion is a 26-connected piece of a structure in the reference (8-connected in two dimensions). It is found when at
least one of its voxels is; a piece that is found and shares no voxel with the reference is a false positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from numpy.typing import NDArray
from scipy import ndimage

WHOLE = "whole"


@dataclass(frozen=True)
class Score:
    """One structure in one case. Dice is 1 where neither side has it; a distance to nothing is nan, as is the
    sensitivity where there is no lesion.
    """

    dice: float
    hausdorff95_mm: float
    volume_ml: float
    reference_ml: float
    lesions: int
    lesions_found: int
    false_positives: int

    @property
    def volume_error_ml(self) -> float:
        return self.volume_ml - self.reference_ml

    @property
    def volume_error_percent(self) -> float:
        return 100 * self.volume_error_ml / self.reference_ml if self.reference_ml else math.nan

    @property
    def lesion_sensitivity(self) -> float:
        """Share of the lesions that were found."""
        return self.lesions_found / self.lesions if self.lesions else math.nan


@dataclass(frozen=True)
class Summary:
    """A measure over cases: mean, its 95 % confidence interval, median, and the lowest value, of errors the largest."""

    mean: float
    median: float
    low: float
    high: float
    worst: float


def score(
    found: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: Sequence[float], names: Sequence[str]
) -> dict[str, Score]:
    """Scores by name, and of the union of all where there are several.

    found, true: (len(names), *S), one mask per structure.
    """
    scores = {name: score_mask(found[n], true[n], spacing_mm) for n, name in enumerate(names)}
    if len(names) > 1:
        scores[WHOLE] = score_mask(np.any(found, axis=0), np.any(true, axis=0), spacing_mm)
    return scores


def score_mask(found: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: Sequence[float]) -> Score:
    """Dice, 95 % Hausdorff distance, volumes and lesions of two masks (*S)."""
    voxel_ml = math.prod(spacing_mm) / 1000
    counted = float(found.sum() * voxel_ml), float(true.sum() * voxel_ml), *lesions(found, true)
    if not (found.any() and true.any()):
        neither = not (found.any() or true.any())
        return Score(1.0 if neither else 0.0, 0.0 if neither else math.nan, *counted)
    # copies, since the labels of a left-handed volume are a view that runs backwards, which torch cannot have
    a, b = (torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (found, true))
    distance = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=list(spacing_mm))
    return Score(float(compute_dice(a, b)), float(distance), *counted)


def lesions(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Pieces of `true`, how many of them `found` touches, and pieces of `found` that touch none."""
    touching = np.ones((3,) * true.ndim, dtype=bool)
    in_true, count = ndimage.label(true, structure=touching)
    in_found, pieces = ndimage.label(found, structure=touching)
    both = found & true
    return int(count), len(np.unique(in_true[both])), int(pieces) - len(np.unique(in_found[both]))


def summarise(
    values: Sequence[float], *, higher_is_better: bool | None, seed: int = 0, resamples: int = 10_000
) -> Summary:
    """Mean and its bootstrap interval (percentile method, cases drawn with replacement); nan cases are left out."""
    kept = np.array([v for v in values if not math.isnan(v)], dtype=float)
    if not kept.size:
        return Summary(math.nan, math.nan, math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    means = kept[rng.integers(0, kept.size, (resamples, kept.size))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    worst = {True: kept.min(), False: kept[np.abs(kept).argmax()], None: math.nan}[higher_is_better]
    return Summary(float(kept.mean()), float(np.median(kept)), float(low), float(high), float(worst))
