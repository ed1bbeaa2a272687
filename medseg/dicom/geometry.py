"""Which slices of a series form volumes: each accepted, split or refused, with its reason.

A decision about slices alone, with no file read. Positions are projected on the slice normal (PS3.3 C.7.6.2.1.1);
InstanceNumber, SliceLocation, SpacingBetweenSlices, GantryDetectorTilt and the order of files say nothing here.

    slices -> belong together? (patient, frame of reference, size, pixel spacing, orientation)      else groups
           -> one slice for each position? (echo, time point, b-value, ...)                         else phases
           -> on a line, evenly spaced? (one missing slice is bridged, a change of spacing splits)  -> Stack
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.dicom.headers import derived_uids, look
from medseg.dicom.instance import Plane, Slice, Vector
from medseg.dicom.phases import natural, split_phases
from medseg.dicom.reason import Reason
from medseg.dicom.series import Finding, Level, Series, Stack
from medseg.dicom.slices import expand
from medseg.dicom.spacing import (
    ROUNDED_MM,
    SAME_MM,
    UNIFORM,
    Grid,
    base_step,
    listed,
    place_on_grid,
    position_numbers,
    shared_positions,
    split_at_changes,
)
from medseg.errors import GeometryRefused

__all__ = ["Reason", "Refusal", "Verdict", "classify"]

_PARALLEL = 0.9999
_SAME_SPACING = 1e-4
_TILT_DEG = 0.5
_OFF_LINE_PIXELS = 0.1


@dataclass(frozen=True)
class Refusal:
    """Slices that are not segmented: why, in one sentence, and how many."""

    reason: Reason
    detail: str
    slices: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """What became of a series: the stacks that can be segmented, and what was left out."""

    series: Series
    stacks: tuple[Stack, ...]
    refusals: tuple[Refusal, ...]

    @property
    def verdict(self) -> str:
        """accepted: one stack of all slices; split: several, or some slices left out; refused: none."""
        if not self.stacks:
            return "refused"
        return "accepted" if len(self.stacks) == 1 and not self.refusals else "split"


@dataclass(frozen=True, eq=False)
class _Group:
    """Slices on their way to becoming a stack. phase: what tells them from other groups."""

    slices: tuple[Slice, ...]
    phase: str = ""
    findings: tuple[Finding, ...] = ()

    def part(self, slices: Iterable[Slice], phase: str, *findings: Finding) -> _Group:
        return _Group(
            tuple(slices),
            ", ".join(said for said in (self.phase, phase) if said),
            (*self.findings, *findings),
        )


def classify(
    series: Series,
    slices: Sequence[Slice] | None = None,
    *,
    assume_frame_of_reference: bool = False,
    min_slices: int = 3,
) -> Verdict:
    """Sort the slices of a series into stacks.

    Args:
        series: as read; the order of its instances does not matter.
        slices: its planes, where they have been expanded already; else the series' instances are expanded here.
        assume_frame_of_reference: derive a FrameOfReferenceUID from the SeriesInstanceUID where there is none.
        min_slices: a stack has at least so many.

    Returns:
        The verdict; stacks by falling number of slices, then by phase.
    """
    refusals: list[Refusal] = []
    if slices is None:
        slices, refusals = _expand_all(series)
    conflict = _conflict(slices)
    if conflict:
        return Verdict(series, (), (*refusals, Refusal(Reason.CONFLICTING_INSTANCES, conflict, len(slices))))
    # The result must not depend on the order in which slices came.
    together, left_out = _groups(sorted(slices, key=_identity), min_slices)
    refusals += left_out
    stacks: list[Stack] = []
    for group in together:
        reference = _frame_of_reference(group.slices[0])
        if not reference:
            if not assume_frame_of_reference:
                refusals.append(_no_frame_of_reference(group))
                continue
            reference = assumed_frame_of_reference(series.series_uid)
            group = group.part(group.slices, "", _assumed(reference))
        arranged, left_out = _arrange(group, min_slices)
        refusals += left_out
        stacks += [_stack(series, reference, *one) for one in arranged]
    stacks.sort(key=lambda stack: (-len(stack.slices), natural(stack.phase)))
    return Verdict(series, tuple(stacks), _summed(refusals))


def assumed_frame_of_reference(series_uid: str) -> str:
    """A UID (2.25, PS3.5 B.2) that is always the same for a series that names no frame of reference."""
    digest = hashlib.sha256(f"medseg frame of reference {series_uid}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


# --- one plane -------------------------------------------------------------------------------------------------


def _expand_all(series: Series) -> tuple[list[Slice], list[Refusal]]:
    slices: list[Slice] = []
    refusals = []
    for instance in series.instances:
        try:
            slices += expand(instance)
        except GeometryRefused as error:
            frames = look(instance.header).number("NumberOfFrames") or 1
            refusals.append(Refusal(Reason(error.reason), error.detail, int(frames)))
    return slices, refusals


def _identity(plane: Slice) -> tuple[str, int]:
    return "" if plane.instance is None else plane.instance.sop_instance_uid, plane.frame or 0


def _conflict(slices: Sequence[Slice]) -> str | None:
    """Copies of one object were dropped when reading: what is still here twice differs."""
    seen = set()
    for plane in slices:
        if _identity(plane) in seen:
            uid, _ = _identity(plane)
            return f"SOPInstanceUID {uid} names several different objects: which one is meant cannot be known"
        seen.add(_identity(plane))
    return None


def _header_text(plane: Slice, keyword: str) -> str:
    return "" if plane.instance is None else look(plane.instance.header).text(keyword)


def _frame_of_reference(plane: Slice) -> str:
    return _header_text(plane, "FrameOfReferenceUID")


# --- planes that belong together -------------------------------------------------------------------------------

Numbers = tuple[float, ...]


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


def _key(plane: Slice) -> _Key:
    return _Key(
        _header_text(plane, "PatientID"),
        _frame_of_reference(plane),
        (plane.plane.rows, plane.plane.columns),
        plane.plane.spacing_mm,
        tuple(plane.plane.row_direction.tolist()),
        tuple(plane.plane.column_direction.tolist()),
    )


def _groups(slices: Sequence[Slice], min_slices: int) -> tuple[list[_Group], list[Refusal]]:
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
            kept.append(_Group(tuple(members)))
        else:
            detail = f"{len(members)} of {len(slices)} slices: {_mixed(reason)} within the series"
            kept.append(_Group(tuple(members), _told_apart(reason, key, number), (Finding(str(reason), detail),)))
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


def _no_frame_of_reference(group: _Group) -> Refusal:
    return Refusal(
        Reason.NO_FRAME_OF_REFERENCE,
        "no FrameOfReferenceUID: positions cannot be related to other objects",
        len(group.slices),
    )


def _assumed(reference: str) -> Finding:
    return Finding("assumed_frame_of_reference", f"no FrameOfReferenceUID: {reference} was derived from the series")


# --- from groups to evenly spaced slices -----------------------------------------------------------------------


_Arranged = tuple[list[tuple[_Group, Grid]], list[Refusal]]


def _arrange(group: _Group, min_slices: int) -> _Arranged:
    """Order a group along its normal; split it into phases and at changes of spacing where it must be."""
    if len(group.slices) < min_slices:
        named = f" ({group.phase})" if group.phase else ""
        detail = f"{len(group.slices)} slices{named}: expected at least {min_slices}"
        return [], [Refusal(Reason.TOO_FEW_SLICES, detail, len(group.slices))]
    ordered, heights = _ordered(group.slices)
    group = group.part(ordered, "")
    if len(ordered) == 1:
        return [(group, Grid(np.zeros(1), _stated_thickness(ordered[0])))], []
    if shared_positions(heights).size:
        phases = split_phases(ordered, position_numbers(heights), min_slices)
        if phases is None:
            return [], [_duplicate_positions(group, heights)]
        return _all([group.part(members, said, _phase_finding(said)) for said, members in phases], min_slices)
    off_line = _distance_from_line(ordered)
    limit = max(ROUNDED_MM, _OFF_LINE_PIXELS * min(ordered[0].plane.spacing_mm))
    if off_line > limit:
        detail = f"a slice lies {off_line:.2f} mm off the line of first and last: expected at most {limit:.2f} mm"
        return [], [Refusal(Reason.NOT_ON_A_LINE, detail, len(ordered))]
    grid = place_on_grid(heights)
    if isinstance(grid, Grid):
        return [(group, grid)], []
    reason, detail = grid
    parts = split_at_changes(heights, min_slices, jumps=reason is Reason.IRREGULAR_SPACING)
    if parts is None:
        return [], [Refusal(reason, detail, len(ordered))]
    return _all([group.part(ordered[a:b], *_spacing_part(heights[a:b])) for a, b in parts], min_slices)


def _all(groups: Sequence[_Group], min_slices: int) -> _Arranged:
    arranged, refusals = [], []
    for group in groups:
        some, refused = _arrange(group, min_slices)
        arranged += some
        refusals += refused
    return arranged, refusals


def _ordered(slices: Sequence[Slice]) -> tuple[tuple[Slice, ...], Vector]:
    normal = slices[0].plane.normal
    heights = np.array([float(one.plane.position_mm @ normal) for one in slices])
    order = np.argsort(heights, kind="stable")
    return tuple(slices[place] for place in order), heights[order]


def _phase_finding(said: str) -> Finding:
    return Finding("phase", f"one of several phases of the series: {said}", Level.NOTE)


def _duplicate_positions(group: _Group, heights: Vector) -> Refusal:
    return Refusal(
        Reason.DUPLICATE_POSITIONS,
        f"several slices at {listed(shared_positions(heights))} mm along the normal, and no attribute (time, echo, "
        "b-value, ...) tells them apart: expected one for each position",
        len(group.slices),
    )


def _distance_from_line(ordered: Sequence[Slice]) -> float:
    positions = np.array([one.plane.position_mm for one in ordered])
    along = positions[-1] - positions[0]
    along = along / np.linalg.norm(along)
    offsets = positions - positions[0]
    return float(np.linalg.norm(offsets - np.outer(offsets @ along, along), axis=1).max())


def _spacing_part(heights: Vector) -> tuple[str, Finding]:
    said = f"slices {heights[0]:.2f} to {heights[-1]:.2f} mm"
    step = base_step(heights)
    detail = f"the spacing of the series changes: {said} along the normal, {step:.3f} mm apart, form a stack"
    return said, Finding("spacing_change", detail)


# --- the stack -------------------------------------------------------------------------------------------------


def _stack(series: Series, reference: str, group: _Group, grid: Grid) -> Stack:
    first, last = group.slices[0].plane, group.slices[-1].plane
    if len(group.slices) > 1:
        step: Vector = (last.position_mm - first.position_mm) / (grid.coordinates[-1] - grid.coordinates[0])
    else:
        step = first.normal * grid.spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.column_direction * first.spacing_mm[0]
    affine[:3, 2] = first.row_direction * first.spacing_mm[1]
    affine[:3, 3] = first.position_mm - step * grid.coordinates[0]
    tilt = _tilt_deg(step, first)
    return Stack(
        series=series,
        slices=group.slices,
        coordinates=grid.coordinates,
        affine=affine,
        thickness_mm=grid.extents_mm(),
        frame_of_reference_uid=reference,
        tilt_deg=tilt,
        phase=group.phase,
        findings=(*group.findings, *grid.findings, *_remarks(group.slices, grid, tilt)),
    )


def _tilt_deg(step: Vector, plane: Plane) -> float:
    """Angle between the line of positions and the slice normal; 0 where it is only rounding."""
    sine = float(np.linalg.norm(np.cross(step, plane.normal))) / float(np.linalg.norm(step))
    angle = float(np.degrees(np.arcsin(min(sine, 1.0))))
    return angle if angle > _TILT_DEG else 0.0


def _stated_thickness(plane: Slice) -> float:
    stated = None if plane.instance is None else look(plane.instance.header).number("SliceThickness")
    return stated or 1.0


def _remarks(slices: Sequence[Slice], grid: Grid, tilt: float) -> list[Finding]:
    """What a reader should know about an accepted stack."""
    remarks = []
    if tilt:
        detail = f"positions run {tilt:.2f} degrees off the slice normal (gantry tilt): treated as sheared"
        remarks.append(Finding("gantry_tilt", detail))
    views = [look(one.instance.header) for one in slices if one.instance is not None]
    if not views:
        return remarks
    remarks += _of_reading(slices)
    if any(view.text("LossyImageCompression") == "01" for view in views):
        remarks.append(Finding("lossy_source", "pixels were compressed lossily (LossyImageCompression 01)"))
    if any(view.text("PhotometricInterpretation") == "MONOCHROME1" for view in views):
        detail = "MONOCHROME1: shown inverted, stored values are taken as they are"
        remarks.append(Finding("monochrome1", detail))
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex"):
        if len({view.text(keyword) for view in views}) > 1:
            detail = f"{keyword} differs within the series: that of the first instance is used"
            remarks.append(Finding("inconsistent_patient", detail))
    first = slices[0].instance
    for keyword, uid in derived_uids(first.header).items() if first is not None else ():
        if views[0].text(keyword) == uid:
            detail = f"no {keyword} in the files: {uid} was derived from what else they say"
            remarks.append(Finding("assumed_uid", detail))
    stated = views[0].number("SpacingBetweenSlices")
    if stated is not None and abs(abs(stated) - grid.spacing_mm) > max(SAME_MM, UNIFORM * grid.spacing_mm):
        detail = f"SpacingBetweenSlices says {stated:g} mm, positions {grid.spacing_mm:.3f} mm: positions hold"
        remarks.append(Finding("spacing_between_slices_ignored", detail, Level.NOTE))
    return remarks


def _of_reading(slices: Sequence[Slice]) -> list[Finding]:
    """How objects are otherwise than they should be, each flaw once."""
    each = Counter(remark for one in slices if one.instance is not None for remark in one.instance.remarks)
    return [Finding(one.code, f"{one.detail} ({count} of {len(slices)} slices)") for one, count in each.items()]


def _summed(refusals: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """One refusal for each reason, in the words of the first."""
    merged: dict[Reason, Refusal] = {}
    for one in refusals:
        before = merged.get(one.reason)
        merged[one.reason] = one if before is None else Refusal(one.reason, before.detail, before.slices + one.slices)
    return tuple(merged.values())
