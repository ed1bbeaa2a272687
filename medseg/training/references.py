"""Reference labels as DICOM has them, SEG or RTSTRUCT: a mask for each structure, on the grid of a stack.

A frame of a SEG lies on one slice of the stack, voxel on voxel (PS3.3 C.8.20); of FRACTIONAL ones what is at least half
counts. A voxel is in a region of an RTSTRUCT (PS3.3 C.8.8.6) where its centre lies in an odd number of the region's
contours on that slice: a contour inside another is a hole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID, RTStructureSetStorage, SegmentationStorage

from medseg.bundle.bundle import Segment
from medseg.dicom.candidates import candidates_of
from medseg.dicom.headers import MALFORMED, read_instance
from medseg.dicom.series import Stack
from medseg.errors import UnreadableInstance
from medseg.training.data import UnusableCase

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation Storage, not yet in pydicom's table
REFERENCES = frozenset((SegmentationStorage, LABEL_MAP, RTStructureSetStorage))
TOLERANCE_MM = 0.01  # of a SEG's frame
OFF_SLICE = 0.25  # of the distance between slices: how far a contour may lie from one
_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reference:
    """A SEG or an RTSTRUCT of a case. series: UIDs of those that it was drawn on."""

    case: str
    data: Dataset
    series: frozenset[str]

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of what it has."""
        if self.data.SOPClassUID == RTStructureSetStorage:
            return tuple(str(roi.ROIName) for roi in self.data.StructureSetROISequence)
        return tuple(str(segment.SegmentLabel) for segment in self.data.SegmentSequence)

    def masks(self, stack: Stack) -> dict[str, Mask]:
        """(slices, rows, columns) of each structure; of several with one name all together.

        Raises UnusableCase where it does not lie on the stack's grid.
        """
        of = _of_contours if self.data.SOPClassUID == RTStructureSetStorage else _of_frames
        masks: dict[str, Mask] = {}
        for name, mask in of(self, stack):
            masks[name] = masks[name] | mask if name in masks else mask
        return masks

    def refuse(self, why: str) -> UnusableCase:
        """The error for what is wrong with it."""
        kind = "RTSTRUCT" if self.data.SOPClassUID == RTStructureSetStorage else "SEG"
        return UnusableCase(self.case, f"{kind} {self.data.SOPInstanceUID}: {why}")


def read_references(folder: Path, case: str) -> tuple[Reference, ...]:
    """The SEG and RTSTRUCT objects below a folder. Raises UnusableCase where there is none, or it is malformed."""
    read = []
    for candidate in candidates_of(folder)[0]:
        try:
            is_reference = read_instance(candidate.peek, candidate.name).sop_class_uid in REFERENCES
        except UnreadableInstance:
            continue
        if is_reference:
            with candidate.open() as stream:
                data = pydicom.dcmread(stream)
            try:
                reference = Reference(case, data, frozenset(_referenced_series(data)))
                reference.structures  # noqa: B018 - of one that has none, reading says so
            except (*MALFORMED, AttributeError) as error:
                raise UnusableCase(case, f"{data.SOPInstanceUID} is no SEG or RTSTRUCT that can be read") from error
            read.append(reference)
    if not read:
        raise UnusableCase(case, "expected a DICOM SEG or RTSTRUCT with its images, found none")
    return tuple(read)


def masks_of(
    references: Sequence[Reference], stack: Stack, segments: Sequence[Segment], named: Mapping[str, str]
) -> Mask:
    """(segments, slices, rows, columns): each segment's structure.

    named: by a segment's label the name or pattern (`GTV*`) of its structures, where that is not the label itself; the
    only segment and the only structure belong together whatever they are called.

    Raises UnusableCase where a segment has no structure.
    """
    case = references[0].case
    masks: dict[str, Mask] = {}
    for reference in references:
        for name, mask in reference.masks(stack).items():
            masks[name] = masks[name] | mask if name in masks else mask
    if len(segments) == len(masks) == 1 and segments[0].label not in named:
        return np.stack(list(masks.values()))
    return np.stack(
        [_union(masks, named.get(segment.label, segment.label), segment.label, case) for segment in segments]
    )


def _union(masks: Mapping[str, Mask], pattern: str, label: str, case: str) -> Mask:
    matching = [mask for name, mask in masks.items() if fnmatchcase(name.casefold(), pattern.casefold())]
    if not matching:
        listed = ", ".join(repr(name) for name in masks)
        raise UnusableCase(case, f"no structure {pattern!r} for segment {label!r}, found {listed}: name its structure")
    union: Mask = np.any(matching, axis=0)
    return union


