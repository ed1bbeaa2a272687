"""Labels as one array with its affine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.bundle.bundle import Segment
from medseg.inference.planes import LabelSpool
from medseg.results.nifti import grid_slices


@dataclass(frozen=True, eq=False)
class LabelVolume:
    """Labels on the uniform grid of their stack, as `labels.nii.gz` has them.

    array: uint8. Exclusive labels: (K, rows, columns), the number of a segment or 0. Overlapping: (segments, K, rows,
        columns), 0 or 1, in the order of `segments`. K runs along the slices' normal, rows down, columns to the right.
    affine: 4x4, maps (k, row, column, 1) of the array to LPS mm (centres of voxels); sheared under gantry tilt.
    segments: what was looked for, whether or not it was found.
    exclusive: whether a voxel has at most one segment.
    """

    array: NDArray[np.uint8]
    affine: NDArray[np.float64]
    segments: tuple[Segment, ...]
    exclusive: bool

    @classmethod
    def of(cls, labels: LabelSpool) -> LabelVolume:
        """The labels that `segment` has put into a spool.

        Where slices are missing or unevenly spaced the planes of the uniform grid are not the slices: each takes the
        labels of the slice nearest to it, since an affine knows one spacing. The planes of the slices themselves are
        `labels[0]`, `labels[1]`, ..., in the order of `labels.stack.slices`.

        Raises ValueError where the spool does not hold every plane of its stack: `segment` has not come to its end.
        """
        if not len(labels) or len(labels) != len(labels.stack.slices):
            raise ValueError(f"expected the labels of a whole stack, found {len(labels)} planes: segment it first")
        planes = [labels[int(k)] for k in grid_slices(labels.stack)]
        array = np.stack(planes, axis=0 if labels.exclusive else 1)
        return cls(array, np.array(labels.stack.affine, np.float64), labels.segments, labels.exclusive)
