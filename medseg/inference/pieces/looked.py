"""A few slices of a volume looked at, before anything is done with it."""

from __future__ import annotations

import numpy as np

from medseg.bundle.bundle import PixelCheck
from medseg.bundle.pixel_check import differences
from medseg.dicom.series import Stack
from medseg.inference.pieces.quality import Samples

SLICES = 9


def look_at_pixels(stack: Stack, check: PixelCheck) -> tuple[str, ...]:
    """What is not as a bundle expects it in some slices, evenly apart. Raises what reading them raises."""
    samples = Samples()
    for k in np.unique(np.linspace(0, len(stack.slices) - 1, SLICES).round().astype(int)):
        samples.add(stack.slices[int(k)].read())
    return differences(stack, check, samples.values(check))
