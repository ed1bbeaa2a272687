"""DICOM Segmentation (PS3.3 A.51), written as label planes come.

BINARY, Explicit VR Little Endian, one object per stack, frames by segment and then along the normal, empty frames left
out. Every segment of the bundle stands in SegmentSequence under its own number, found or not: segment 3 is the same
organ in every patient, and a reader that keys on the number does not break. highdicom builds and checks the object's
modules; frames are put in behind it, so memory grows with what was found and not with the volume.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, SegmentationStorage

import medseg
from medseg.bundle.bundle import Code, Segment
from medseg.dicom.reason import Reason
from medseg.dicom.series import Stack
from medseg.errors import GeometryRefused, InvalidBundle, OutputNotWritable
from medseg.inference.labels import LabelPlane
from medseg.results.encoding import copy_element, decimal, file_head, plain, raw_element
from medseg.results.files import replacing
from medseg.results.frames import SegFrame, functional_groups, pack_plane, pixel_data
from medseg.results.modules import (
    add_common_modules,
    copy_lossy,
    instance_reference,
    placeholder_image,
    series_number,
    series_reference,
)
from medseg.results.provenance import MANUFACTURER, Provenance

REPLACED = CodedConcept("REPLACED", "99MEDSEG", "Predecessor, replaced by this object")
"""Purpose of reference to an earlier result: the standard has a code for it in no context group (CID 7201, 7202)."""

LABELMAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage (PS3.3 A.51), which pydicom's dictionary has no name for."""

_MODEL = "medseg"
PER_FRAME_GROUPS = Tag(0x5200, 0x9230)
_LARGEST_ELEMENT_BYTES = 2**32 - 2
_NOTHING = zlib.compress(b"")


def read_tables() -> None:
    """Let highdicom read what belongs into which object: half a second, which the first object takes otherwise."""
    highdicom.SOPClass(
        study_instance_uid="1.2",
        series_instance_uid="1.2",
        series_number=1,
        sop_instance_uid="1.2",
        sop_class_uid=SegmentationStorage,
        instance_number=1,
        modality="SEG",
    )


