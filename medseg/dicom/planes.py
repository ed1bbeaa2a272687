"""How images lie in the patient, in one word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

PLANES: Final = ("axial", "sagittal", "coronal", "oblique")

#: How far the normal of an oblique image is at least from each axis of the patient, in degrees. A gantry is tilted, and
#: heads are imaged along the canthomeatal line or the hippocampus, by less.
OBLIQUE_DEG: Final = 25.0
_SKEWED = 0.1  # lengths and dot product of the two directions, from 1 and 0: beyond it they are none


def plane(cosines: Sequence[float]) -> str:
    """The plane of an image by its ImageOrientationPatient (PS3.3 C.7.6.2.1.1), six values; empty where they say none.

    axial, sagittal or coronal where the image's normal is less than OBLIQUE_DEG from the axis of that plane.
    """
    nearest = nearest_plane(cosines)
    return "" if nearest is None else nearest[0] if nearest[1] < OBLIQUE_DEG else PLANES[-1]


def nearest_plane(cosines: Sequence[float]) -> tuple[str, float] | None:
    """The plane that an image is nearest to, and its degrees out of that; None where they say none."""
    if len(cosines) != 6 or not np.isfinite(cosines).all():
        return None
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if any(abs(length - 1) > _SKEWED for length in lengths) or abs(row @ column) > _SKEWED:
        return None
    normal = np.abs(np.cross(row, column))
    axis = int(normal.argmax())
    angle_deg = np.degrees(np.arccos(min(1.0, normal[axis] / np.linalg.norm(normal))))
    return ("sagittal", "coronal", "axial")[axis], float(angle_deg)
