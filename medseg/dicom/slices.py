"""From instances to image planes: one for a classic instance, one a frame for an enhanced one."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from medseg.dicom.decode import read_plane
from medseg.dicom.headers import Attributes, frames, look
from medseg.dicom.instance import Instance, Plane, Slice, Vector
from medseg.dicom.reason import Reason
from medseg.dicom.stored import scaling
from medseg.dicom.traits import dimension_names, traits
from medseg.errors import GeometryRefused, UnreadableInstance

_COLOUR = {"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
_UNIT_TOLERANCE = 1e-3
_NUMERIC = re.compile(r"[-+.,eE\d\s\\]*")


def expand(instance: Instance) -> tuple[Slice, ...]:
    """The planes of an instance, in frame order.

    Raises:
        GeometryRefused: a plane cannot be part of any volume; `reason` says why.
    """
    header = instance.header
    if "PerFrameFunctionalGroupsSequence" in header:
        try:
            views = frames(header)
        except UnreadableInstance as error:
            raise _refuse(instance, Reason.MALFORMED_HEADER, error.why) from error
        dimensions = dimension_names(look(header))
        return tuple(_slice(instance, number, view, dimensions) for number, view in enumerate(views, 1))
    view = look(header)
    if (view.number("NumberOfFrames") or 1) > 1:
        # A classic object with frames says where none of them is; a Siemens mosaic is not among these.
        raise _refuse(instance, Reason.MULTIFRAME_WITHOUT_GEOMETRY, "several frames without functional groups")
    return (_slice(instance, None, view, ()),)


def _slice(instance: Instance, frame: int | None, view: Attributes, dimensions: tuple[str, ...]) -> Slice:
    check_image(instance, view)
    modality = view.text("Modality")
    if modality == "CT":
        _check_hounsfield(instance, view)
    plane = _plane(instance, view)
    try:
        scale = scaling(view, modality)
    except ValueError as error:
        raise _refuse(instance, Reason.MALFORMED_HEADER, str(error)) from error
    phase = traits(instance, frame, view, dimensions)
    return Slice(plane, partial(read_plane, instance, frame, scale), instance, frame, phase)


def check_image(instance: Instance, view: Attributes) -> None:
    """Raises GeometryRefused for an image that is a plane of no volume, by its ImageType and its colours."""
    kinds = {kind.upper() for keyword in ("ImageType", "FrameType") for kind in view.texts(keyword)}
    if "LOCALIZER" in kinds:
        raise _refuse(instance, Reason.LOCALIZER, "a localizer (ImageType), not a volume")
    if "MOSAIC" in kinds:
        raise _refuse(
            instance,
            Reason.MOSAIC,
            "a Siemens mosaic (ImageType): all slices of a volume as tiles of one image; export it unpacked",
        )
    samples = view.number("SamplesPerPixel")
    if (samples or 1) != 1 or view.text("PhotometricInterpretation") in _COLOUR:
        colour = view.text("PhotometricInterpretation") or f"{samples:g} samples per pixel"
        raise _refuse(instance, Reason.COLOUR, f"a colour image ({colour}): expected one grey value per pixel")


def _check_hounsfield(instance: Instance, view: Attributes) -> None:
    absent = [name for name in ("RescaleSlope", "RescaleIntercept") if view.number(name) is None]
    if absent:
        raise _refuse(
            instance,
            Reason.CT_WITHOUT_RESCALE,
            f"CT without {' and '.join(absent)}: stored values cannot be turned into HU",
        )
    kind = view.text("RescaleType")
    if kind not in ("", "HU"):
        raise _refuse(instance, Reason.CT_NOT_HU, f"CT whose RescaleType is {kind}: expected HU")


def _plane(instance: Instance, view: Attributes) -> Plane:
    directions = _triples(instance, view, "ImageOrientationPatient", 6, Reason.NO_ORIENTATION)
    row, column = directions[:3], directions[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    slant = float(row @ column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(slant)) > _UNIT_TOLERANCE:
        raise _refuse(
            instance,
            Reason.BAD_ORIENTATION,
            f"ImageOrientationPatient of lengths {lengths[0]:.4g} and {lengths[1]:.4g} with product {slant:.4g}: "
            "expected two unit vectors at right angles",
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    spacing = view.numbers("PixelSpacing")
    if len(spacing) != 2 or not all(0 < size < np.inf for size in spacing):
        found = _found(view, "PixelSpacing")
        raise _refuse(instance, Reason.NO_PIXEL_SPACING, f"PixelSpacing is {found}: expected two distances in mm")
    rows, columns = view.number("Rows"), view.number("Columns")
    if not rows or not columns:
        raise _refuse(instance, Reason.MALFORMED_HEADER, "no Rows or Columns")
    return Plane(
        position_mm=_triples(instance, view, "ImagePositionPatient", 3, Reason.NO_POSITION),
        row_direction=row,
        column_direction=column,
        spacing_mm=(spacing[0], spacing[1]),
        rows=int(rows),
        columns=int(columns),
        cosines=None if np.array_equal(directions, [*row, *column]) else directions,
    )


def _triples(instance: Instance, view: Attributes, keyword: str, length: int, absent: Reason) -> Vector:
    numbers = np.array(view.numbers(keyword), dtype=np.float64)
    if len(numbers) != length or not np.isfinite(numbers).all():
        found = _found(view, keyword)
        raise _refuse(instance, absent, f"{keyword} is {found}: expected {length} numbers")
    return numbers


def _found(view: Attributes, keyword: str) -> str:
    """What an attribute of numbers says, for a message; anything else it says may be of the patient."""
    text = view.text(keyword)
    return (text if _NUMERIC.fullmatch(text) else "not numeric") if text else "absent"


def _refuse(instance: Instance, reason: Reason, what: str) -> GeometryRefused:
    series_uid = look(instance.header).text("SeriesInstanceUID")
    return GeometryRefused(series_uid, reason, f"{what} (instance {instance.sop_instance_uid})")
