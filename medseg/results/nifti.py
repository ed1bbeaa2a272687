"""Labels as NIfTI on the stack's uniform grid."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from medseg.dicom.nifti import LPS_TO_RAS
from medseg.dicom.series import Stack
from medseg.inference.planes import LabelSpool
from medseg.results.encoding import plain
from medseg.results.files import replacing
from medseg.results.provenance import Provenance

_VOXELS: Final = 352  # the byte at which they begin


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
    header.set_data_offset(_VOXELS)
    header["magic"] = b"n+1"
    channels = 1 if labels.exclusive else len(labels.segments)
    with replacing(path) as temporary, _compressed(temporary) as out:
        out.write(header.binaryblock + b"\0" * 4)
        for channel in range(channels):
            for k in nearest:
                out.write(labels.channel(int(k), channel).tobytes())


def is_overlapping(path: Path) -> bool:
    """Whether a file of `write_nifti` has a volume for each segment. Raises OSError."""
    with gzip.open(path) as file:
        return len(_header(file).get_data_shape()) == 4


def write_masks(path: Path, masks: Sequence[Path]) -> None:
    """The volumes of such a file, each a file of its own: 0 or 1. Raises OSError."""
    with gzip.open(path) as file:
        header = _header(file)
        shape = header.get_data_shape()
        header.set_data_shape(shape[:3])
        for mask, _ in zip(masks, range(shape[3]), strict=True):
            with _compressed(mask) as out:
                out.write(header.binaryblock + b"\0" * 4)
                for _ in range(shape[2]):
                    out.write(file.read(shape[0] * shape[1]))


def _header(file: gzip.GzipFile) -> nibabel.Nifti1Header:
    """What a file of `write_nifti` begins with; reads up to its voxels."""
    block = file.read(_VOXELS)
    return nibabel.Nifti1Header(block[: nibabel.Nifti1Header.sizeof_hdr])


@contextmanager
def _compressed(path: Path) -> Iterator[gzip.GzipFile]:
    """No time and no name in the gzip header: the same labels give the same bytes."""
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=raw, mtime=0) as out:
        yield out


def grid_slices(stack: Stack) -> NDArray[np.intp]:
    """For each plane of the uniform grid the number k of the slice nearest to it."""
    grid = np.arange(round(float(stack.coordinates[-1])) + 1)
    distance = np.abs(grid[:, None] - stack.coordinates[None, :])
    return np.asarray(distance.argmin(axis=1), np.intp)


def ras_affine(stack: Stack) -> NDArray[np.float64]:
    """4x4, maps (i, j, k, 1) = (column, row, slice) to RAS millimetres."""
    lps = stack.affine[:, [2, 1, 0, 3]]
    return np.asarray(LPS_TO_RAS @ lps)
