"""The spacing of slices along their normal: heights in mm in, a uniform grid out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Vector
from medseg.dicom.reason import Reason
from medseg.dicom.series import Finding

SAME_MM = 0.01  # positions are often rounded to two decimals
ROUNDED_MM = 0.05  # ... or to one
UNIFORM = 0.01  # of the spacing
UNEVEN = 0.10
DRIFT = 0.05
BRIDGED_SLICES = 1


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


def base_step(heights: Vector) -> float:
    """The spacing that most slices keep; the smaller one of two."""
    steps = np.sort(np.diff(heights))
    apart = steps[steps > SAME_MM]
    return float(apart[(len(apart) - 1) // 2]) if len(apart) else 0.0


def _same_mm(heights: Vector) -> float:
    return max(SAME_MM, UNIFORM * base_step(heights))


def shared_positions(heights: Vector) -> Vector:
    """Heights, of ordered ones, at which there is more than one slice."""
    return heights[1:][np.diff(heights) <= _same_mm(heights)]


def position_numbers(heights: Vector) -> NDArray[np.intp]:
    """For each of the ordered slices the number of its position: 0 0 1 1 2 2 where there are two at each."""
    return np.concatenate([[0], np.cumsum(np.diff(heights) > _same_mm(heights))])


def place_on_grid(heights: Vector) -> Grid | tuple[Reason, str]:
    """Place slices, ordered and apart, on a uniform grid, or say what is wrong with their spacing.

    even        every step is the spacing, within max(0.01 mm, 1 %)           coordinates 0 1 2 3
    bridged     one step is twice the spacing: one slice is missing           coordinates 0 1 3 4
    uneven      within 10 %, or the positions of an even grid rounded         coordinates 0 1.1 2 3
    """
    steps = np.diff(heights)
    base = base_step(heights)
    multiples = np.maximum(np.rint(steps / base), 1)
    numbers = np.concatenate([[0.0], np.cumsum(multiples)])
    spacing = float((heights[-1] - heights[0]) / numbers[-1])
    exact = (heights - heights[0]) / spacing
    wrong = np.abs(steps - multiples * base)
    even = bool((wrong <= max(SAME_MM, UNIFORM * base)).all())
    if not even and wrong.max() > UNEVEN * base and _off_best_grid(heights, numbers) > ROUNDED_MM:
        at = int(np.argmax(wrong))
        where = f"{heights[at]:.2f} and {heights[at + 1]:.2f} mm along the normal"
        return Reason.IRREGULAR_SPACING, f"{steps[at]:.3f} mm between {where}: expected {base:.3f} mm within 10 %"
    missing = [heights[0] + spacing * number for number in sorted(set(range(int(numbers[-1]))) - set(numbers))]
    if len(missing) > BRIDGED_SLICES:
        where = f"at {listed(missing)} mm along the normal, {spacing:.3f} mm apart"
        return Reason.MISSING_SLICES, f"{len(missing)} slices are missing, {where}: expected at most {BRIDGED_SLICES}"
    findings = []
    if missing:
        detail = f"no slice at {listed(missing)} mm along the normal (spacing {spacing:.3f} mm): bridged"
        findings.append(Finding("bridged_gap", detail))
    # Small errors of one sign add up: the steps may be even and the slices still drift off the grid.
    if even and np.abs(exact - numbers).max() <= DRIFT:
        return Grid(numbers, spacing, tuple(findings))
    detail = f"spacing between {steps.min():.3f} and {steps.max():.3f} mm: resampled to {spacing:.3f} mm"
    return Grid(exact, spacing, (*findings, Finding("uneven_spacing", detail)))


def _off_best_grid(heights: Vector, numbers: Vector) -> float:
    """How far, in mm, the farthest slice is off the uniform grid that fits all best."""
    centred = numbers - numbers.mean()
    slope = float(centred @ heights / (centred @ centred))
    return float(np.abs(heights - heights.mean() - slope * centred).max())


def split_at_changes(heights: Vector, min_slices: int, *, jumps: bool) -> list[tuple[int, int]] | None:
    """Cut [first, end) ranges where the spacing changes; None where a part would be too small.

    1 1 1 1 2 2 2 2         a change: the slice between belongs to the part before it
    1 1 1 1 5.3 1 1 1       a jump, where `jumps` are allowed: two stacks
    1 1 1 1 5   1 1 1       missing slices, not a jump
    """
    steps = np.diff(heights)
    cuts, run_start = [0], 0
    for place in range(1, len(steps) + 1):
        if place < len(steps) and abs(steps[place] - steps[run_start]) <= max(SAME_MM, UNEVEN * steps[run_start]):
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


def listed(positions: Iterable[float]) -> str:
    """Positions in mm for a message, the first eight of them."""
    unique = list(dict.fromkeys(f"{position:.2f}" for position in positions))
    return ", ".join(unique[:8]) + (f" and {len(unique) - 8} more" if len(unique) > 8 else "")
