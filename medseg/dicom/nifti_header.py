"""What the header of a NIfTI file says, where a reader may not go by it (nifti1.h, nifti2.h).

nibabel mends what it finds: a distance of 0 becomes 1, a negative one positive, others do otherwise. Where readers part
company a file is refused by name.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from medseg.dicom.instance import Vector
from medseg.dicom.series import Finding
from medseg.errors import UnreadableInstance

#: What nibabel, numpy, gzip and zlib raise for files that are not what they claim to be.
DAMAGED: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    HeaderDataError,
    ImageDataError,
    ImageFileError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
    WrapStructError,
    zlib.error,
)
_MM: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # nifti1.h: NIFTI_UNITS_METER, _MM, _MICRON
_GZIP_AT_MOST: Final = 1100  # to one, of deflate
_APART: Final = 0.05  # of a voxel's edge
_LOST: Final = 1e-9  # the smallest edge to the largest, or the largest to the way to the origin


def opened(path: Path) -> nibabel.Nifti1Image:
    """A NIfTI file (1 or 2, single, maybe gzipped); its values are still to be read.

    Raises:
        UnreadableInstance: not NIfTI, or a header that makes no sense.
    """
    try:
        image = nibabel.load(path)
    except DAMAGED as error:
        raise UnreadableInstance(str(path), f"not a NIfTI volume ({one_line(error)})") from error
    if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti2Image):
        raise UnreadableInstance(str(path), f"not a NIfTI volume ({type(image).__name__})")
    if not _as_written(path, image)["magic"].item().startswith(b"n+"):
        raise UnreadableInstance(str(path), "a NIfTI header whose values are in another file: expected one file")
    return image


def volumes_of(image: nibabel.Nifti1Image) -> int:
    """How many volumes a file has, along its fourth axis."""
    shape = [int(size) for size in image.shape]
    return shape[3] if len(shape) == 4 and shape[3] > 0 else 1


def shape_of(path: Path, image: nibabel.Nifti1Image, *, several: bool = False) -> tuple[int, int, int]:
    """The volume's size. several: of each of those along the fourth axis.

    Raises UnreadableInstance where there is no volume, several that are not expected, or not so many bytes.
    """
    shape = tuple(int(size) for size in image.shape)
    if several:
        shape = shape[:3]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        found = " x ".join(map(str, shape))
        raise UnreadableInstance(str(path), f"{found} values: expected one three-dimensional volume")
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise UnreadableInstance(
            str(path), f"values of type {_named(kind)}: expected one grey value (integer or float) a voxel"
        )
    needed = math.prod(map(int, image.shape)) * kind.itemsize
    there = path.stat().st_size * (_GZIP_AT_MOST if path.name.lower().endswith(".gz") else 1)
    there = max(there - int(image.dataobj.offset), 0)
    if there < needed:
        raise UnreadableInstance(
            str(path), f"cut short: {' x '.join(map(str, shape))} values take {needed} bytes, at most {there} are there"
        )
    return shape[0], shape[1], shape[2]


def lies_as_meant(path: Path, image: nibabel.Nifti1Image) -> bool:
    """Whether a part of the values can be read by itself: the file is not packed, and they are neither scaled nor
    wider than what they are read as."""
    kind, scale = image.get_data_dtype(), (image.dataobj.slope, image.dataobj.inter)
    return not path.name.lower().endswith(".gz") and scale == (1, 0) and (kind.kind == "f" or kind.itemsize <= 4)


def _named(kind: np.dtype[Any]) -> str:
    return f"colour ({', '.join(kind.names)})" if kind.names else "complex" if kind.kind == "c" else str(kind)


def affine_of(path: Path, image: nibabel.Nifti1Image) -> tuple[Vector, tuple[Finding, ...]]:
    """The affine to RAS millimetres: the sform where it is set, else the qform; and what is to be said of it.

    Raises:
        UnreadableInstance: none of them spans a volume, distances make no sense, or the two contradict each other.
    """
    header = image.header
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    findings = []
    try:
        if sform <= 0:
            _check_distances(path, image)
        affine = np.asarray(image.affine, dtype=np.float64)
        other = np.asarray(header.get_qform(), dtype=np.float64) if sform > 0 and qform > 0 else affine
    except DAMAGED as error:
        raise UnreadableInstance(str(path), f"its qform makes no sense ({one_line(error)})") from error
    if not spans(affine):
        raise UnreadableInstance(str(path), "its affine (sform or qform) does not span a volume")
    if spans(other):
        findings += _compared(path, affine, other, same_space=sform == qform)
    if sform <= 0 and qform <= 0:
        detail = "neither sform nor qform is set: the orientation in the patient is a guess"
        findings.append(Finding("no_orientation", detail))
    scaled = affine.copy()
    scaled[:3] *= _unit_mm(path, int(header["xyzt_units"]))
    return scaled, tuple(findings)


def _unit_mm(path: Path, units: int) -> float:
    """How many mm the unit of distances has; mm where none is said. units: of distances, and of time above them."""
    if units & 7 not in _MM:
        raise UnreadableInstance(str(path), f"xyzt_units is {units}: distances in no known unit")
    return _MM[units & 7]


def spans(affine: Vector) -> bool:
    """Whether an affine leads to a volume."""
    if not np.isfinite(affine).all():
        return False
    edges = affine[:3, :3]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        size = np.linalg.norm(edges, axis=0)
        if not np.isfinite(size).all() or not size.all():
            return False
        # Beyond these, sums of positions lose the smaller of their terms, and an axis with it.
        if size.min() < _LOST * size.max() or _LOST * np.abs(affine[:3, 3]).max() > size.max():
            return False
        return abs(float(np.linalg.det(edges / size))) >= 1e-9


def _check_distances(path: Path, image: nibabel.Nifti1Image) -> None:
    """Whether pixdim, by which the qform goes, holds distances."""
    distances = _as_written(path, image)["pixdim"][1:4].tolist()
    if not all(0 < size < math.inf for size in distances):
        said = ", ".join(f"{size:g}" for size in distances)
        raise UnreadableInstance(str(path), f"pixdim is {said}: expected three distances greater than 0")


def _as_written(path: Path, image: nibabel.Nifti1Image) -> Any:
    """The header as it is in the file: that of the image is mended."""
    with ImageOpener(path) as file:
        return type(image.header).from_fileobj(file, check=False)


def _compared(path: Path, affine: Vector, other: Vector, *, same_space: bool) -> list[Finding]:
    """What is to be said of an sform and a qform.

    They may lead into two spaces (a scanner's, an atlas's), between which nothing is mirrored. Within one they are two
    answers to one question, and where they name other axes nobody knows which is right.
    """
    mirrored = np.linalg.det(affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0
    axes = ["".join(nibabel.aff2axcodes(one)) for one in (affine, other)]
    if mirrored or (same_space and axes[0] != axes[1]):
        raise UnreadableInstance(
            str(path), f"sform ({axes[0]}) and qform ({axes[1]}) contradict each other: mend the one that is wrong"
        )
    edge = np.linalg.norm(affine[:3, :3], axis=0)
    if same_space and np.abs(affine - other)[:3, :3].max() > _APART * float(edge.min()):
        return [Finding("sform_and_qform", "sform and qform lead to different places: the sform is used")]
    return []


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