class SegWriter:
    """A LabelSink that writes one SEG; `end` puts the file in its place.

    path: of the file; afterwards `written` tells whether there is one.
    write_empty: where nothing was found, write an object with one empty frame; else write none, since BINARY has no
        form for "no frames" and the report says in words that nothing was found.
    """

    def __init__(self, path: Path, provenance: Provenance, *, write_empty: bool = False) -> None:
        self.path, self.provenance, self.write_empty = path, provenance, write_empty
        self.written = False
        self._frames: dict[int, list[SegFrame]] = {}
        self._overlap = False

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        """Raises GeometryRefused for a stack with no frame of reference, InvalidBundle for segments not 1 .. N."""
        check_segments(stack, segments, self.provenance.bundle)
        self._stack, self._segments, self._exclusive = stack, segments, exclusive
        self._frames = {segment.number: [] for segment in segments}

    def plane(self, k: int, labels: LabelPlane) -> None:
        if self._exclusive:
            for frame in pack_plane(labels, k):
                self._frames[frame.segment].append(frame)
            return
        self._overlap = self._overlap or bool((labels.sum(axis=0, dtype=np.uint16) > 1).any())
        for number, mask in enumerate(labels, start=1):
            self._frames[number].extend(replace(frame, segment=number) for frame in pack_plane(mask, k))

    def end(self) -> None:
        """Raises OutputNotWritable."""
        frames = [frame for of_segment in self._frames.values() for frame in of_segment]
        rows, columns = self._stack.shape[1:]
        if not frames:
            if not self.write_empty:
                return
            empty = SegFrame(segment=1, k=self._stack.shape[0] // 2, start=0, packed=_NOTHING)
            frames = [empty]
        size = (len(frames) * rows * columns + 15) // 16 * 2
        if size > _LARGEST_ELEMENT_BYTES:
            raise OutputNotWritable(self.path, f"{len(frames)} frames need {size} bytes of PixelData, over 4 GiB")
        used = tuple(sorted({frame.k for frame in frames}))
        head = seg_head(BINARY, self._stack, self._segments, self.provenance, used[0])
        head.SegmentsOverlap = "YES" if self._overlap else "NO"
        _refer_to_replaced(head, self.provenance)
        head.NumberOfFrames = len(frames)
        groups = functional_groups(frames, self._stack.slices, used)
        head[PER_FRAME_GROUPS] = raw_element(PER_FRAME_GROUPS, "SQ", groups)
        with replacing(self.path) as temporary, temporary.open("wb") as out:
            out.write(file_head(head))
            out.write(b"\xe0\x7f\x10\x00OB\x00\x00" + size.to_bytes(4, "little"))
            written = sum(out.write(data) for data in pixel_data(frames, rows * columns))
            out.write(b"\0" * (size - written))
        self.written = True


@dataclass(frozen=True)
class SegKind:
    """One of the forms of a segmentation. role: of its UIDs. number: of its series, behind the source's."""

    role: str
    type: SegmentationTypeValues
    sop_class: UID
    number: int
    description: str


BINARY = SegKind("seg", SegmentationTypeValues.BINARY, SegmentationStorage, 1, "SEG")
LABELMAP = SegKind("labelmap", SegmentationTypeValues.LABELMAP, LABELMAP_STORAGE, 3, "SEG, label map")


def seg_head(kind: SegKind, stack: Stack, segments: tuple[Segment, ...], made: Provenance, first: int) -> Dataset:
    """Everything of a segmentation but its frames and pixels. first: the slice that the first frame lies on."""
    image = placeholder_image(stack)
    head = Segmentation(
        source_images=[image],
        pixel_array=np.zeros((1, image.Rows, image.Columns), np.uint8),
        segmentation_type=kind.type,
        segment_descriptions=[describe(segment, made) for segment in segments],
        series_instance_uid=made.key.uid(f"{kind.role}.series"),
        series_number=series_number(stack.series.number, kind.number),
        sop_instance_uid=made.key.uid(kind.role),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_MODEL,
        software_versions=medseg.__version__,
        device_serial_number=made.bundle_digest[:64],
        content_label="SEGMENTATION",
        content_description=f"AI segmentation by {plain(made.bundle)}"[:64],
        series_description=made.description(kind.description),
        content_qualification="RESEARCH" if made.research_use else "PRODUCT",
        omit_empty_frames=False,
    )
    head.ContentCreatorName = ""
    del head.PixelData
    del head.SourceImageSequence  # each frame names its own source; a list beside it misleads viewers
    head.SegmentsOverlap = "NO"
    add_common_modules(head, stack, made)
    headers = [part.instance.header for part in stack.slices if part.instance is not None]
    copy_lossy(headers, head)
    copy_element(headers[first], head, "PositionReferenceIndicator")
    if "PositionReferenceIndicator" not in head:
        head.PositionReferenceIndicator = ""
    head.ReferencedSeriesSequence = [_referenced_series(stack)]
    organization = made.key.uid(f"{kind.role}.dimensions")
    head.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in head.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    shared = head.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:  # highdicom shares that of an only segment; ours is per frame
        del shared.SegmentIdentificationSequence
    measures = shared.PixelMeasuresSequence[0]
    if "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    if stack.uniform and len(stack.slices) > 1:
        measures.SpacingBetweenSlices = decimal(stack.spacing_mm[0])
    return head


def check_segments(stack: Stack, segments: tuple[Segment, ...], bundle: str) -> None:
    """Raises GeometryRefused for a stack with no frame of reference, InvalidBundle for segments not 1 .. N."""
    if not stack.frame_of_reference_uid:
        raise GeometryRefused(
            stack.series.series_uid, Reason.NO_FRAME_OF_REFERENCE, "no FrameOfReferenceUID, which a SEG must share"
        )
    numbers = [segment.number for segment in segments]
    if numbers != list(range(1, len(segments) + 1)):
        raise InvalidBundle(bundle, "medseg.segments", f"numbers are {numbers}, not 1, 2, 3 ...")


def _refer_to_replaced(head: Dataset, made: Provenance) -> None:
    """The SEGs that this one takes the place of."""
    replaced = [before.key for before in made.predecessors if before.seg]
    for key in replaced:
        series = series_reference(
            key.uid("seg.series"),
            [(SegmentationStorage, key.uid("seg"))],
            keyword="ReferencedInstanceSequence",
        )
        head.ReferencedSeriesSequence.append(series)
    if replaced:
        references = [instance_reference(SegmentationStorage, key.uid("seg")) for key in replaced]
        for reference in references:
            reference.PurposeOfReferenceCodeSequence = [REPLACED]
        head.ReferencedImageSequence = references  # General Reference, PS3.3 C.12.4; a SEG is an image


def describe(segment: Segment, made: Provenance) -> SegmentDescription:
    """The item of SegmentSequence for a segment."""
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=plain(segment.label)[:64],
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=made.algorithm,
        tracking_uid=made.key.uid(f"segment.{segment.number}"),
        tracking_id=f"{plain(segment.label)[:40]} {made.key.digest[:8]}",
        anatomic_regions=[coded(segment.region)] if segment.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*segment.color),
    )
    if segment.laterality:
        modifiers = [coded(segment.laterality)]
        if segment.region:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = modifiers
        else:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return description


def coded(code: Code) -> CodedConcept:
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=plain(code.meaning)[:64])


def _referenced_series(stack: Stack) -> Dataset:
    instances = {part.instance.sop_instance_uid: part.instance for part in stack.slices if part.instance is not None}
    return series_reference(
        stack.series.series_uid,
        [(instance.sop_class_uid, uid) for uid, instance in instances.items()],
        keyword="ReferencedInstanceSequence",
    )
