"""Whether MONAI's grid is known before the last slice has come, where slices lie obliquely in the patient.

    at right angles     the new grid begins at the old one's first voxel, however many slices follow
    otherwise           no corner is the least along every axis: the middles are laid on each other (`grid.resampled`),
                        every sample lies up to half a voxel elsewhere, and where depends on the last slice

Cosines and positions of an oblique series are written with so many decimals, so its axes are mostly not at right angles
to the 1e-8 of a voxel that MONAI asks for.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from medseg.bundle.recipe import Recipe
from medseg.dicom.instance import Vector
from medseg.dicom.series import Stack
from medseg.inference.grids.grid import ModelFrame, between
from medseg.inference.grids.prepare import preprocessing_plan

_RIGHT: Final = 1e-8  # of a voxel; MONAI's own, in `compute_shape_offset`
_WHY: Final = "slices lie obliquely, and through directions that are rounded MONAI's grid depends on the last"


def reason_to_wait(straight: Vector, stack: Stack, recipe: Recipe) -> str | None:
    """Why the model's grid is not the one that follows from the first slices; None where it is.

    straight: an affine (k, j, i, 1) to LPS mm through the first slices, freed from what was rounded.
    """
    read = stack.as_read
    if (np.count_nonzero(read[:3, :3], axis=0) == 1).all():  # along the patient's axes, where nothing is rounded
        return None
    as_read, as_meant = (preprocessing_plan(affine, stack.shape, recipe).resampling for affine in (read, straight))
    if as_read is None or as_meant is None:
        return None if as_read is as_meant else _WHY
    same = as_read.new.shape == as_meant.new.shape and _at_right_angles(as_read.old, as_read.new)
    return None if same else _WHY


def _at_right_angles(old: ModelFrame, new: ModelFrame) -> bool:
    """Whether no voxel of the old grid lies aside of the new one's axes."""
    slant = np.abs(np.linalg.inv(between(old, new))[:3, :3])
    np.fill_diagonal(slant, 0.0)
    return bool((slant @ (np.array(old.shape) - 1)).max() <= _RIGHT)
