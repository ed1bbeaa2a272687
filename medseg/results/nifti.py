"""Labels as NIfTI on the stack's uniform grid."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from medseg.dicom.nifti import LPS_TO_RAS
from medseg.dicom.series import Stack
from medseg.inference.planes import LabelSpool
from medseg.results.encoding import plain
from medseg.results.files import replacing
from medseg.results.provenance import Provenance


def write_nifti(path: Path, labels: LabelSpool, provenance: Provenance, *, like: Path | None = None) -> None:
    """Write labels.nii.gz: uint8, axes (i, j, k) = (column, row, slice), RAS affine; sheared under gantry tilt.

    Exclusive labels: 3-D, the segment number or 0. Overlapping: 4-D, 0 or 1, the last axis in the order of segments.
    NIfTI has one spacing, so each plane of the uniform grid takes the labels of the slice nearest to it: a bridged
    gap repeats its neighbour (zeros would cut an organ in two and lose volume), which is how `thickness_mm` counts too.

    like: the NIfTI volume that was segmented, whose grid is kept exactly, left-handed ones included.

    Raises OutputNotWritable.
    """
    stack = labels.stack
    nearest = grid_slices(stack)
    shape = (stack.shape[2], stack.shape[1], len(nearest))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape if labels.exclusive else (*shape, len(labels.segments)))
    affine, space, unit = ras_affine(stack), 1, 2  # mm
    if like is not None:
        source = nibabel.load(like)
        if np.linalg.det(source.affine) * np.linalg.det(affine) < 0:  # its slices were turned round when read
            nearest = nearest[::-1]
        affine, space = source.affine, int(source.header["sform_code"]) or int(source.header["qform_code"])
        unit = int(source.header["xyzt_units"]) & 7 or unit
    header.set_sform(affine, code=space)
    # the quaternion form knows no shear
    header.set_qform(affine, code=space if abs(stack.tilt_deg) < 0.01 else 0)
    header.set_xyzt_units(unit)
    header["descrip"] = plain(f"medseg {provenance.bundle} {provenance.bundle_version}")[:79].encode()
    header.set_data_offset(352)
    header["magic"] = b"n+1"
    channels = 1 if labels.exclusive else len(labels.segments)
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        # no time and no name in the gzip header: the same labels give the same bytes
        gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=raw, mtime=0) as out,
    ):
        out.write(header.binaryblock + b"\0" * 4)
        for channel in range(channels):
            for k in nearest:
                out.write(labels.channel(int(k), channel).tobytes())


def grid_slices(stack: Stack) -> NDArray[np.intp]:
    """For each plane of the uniform grid the number k of the slice nearest to it."""
    grid = np.arange(round(float(stack.coordinates[-1])) + 1)
    distance = np.abs(grid[:, None] - stack.coordinates[None, :])
    return np.asarray(distance.argmin(axis=1), np.intp)


def ras_affine(stack: Stack) -> NDArray[np.float64]:
    """4x4, maps (i, j, k, 1) = (column, row, slice) to RAS millimetres."""
    lps = stack.affine[:, [2, 1, 0, 3]]
    return np.asarray(LPS_TO_RAS @ lps)
