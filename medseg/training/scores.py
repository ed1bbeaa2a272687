"""How well labels agree with a reference, and how sure a mean over cases is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from numpy.typing import NDArray

WHOLE = "whole"


@dataclass(frozen=True)
class Score:
    """One structure in one case. Dice is 1 where neither side has it; a distance to nothing is nan."""

    dice: float
    hausdorff95_mm: float
    volume_ml: float
    reference_ml: float

    @property
    def volume_error_ml(self) -> float:
        return self.volume_ml - self.reference_ml

    @property
    def volume_error_percent(self) -> float:
        return 100 * self.volume_error_ml / self.reference_ml if self.reference_ml else math.nan


@dataclass(frozen=True)
class Summary:
    """A measure over cases: mean, its 95 % confidence interval, and the lowest value, of errors the largest."""

    mean: float
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
    """Dice, 95 % Hausdorff distance and volumes of two masks (*S)."""
    voxel_ml = math.prod(spacing_mm) / 1000
    volumes = float(found.sum() * voxel_ml), float(true.sum() * voxel_ml)
    if not (found.any() and true.any()):
        neither = not (found.any() or true.any())
        return Score(1.0 if neither else 0.0, 0.0 if neither else math.nan, *volumes)
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (found, true))
    distance = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=list(spacing_mm))
    return Score(float(compute_dice(a, b)), float(distance), *volumes)


def summarise(
    values: Sequence[float], *, higher_is_better: bool | None, seed: int = 0, resamples: int = 10_000
) -> Summary:
    """Mean and its bootstrap interval (percentile method, cases drawn with replacement); nan cases are left out."""
    kept = np.array([v for v in values if not math.isnan(v)], dtype=float)
    if not kept.size:
        return Summary(math.nan, math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    means = kept[rng.integers(0, kept.size, (resamples, kept.size))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    worst = {True: kept.min(), False: kept[np.abs(kept).argmax()], None: math.nan}[higher_is_better]
    return Summary(float(kept.mean()), float(low), float(high), float(worst))
