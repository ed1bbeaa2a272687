"""Which slices of a series form volumes: each accepted, split or refused, with its reason.

A decision about slices alone, with no file read. Positions are projected on the slice normal (PS3.3 C.7.6.2.1.1);
SliceLocation, GantryDetectorTilt and the order of files say nothing here.

    slices -> share what a volume shares? (patient, frame of reference, size, ...: `groups`)        else groups
           -> show the same, one for each position, and fill a line? (echo, time, ...: `volumes`)   else volumes
           -> evenly spaced? (one missing slice is bridged, a change of spacing splits: `spacing`)  -> Stack
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.dicom.groups import Group, frame_of_reference, group
from medseg.dicom.headers import derived_uids, look
from medseg.dicom.instance import Plane, Slice, Vector
from medseg.dicom.ordered import in_order
from medseg.dicom.phases import natural
from medseg.dicom.reason import Reason, Refusal
from medseg.dicom.series import Finding, Level, Series, Stack
from medseg.dicom.slices import expand
from medseg.dicom.spacing import UNIFORM, Grid, length
from medseg.dicom.volumes import Volume, arrange
from medseg.errors import GeometryRefused
from medseg.names import named_uid

__all__ = ["GeometryVerdict", "Reason", "Refusal", "classify"]

_TILT_DEG = 0.5


@dataclass(frozen=True, eq=False)
class GeometryVerdict:
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


def classify(
    series: Series,
    slices: Sequence[Slice] | None = None,
    *,
    assume_frame_of_reference: bool = False,
    min_slices: int = 3,
) -> GeometryVerdict:
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
        return GeometryVerdict(series, (), (*refusals, Refusal(Reason.CONFLICTING_INSTANCES, conflict, len(slices))))
    # The result must not depend on the order in which slices came.
    together, left_out = group(sorted(slices, key=_identity), min_slices)
    refusals += left_out
    stacks: list[Stack] = []
    for some in together:
        reference, findings = frame_of_reference(some.slices[0]), some.findings
        if not reference:
            if not assume_frame_of_reference:
                refusals.append(_no_frame_of_reference(some))
                continue
            reference = assumed_frame_of_reference(series.series_uid)
            findings = (*findings, _assumed(reference))
        outcome = arrange(in_order(some.slices), min_slices)
        refusals += outcome.refusals
        stacks += [_stack(series, reference, some.apart_by, findings, volume) for volume in outcome.volumes]
    stacks.sort(key=lambda stack: (-len(stack.slices), natural(stack.phase)))
    return GeometryVerdict(series, tuple(stacks), _summed(refusals))


def assumed_frame_of_reference(series_uid: str) -> str:
    """A UID that is always the same for a series that names no frame of reference."""
    return named_uid(f"medseg frame of reference {series_uid}")


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


def _no_frame_of_reference(some: Group) -> Refusal:
    return Refusal(
        Reason.NO_FRAME_OF_REFERENCE,
        "no FrameOfReferenceUID: positions cannot be related to other objects",
        len(some.slices),
    )


def _assumed(reference: str) -> Finding:
    return Finding("assumed_frame_of_reference", f"no FrameOfReferenceUID: {reference} was derived from the series")


# --- the stack -------------------------------------------------------------------------------------------------


def _stack(series: Series, reference: str, apart_by: str, findings: tuple[Finding, ...], volume: Volume) -> Stack:
    slices, grid = volume.ordered.slices, volume.grid
    first, last = slices[0].plane, slices[-1].plane
    if len(slices) > 1:
        step: Vector = (last.position_mm - first.position_mm) / (grid.coordinates[-1] - grid.coordinates[0])
    else:
        step = first.normal * grid.spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.column_direction * first.spacing_mm[0]
    affine[:3, 2] = first.row_direction * first.spacing_mm[1]
    affine[:3, 3] = first.position_mm - step * grid.coordinates[0]
    tilt = _tilt_deg(step, first)
    phase = [_phase_finding(volume.apart_by)] if volume.apart_by else []
    return Stack(
        series=series,
        slices=slices,
        coordinates=grid.coordinates,
        affine=affine,
        thickness_mm=grid.extents_mm(),
        frame_of_reference_uid=reference,
        tilt_deg=tilt,
        phase=", ".join(text for text in (apart_by, volume.apart_by, volume.part) if text),
        findings=(*findings, *phase, *volume.findings, *grid.findings, *_remarks(slices, grid, tilt)),
    )


def _phase_finding(apart_by: str) -> Finding:
    return Finding("phase", f"one of several phases of the series: {apart_by}", Level.NOTE)


def _tilt_deg(step: Vector, plane: Plane) -> float:
    """Angle between the line of positions and the slice normal; 0 where it is only rounding."""
    sine = float(np.linalg.norm(np.cross(step, plane.normal))) / float(np.linalg.norm(step))
    angle = float(np.degrees(np.arcsin(min(sine, 1.0))))
    return angle if angle > _TILT_DEG else 0.0


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
    if stated is not None and abs(abs(stated) - grid.spacing_mm) > UNIFORM * grid.spacing_mm:
        detail = f"SpacingBetweenSlices says {stated:g} mm, positions {length(grid.spacing_mm)} mm: positions hold"
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
