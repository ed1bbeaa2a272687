"""Whether the voxels of a volume are what a bundle was made for, whatever its series says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from medseg.bundle.bundle import PixelCheck
from medseg.bundle.catalog import AXES, extent_mm
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack

DIM: Final = 0.15  # of the way from the background to the brightest


@dataclass(frozen=True)
class Values:
    """1st and 99th percentile of the input, modality units. air: share of what the bundle takes for air. dim: see
    `dim_share`."""

    low: float
    high: float
    air: float | None = None
    dim: float | None = None


def differences(stack: Stack, check: PixelCheck, values: Values) -> tuple[str, ...]:
    """What is not as it was expected, a sentence each; empty where all is."""
    found = []
    if check.values is not None and not check.values[0] <= values.low <= values.high <= check.values[1]:
        least, most = check.values
        found.append(f"1st and 99th percentile {values.low:g} and {values.high:g}, expected {least:g} to {most:g}")
    if check.air is not None and values.air is not None and not check.air[0] <= values.air <= check.air[1]:
        least, most = check.air
        told = f"{values.air:.0%} of the voxels below {check.air_below:g}"
        found.append(f"{told}, expected {least:.0%} to {most:.0%}")
    if check.dim is not None and values.dim is not None and not check.dim[0] <= values.dim <= check.dim[1]:
        least, most = check.dim
        found.append(f"{values.dim:.1%} of what is no background is dim, expected {least:.0%} to {most:.0%}")
    for axis, extent, (least, most) in zip(AXES, extent_mm(stack), check.fov_mm or (), strict=False):
        if not least <= extent <= most:
            found.append(f"field of view {extent:.0f} mm {axis}, expected {least:g} to {most:g} mm")
    return tuple(found)


def dim_share(values: Pixels) -> float:
    """Of the voxels that are no background, the share that is hardly brighter.

    Background is the value that most voxels have; hardly: less than `DIM` of the way from there to the 99th percentile
    of the others. Bone, air in the head and noise are dim; where a skull was cut away, nothing is: what is left of the
    brain lies next to a constant.
    """
    numbers, counts = np.unique(values, return_counts=True)
    if len(numbers) < 2:
        return 0.0
    background = numbers[counts.argmax()]
    others = values[values != background]
    bright = np.percentile(others, 99)
    return float(np.mean(others < background + DIM * (bright - background)))
