"""Which slices of a series may be of one volume at all: what all slices of a volume share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.dicom.headers import look
from medseg.dicom.instance import Slice
from medseg.dicom.reason import Reason, Refusal
from medseg.dicom.series import Finding

_PARALLEL = 0.9999
_SAME_SPACING = 1e-4

Numbers = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Slices that share what a volume shares. apart_by: what sets them apart from other groups of the series."""

    slices: tuple[Slice, ...]
    apart_by: str = ""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Key:
    """What slices of one volume share, in plain numbers: comparing thousands of pairs must be cheap."""

    patient: str
    frame_of_reference: str
    size: tuple[int, int]
    spacing_mm: tuple[float, float]
    row: Numbers
    column: Numbers

    def difference(self, other: _Key) -> Reason | None:
        """The first thing that keeps two slices out of one volume."""
        if self.patient != other.patient:
            return Reason.MIXED_PATIENT
        if self.frame_of_reference != other.frame_of_reference:
            return Reason.MIXED_FRAME_OF_REFERENCE
        if self.size != other.size:
            return Reason.MIXED_SIZE
        if any(abs(a - b) > _SAME_SPACING * b for a, b in zip(self.spacing_mm, other.spacing_mm, strict=True)):
            return Reason.MIXED_PIXEL_SPACING
        if not (_parallel(self.row, other.row) and _parallel(self.column, other.column)):
            return Reason.MIXED_ORIENTATION
        return None


def _parallel(a: Numbers, b: Numbers) -> bool:
    return sum(x * y for x, y in zip(a, b, strict=True)) > _PARALLEL


def frame_of_reference(plane: Slice) -> str:
    """Its FrameOfReferenceUID; empty where there is none."""
    return _text(plane, "FrameOfReferenceUID")


def _text(plane: Slice, keyword: str) -> str:
    return "" if plane.instance is None else look(plane.instance.header).text(keyword)


def _key(plane: Slice) -> _Key:
    return _Key(
        _text(plane, "PatientID"),
        frame_of_reference(plane),
        (plane.plane.rows, plane.plane.columns),
        plane.plane.spacing_mm,
        tuple(plane.plane.row_direction.tolist()),
        tuple(plane.plane.column_direction.tolist()),
    )


def group(slices: Sequence[Slice], min_slices: int) -> tuple[list[Group], list[Refusal]]:
    """Slices by what they must share; groups that are too small are refused by what sets them apart."""
    groups: list[tuple[_Key, list[Slice]]] = []
    for plane in slices:
        key = _key(plane)
        for other, members in groups:
            if key.difference(other) is None:
                members.append(plane)
                break
        else:
            groups.append((key, [plane]))
    if not groups:
        return [], []
    groups.sort(key=lambda group: -len(group[1]))
    largest, kept, refusals = groups[0][0], [], []
    for number, (key, members) in enumerate(groups, 1):
        compared = groups[1][0] if number == 1 and len(groups) > 1 else largest
        reason = key.difference(compared) or Reason.TOO_FEW_SLICES
        if len(members) < min_slices:
            refusals.append(Refusal(reason, _too_few(len(members), min_slices, reason, key), len(members)))
        elif len(groups) == 1:
            kept.append(Group(tuple(members)))
        else:
            detail = f"{len(members)} of {len(slices)} slices: {_mixed(reason)} within the series"
            kept.append(Group(tuple(members), _told_apart(reason, key, number), (Finding(str(reason), detail),)))
    return kept, refusals


def _mixed(reason: Reason) -> str:
    return {
        Reason.MIXED_PATIENT: "different PatientIDs",
        Reason.MIXED_FRAME_OF_REFERENCE: "different FrameOfReferenceUIDs",
        Reason.MIXED_SIZE: "different Rows or Columns",
        Reason.MIXED_PIXEL_SPACING: "different PixelSpacing",
        Reason.MIXED_ORIENTATION: "different ImageOrientationPatient",
    }[reason]


def _told_apart(reason: Reason, key: _Key, number: int) -> str:
    match reason:
        case Reason.MIXED_PATIENT:
            return f"patient {number}"  # the identifier itself stays out of labels and logs
        case Reason.MIXED_FRAME_OF_REFERENCE:
            return f"FrameOfReferenceUID={key.frame_of_reference or 'absent'}"
        case Reason.MIXED_SIZE:
            return f"Rows={key.size[0]}, Columns={key.size[1]}"
        case Reason.MIXED_PIXEL_SPACING:
            return "PixelSpacing={:g}\\{:g}".format(*key.spacing_mm)
        case _:
            return "ImageOrientationPatient=" + "\\".join(f"{number:.4g}" for number in (*key.row, *key.column))


def _too_few(count: int, least: int, reason: Reason, key: _Key) -> str:
    if reason == Reason.TOO_FEW_SLICES:
        return f"{count} slices: expected at least {least}"
    return f"{count} slices apart from the others ({_told_apart(reason, key, 0)}): expected at least {least}"
