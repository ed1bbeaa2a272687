"""Slices in order along their normal, and whether they make a volume by where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Slice, Vector
from medseg.dicom.reason import Reason
from medseg.dicom.spacing import Grid, place_on_grid, position_numbers, written_mm

_OFF_LINE_PIXELS = 0.1
_OVERLAP = 1.1  # slices this much thicker than their spacing overlap
_DENSE = 1.4
_SPARSE = 0.5
_SAME_SPACING = 0.02

Places = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Ordered:
    """Parallel slices by their height along the normal.

    positions_mm: (N, 3). heights_mm: (N,), not falling. written_mm: see `spacing.written_mm`.
    """

    slices: tuple[Slice, ...]
    positions_mm: Vector
    heights_mm: Vector
    written_mm: float

    def __len__(self) -> int:
        return len(self.slices)

    def part(self, places: Places) -> Ordered:
        """Some of the slices; `places` in order."""
        return Ordered(
            tuple(self.slices[place] for place in places),
            self.positions_mm[places],
            self.heights_mm[places],
            self.written_mm,
        )

    def positions(self) -> Places:
        """The number of each slice's position."""
        return position_numbers(self.heights_mm)

    def off_line(self) -> tuple[Reason, str] | None:
        """Whether a slice lies aside of the line from the first to the last."""
        if len(self) < 2:
            return None
        offsets = self.positions_mm - self.positions_mm[0]
        along = offsets[-1] / np.linalg.norm(offsets[-1])
        aside = float(np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1).max())
        limit = max(self._rounded(), _OFF_LINE_PIXELS * min(self.slices[0].plane.spacing_mm))
        if aside <= limit:
            return None
        detail = f"a slice lies {aside:.3g} mm off the line of first and last"
        return Reason.NOT_ON_A_LINE, f"{detail}: expected at most {limit:.3g} mm"

    def _rounded(self) -> float:
        # Coarser than a pixel is no rounding but the decimals that happened to be enough.
        return self.written_mm if self.written_mm <= min(self.slices[0].plane.spacing_mm) else 0.0

    def grid(self) -> Grid | tuple[Reason, str]:
        """The uniform grid of slices that are apart, or what is wrong with them."""
        return self.off_line() or place_on_grid(self.heights_mm, self.written_mm)

    def even(self) -> bool:
        """Whether they make up a volume as they lie."""
        if len(self) < 2:
            return False
        counted = np.bincount(self.positions())
        return bool(counted.max() == 1) and isinstance(self.grid(), Grid)

    def too_dense(self) -> bool:
        """Whether slices would overlap if all lay between the others; quickly."""
        mean = float(np.ptp(self.heights_mm)) / max(len(self) - 1, 1)
        return self.stated("SliceThickness") > _DENSE * mean

    def one_finer(self) -> bool | None:
        """Whether slices that lie between each other are packages of one volume, rather than several volumes.

        Slices of one volume are as thick as their spacing, or thinner. Where the thickness (PS3.3 C.7.6.2) is that of a
        wider spacing, each set of them is a volume of its own. None: neither it nor SpacingBetweenSlices tells.
        """
        grid = self.grid()
        step = grid.spacing_mm if isinstance(grid, Grid) else float(np.ptp(self.heights_mm)) / max(len(self) - 1, 1)
        thickness = self.stated("SliceThickness")
        if thickness > _OVERLAP * step:
            return False
        if thickness >= _SPARSE * step:
            return True
        spacing = self.stated("SpacingBetweenSlices")
        if abs(spacing - step) <= _SAME_SPACING * step:
            return True
        return False if spacing > 1.5 * step else None

    def stated(self, keyword: str) -> float:
        """The median of a length that slices state; 0 where none does."""
        lengths = [number for one in self.slices if (number := _number(one.phase.get(keyword, ""))) > 0]
        return float(np.median(lengths)) if lengths else 0.0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def in_order(slices: Sequence[Slice]) -> Ordered:
    """Slices sorted along the normal of the first."""
    normal = slices[0].plane.normal
    positions = np.array([one.plane.position_mm for one in slices])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    return Ordered(
        tuple(slices[place] for place in order), positions[order], heights[order], written_mm(positions, normal)
    )
