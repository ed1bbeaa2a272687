"""What nnU-Net removes afterwards: all but the largest piece of a label, or of several together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.inference.nnunet.resample import Array

_TOUCHING = np.ones((3, 3, 3), np.uint8)  # by a corner, too


def cleaned(labels: Array, steps: Sequence[tuple[int, ...]]) -> Array:
    """Labels (z, y, x), changed in place: of each step's labels together the largest piece stays, and all as large."""
    for together in steps:
        mask = np.isin(labels, together)
        numbers, count = ndimage.label(mask, _TOUCHING)
        if count > 1:
            sizes = np.bincount(numbers.ravel())[1:]
            kept = np.concatenate([[True], sizes == sizes.max()])
            labels[~kept[numbers]] = 0
    return labels