def _referenced_series(data: Dataset) -> Iterator[str]:
    for one in data.get("ReferencedSeriesSequence", ()):
        yield str(one.SeriesInstanceUID)
    for frame in data.get("ReferencedFrameOfReferenceSequence", ()):
        for study in frame.get("RTReferencedStudySequence", ()):
            for one in study.get("RTReferencedSeriesSequence", ()):
                yield str(one.SeriesInstanceUID)


# --- SEG ---------------------------------------------------------------------------------------------------------


def _of_frames(reference: Reference, stack: Stack) -> Iterator[tuple[str, Mask]]:
    data = reference.data
    names = {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in data.SegmentSequence}
    masks = {number: np.zeros(stack.shape, bool) for number in names}
    shared = data.SharedFunctionalGroupsSequence[0]
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    limit = data.get("MaximumFractionalValue", 255) / 2 if data.SegmentationType == "FRACTIONAL" else 0.5
    positions = np.array([one.plane.position_mm for one in stack.slices])
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        k = _slice_of(reference, stack, positions, shared, groups)
        if data.SegmentationType == "LABELMAP":
            for number, mask in masks.items():
                mask[k] |= frame == number
        else:
            number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            masks[number][k] |= frame >= limit
    yield from ((names[number], mask) for number, mask in masks.items())


def _slice_of(
    reference: Reference, stack: Stack, positions: NDArray[np.float64], shared: Dataset, groups: Dataset
) -> int:
    """The slice on which a frame lies, voxel on voxel."""
    plane = stack.slices[0].plane
    place = groups.PlanePositionSequence[0].ImagePositionPatient
    turned = _macro(groups, shared, "PlaneOrientationSequence").ImageOrientationPatient
    spacing = _macro(groups, shared, "PixelMeasuresSequence").PixelSpacing
    here = (reference.data.Rows, reference.data.Columns, *map(float, spacing), *map(float, turned))
    there = (plane.rows, plane.columns, *plane.spacing_mm, *plane.row_direction, *plane.column_direction)
    distances = np.linalg.norm(positions - np.array(place, float), axis=1)
    k = int(distances.argmin())
    if not np.allclose(here, there, atol=1e-4) or distances[k] > TOLERANCE_MM:
        raise reference.refuse(f"its frames lie on another grid than series {stack.series.series_uid}")
    return k


def _macro(groups: Dataset, shared: Dataset, name: str) -> Dataset:
    one: Dataset = (groups if name in groups else shared)[name].value[0]
    return one


# --- RTSTRUCT ----------------------------------------------------------------------------------------------------


def _of_contours(reference: Reference, stack: Stack) -> Iterator[tuple[str, Mask]]:
    data = reference.data
    names = {int(roi.ROINumber): roi for roi in data.StructureSetROISequence}
    to_grid = np.linalg.inv(stack.affine)
    for region in data.get("ROIContourSequence", ()):
        roi = names[int(region.ReferencedROINumber)]
        frame = str(roi.get("ReferencedFrameOfReferenceUID", ""))
        if frame != stack.frame_of_reference_uid:
            raise reference.refuse(f"{roi.ROIName!r} is drawn in another frame of reference than that of the series")
        mask = np.zeros(stack.shape, bool)
        for contour in region.get("ContourSequence", ()):
            if contour.ContourGeometricType in _AREAS:
                points = np.array(contour.ContourData, float).reshape(-1, 3)
                places = points @ to_grid[:3, :3].T + to_grid[:3, 3]
                _fill(mask[_slice_at(reference, stack, places[:, 0])], places[:, 1:])
        yield str(roi.ROIName), mask


def _slice_at(reference: Reference, stack: Stack, heights: NDArray[np.float64]) -> int:
    """The slice on which a contour lies. heights: of its corners, in grid coordinates."""
    k = int(np.abs(stack.coordinates - heights.mean()).argmin())
    off = float(np.abs(heights - stack.coordinates[k]).max())
    if off > OFF_SLICE:
        raise reference.refuse(f"a contour lies {off:.2f} slices from the nearest of series {stack.series.series_uid}")
    return k


def _fill(plane: Mask, corners: NDArray[np.float64]) -> None:
    """Turn the voxels whose centre is inside: a line from each to the right crosses the contour an odd number of times.

    plane: (rows, columns). corners: (N, 2), as (row, column).
    """
    first = np.clip(np.ceil(corners.min(axis=0)), 0, None).astype(int)
    end = np.clip(np.floor(corners.max(axis=0)) + 1, 0, plane.shape).astype(int)
    y, x = np.ogrid[first[0] : end[0], first[1] : end[1]]
    odd = np.zeros(np.broadcast_shapes(y.shape, x.shape), bool)
    for (y1, x1), (y2, x2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            odd ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    plane[first[0] : end[0], first[1] : end[1]] ^= odd
