"""The spacing of slices along their normal: heights in mm in, a uniform grid out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Vector
from medseg.dicom.reason import Reason
from medseg.dicom.series import Finding

SAME = 0.01  # of the spacing: what is nearer is at one position
UNIFORM = 0.01
UNEVEN = 0.10
DRIFT = 0.05
FINE = 0.04  # positions written at least so finely may be even
ROUNDED = 0.4  # positions written more coarsely than this are not rounded but wrong
BRIDGED_SLICES = 1
_LEAP = 1 / SAME
_NOTHING = 1e-3
_LEAST_ERROR = 2e-7  # of a number: 12.3 kept in 32 bits is written as 12.3000002


@dataclass(frozen=True, eq=False)
class Grid:
    """Places of ordered slices on a uniform grid; see `Stack.coordinates`."""

    coordinates: Vector
    spacing_mm: float
    findings: tuple[Finding, ...] = ()

    def extents_mm(self) -> Vector:
        """(K,) what each slice stands for: half-way to both neighbours; the outermost reach as far out as in."""
        if len(self.coordinates) == 1:
            return np.array([self.spacing_mm])
        steps = np.diff(self.coordinates) * self.spacing_mm
        extents: Vector = (np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]])) / 2
        return extents


def written_mm(positions_mm: Vector, normal: Vector) -> float:
    """How far rounding may put two positions (N, 3) wrong along the normal: the last decimal that any of them needs."""
    last = next((10.0**-digits for digits in range(-2, 9) if _need_no_more(positions_mm, digits)), 0.0)
    return last * float(np.abs(normal).sum())


def _need_no_more(positions_mm: Vector, digits: int) -> bool:
    scaled = positions_mm * 10.0**digits
    return bool((np.abs(scaled - np.rint(scaled)) <= _LEAST_ERROR * np.abs(scaled) + 1e-9).all())


def base_step(heights: Vector) -> float:
    """The spacing that most positions keep; the smaller one of two."""
    return _scale(heights)[1]


def same_mm(heights: Vector) -> float:
    """Slices, of ordered ones, that are no farther apart lie at one position."""
    noise, base = _scale(heights)
    return max(noise, SAME * base)


def _scale(heights: Vector) -> tuple[float, float]:
    """(largest step that is none, spacing): at any scale a step within a position is far smaller than one between.

    Positions that are one differ by nothing, or by noise: their steps are a hundredth of the spacing at most, and so is
    all of what is taken as one position (without which three distant regions would be three positions).
    """
    steps = np.diff(heights)
    ordered = np.sort(steps)
    leaps = np.flatnonzero((ordered[1:] >= _LEAP * ordered[:-1]) & (ordered[1:] > 0)) + 1
    for place in leaps[::-1]:
        apart = ordered[place:]
        noise, base = float(ordered[place - 1]), float(apart[(len(apart) - 1) // 2])
        if len(apart) == 1 and noise > _NOTHING * base:
            continue  # two regions far apart, rather than two positions
        ends = np.append(np.flatnonzero(steps > noise), len(heights) - 1)
        begins = np.concatenate([[0], ends[:-1] + 1])
        if (heights[ends] - heights[begins]).max() <= 2 * SAME * base:
            return noise, base
    return 0.0, float(ordered[(len(ordered) - 1) // 2]) if len(ordered) else 0.0


def shared_positions(heights: Vector) -> Vector:
    """Heights, of ordered ones, at which there is more than one slice."""
    return heights[1:][np.diff(heights) <= same_mm(heights)]


def position_numbers(heights: Vector) -> NDArray[np.intp]:
    """For each of the ordered slices the number of its position: 0 0 1 1 2 2 where there are two at each."""
    return np.concatenate([[0], np.cumsum(np.diff(heights) > same_mm(heights))])


def place_on_grid(heights: Vector, written: float = 0.0) -> Grid | tuple[Reason, str]:
    """Place slices, ordered and apart, on a uniform grid, or say what is wrong with their spacing.

    even        every step is the spacing, within 1 % or what was rounded     coordinates 0 1 2 3
    bridged     one step is twice the spacing: one slice is missing           coordinates 0 1 3 4
    uneven      within 10 %, or the positions of an even grid rounded         coordinates 0 1.1 2 3

    written: see `written_mm`.
    """
    steps = np.diff(heights)
    base = base_step(heights)
    rounded = written if written <= ROUNDED * base else 0.0
    multiples = np.maximum(np.rint(steps / base), 1)
    numbers = np.concatenate([[0.0], np.cumsum(multiples)])
    spacing = float((heights[-1] - heights[0]) / numbers[-1])
    exact = (heights - heights[0]) / spacing
    wrong = np.abs(steps - multiples * base)
    fine = 1.001 * rounded if rounded <= FINE * base else 0.0
    even = bool((wrong <= max(fine, UNIFORM * base)).all())
    if not even and wrong.max() > UNEVEN * base and _off_best_grid(heights, numbers) > 0.8 * rounded:
        at = int(np.argmax(wrong))
        where = f"{listed(heights[at : at + 2], base, ' and ')} mm along the normal"
        expected = f"expected {length(base)} mm within 10 %"
        return Reason.IRREGULAR_SPACING, f"{length(steps[at])} mm between {where}: {expected}"
    missing = [heights[0] + spacing * number for number in sorted(set(range(int(numbers[-1]))) - set(numbers))]
    if len(missing) > BRIDGED_SLICES:
        where = f"at {listed(missing, spacing)} mm along the normal, {length(spacing)} mm apart"
        return Reason.MISSING_SLICES, f"{len(missing)} slices are missing, {where}: expected at most {BRIDGED_SLICES}"
    findings = []
    if missing:
        detail = f"no slice at {listed(missing, spacing)} mm along the normal (spacing {length(spacing)} mm): bridged"
        findings.append(Finding("bridged_gap", detail))
    # Small errors of one sign add up: the steps may be even and the slices still drift off the grid.
    if even and np.abs(exact - numbers).max() <= DRIFT:
        return Grid(numbers, spacing, tuple(findings))
    detail = f"spacing between {length(steps.min())} and {length(steps.max())} mm: resampled to {length(spacing)} mm"
    return Grid(exact, spacing, (*findings, Finding("uneven_spacing", detail)))


def _off_best_grid(heights: Vector, numbers: Vector) -> float:
    """How far, in mm, the farthest slice is off a uniform grid laid through the middle of all."""
    centred = numbers - numbers.mean()
    slope = float(centred @ heights / (centred @ centred))
    return float(np.ptp(heights - slope * numbers)) / 2


def split_at_changes(
    heights: Vector, min_slices: int, *, jumps: bool, written: float = 0.0
) -> list[tuple[int, int]] | None:
    """Cut [first, end) ranges where the spacing changes; None where a part would be too small.

    1 1 1 1 2 2 2 2         a change: the slice between belongs to the part before it
    1 1 1 1 5.3 1 1 1       a jump, where `jumps` are allowed: two stacks
    1 1 1 1 5   1 1 1       missing slices, not a jump
    """
    steps = np.diff(heights)
    cuts, run_start = [0], 0
    for place in range(1, len(steps) + 1):
        if place < len(steps) and abs(steps[place] - steps[run_start]) <= _allowed(steps[run_start], written):
            continue
        # The run of equal steps run_start .. place-1 ends; a run of one step is a jump between its two slices.
        jump = place - run_start == 1
        if jump and not jumps:
            return None
        cuts.append(run_start + 1 if jump else place + 1)
        run_start = place
    bounds = sorted({*cuts, len(heights)})
    parts = list(pairwise(bounds))
    if len(parts) < 2 or min(end - first for first, end in parts) < max(min_slices, 2):
        return None
    return parts


def _allowed(step: float, written: float) -> float:
    return max(written if written <= ROUNDED * step else 0.0, UNEVEN * step)


def length(mm: float) -> str:
    """A length for a message: micrometres where they are what counts, else three decimals."""
    return f"{mm:.3f}" if mm >= 0.05 or mm == 0 else f"{mm:.3g}"


def listed(positions: Iterable[float], spacing_mm: float, between: str = ", ") -> str:
    """Positions in mm for a message, the first eight of them."""
    digits = max(2, 1 - math.floor(math.log10(spacing_mm))) if spacing_mm > 0 else 2
    unique = list(dict.fromkeys(f"{position:.{digits}f}" for position in positions))
    return between.join(unique[:8]) + (f" and {len(unique) - 8} more" if len(unique) > 8 else "")
