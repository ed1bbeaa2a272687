"""Which head is the highest wherever it is looked for between voxels, told by the voxels alone.

label of voxels     3  3  3  |  ?  7  7        between two 3 there are only 3: a mixture of scores keeps their order,
                                               and so does rounding it to half, where one leads by more than that
?                              one does not lead by so much: it has to be looked for
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from medseg.inference.nnunet.resample import Array

OPEN: Final = -1
_STEP: Final = 2.0**-10  # of a number in half, to the next one
_LEAST: Final = 2.0**-24  # between numbers in half at 0


def settled(plane: Tensor) -> Array:
    """The highest of the heads (K, y, x) at each voxel; OPEN where another is so close that rounding might hide it."""
    best = plane[0].float()
    second = torch.full_like(best, -torch.inf)
    label = torch.zeros(best.shape, dtype=torch.int16)
    for number, half in enumerate(plane[1:], 1):
        head = half.float()
        label.masked_fill_(head > best, number)
        second = torch.maximum(second, torch.minimum(best, head))
        best = torch.maximum(best, head)
    close = best - second <= 2 * (torch.maximum(best.abs(), second.abs()) * _STEP + _LEAST)
    return label.masked_fill_(close, OPEN).numpy()


def agreed(one: Array, other: Array) -> Array:
    """What both say; OPEN where that is not the same."""
    return one if one is other else np.where(one == other, one, np.int16(OPEN))
