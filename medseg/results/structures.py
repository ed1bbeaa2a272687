"""RT Structure Set (PS3.3 A.19), written as label planes come: each segment a structure, in closed planar contours.

Contours wait in a file without a name, since they stand by structure and come by slice. Explicit VR has room for 64 KiB
in a contour's coordinates: what takes more is parted along a row.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from medseg.bundle.bundle import Segment
from medseg.dicom.instance import Slice, Vector
from medseg.dicom.series import Stack
from medseg.errors import OutputNotWritable
from medseg.inference.labels import Box, LabelPlane, boxes
from medseg.results.encoding import element, encode, file_head, item, plain, raw_element, tag_bytes
from medseg.results.files import replacing
from medseg.results.modules import begin_object, instance_reference, reference_elements
from medseg.results.outline import outlines
from medseg.results.provenance import Provenance
from medseg.results.seg import check_segments, coded

_ANATOMY = ("123037004", "91723000")  # Anatomical Structure, in SCT of old and as CID 7150 has it
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # what RT Referenced Study Sequence names a study by (PS3.3 C.8.8.5)
_LONGEST: Final = 65534  # bytes of a value in Explicit VR
_LARGEST: Final = 2**32 - 2  # bytes of a sequence
_CONTOURS = Tag(0x3006, 0x0039)


class StructureWriter:
    """A LabelSink that writes one structure set; `end` puts the file in its place.

    path: of the file; afterwards `written` tells whether there is one: none where nothing was found.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self.path, self.provenance = path, provenance
        self.written = False

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        """Raises as `SegWriter.begin`, and OutputNotWritable."""
        check_segments(stack, segments, self.provenance.bundle)
        self._stack, self._segments, self._exclusive = stack, segments, exclusive
        self._where: dict[int, list[tuple[int, int]]] = {segment.number: [] for segment in segments}
        try:
            self._waiting: IO[bytes] = tempfile.TemporaryFile(prefix="medseg-")  # noqa: SIM115 - closed by `end`
        except OSError as error:
            raise OutputNotWritable(Path(tempfile.gettempdir()), error.strerror or str(error)) from error

    def plane(self, k: int, labels: LabelPlane) -> None:
        part = self._stack.slices[k]
        for number, box, mask in _masks(labels, exclusive=self._exclusive):
            for text in _contours(mask, part, box[0].start, box[1].start):
                contour = _item(part, text)
                self._where[number].append((self._waiting.tell(), len(contour)))
                self._waiting.write(contour)

    def end(self) -> None:
        """Raises OutputNotWritable."""
        found = [segment for segment in self._segments if self._where[segment.number]]
        sizes = [sum(size for _, size in self._where[segment.number]) for segment in found]
        if sum(sizes) > _LARGEST - 2**20:
            raise OutputNotWritable(self.path, f"contours take {sum(sizes)} bytes, more than the 4 GiB of a sequence")
        if found:
            before, after = self._head(found)
            heads = [_structure_head(segment, size) for segment, size in zip(found, sizes, strict=True)]
            tails = [element("ReferencedROINumber", "IS", str(segment.number)) for segment in found]
            lengths = [len(a) + size + len(b) for a, size, b in zip(heads, sizes, tails, strict=True)]
            with replacing(self.path) as temporary, temporary.open("wb") as out:
                out.write(before)
                out.write(
                    tag_bytes("ROIContourSequence") + b"SQ" + struct.pack("<HI", 0, sum(lengths) + 8 * len(found))
                )
                for segment, head, tail, length in zip(found, heads, tails, lengths, strict=True):
                    out.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", length) + head)
                    out.writelines(self._contours_of(segment.number))
                    out.write(tail)
                out.write(after)
            self.written = True
        self._waiting.close()

    def _contours_of(self, number: int) -> Iterator[bytes]:
        for begin, size in self._where[number]:
            self._waiting.seek(begin)
            yield self._waiting.read(size)

    def _head(self, found: list[Segment]) -> tuple[bytes, bytes]:
        """The bytes of the file before the contours, and behind them."""
        stack, made = self._stack, self.provenance
        head = begin_object(RTStructureSetStorage, "RTSTRUCT", stack, made, "rtstruct", 6)
        del head.ContentDate, head.ContentTime  # which a structure set has not
        head.InstanceNumber = 1
        head.OperatorsName = ""
        head.FrameOfReferenceUID, head.PositionReferenceIndicator = stack.frame_of_reference_uid, ""
        head.StructureSetLabel = "MEDSEG"
        head.StructureSetName = made.description("RTSTRUCT")
        head.StructureSetDate, head.StructureSetTime = head.InstanceCreationDate, head.InstanceCreationTime
        head.ReferencedFrameOfReferenceSequence = [_frame_of_reference(stack)]
        head.StructureSetROISequence = [_structure(segment, stack, made) for segment in found]
        head.RTROIObservationsSequence = [_observation(segment) for segment in found]
        head.ApprovalStatus = "UNAPPROVED"
        made.finish(head)
        after = Dataset()
        for tag in [tag for tag in head if tag.tag > _CONTOURS]:
            after[tag.tag] = head[tag.tag]
            del head[tag.tag]
        return file_head(head), encode(after)


def _masks(labels: LabelPlane, *, exclusive: bool) -> Iterator[tuple[int, Box, NDArray[np.bool_]]]:
    """Of each segment in a plane: its number, the box around it, and what is inside."""
    if exclusive:
        return ((number, box, labels[box] == number) for number, box in boxes(labels).items())
    planes = enumerate(labels, start=1)
    return ((number, box, plane[box] != 0) for number, plane in planes for box in boxes(plane).values())


def _contours(mask: NDArray[np.bool_], part: Slice, row: int, column: int) -> Iterator[bytes]:
    """The coordinates of each outline of a mask whose first voxel is at `row` and `column` of a slice."""
    texts = [_coordinates(points + np.array([row, column]), part) for points in outlines(mask)]
    if all(len(text) <= _LONGEST for text in texts) or len(mask) == 1:
        return iter(texts)
    half = len(mask) // 2
    return chain(_contours(mask[:half], part, row, column), _contours(mask[half:], part, row + half, column))


def _coordinates(points: Vector, part: Slice) -> bytes:
    plane = part.plane
    down, across = plane.spacing_mm
    mm = plane.position_mm + points @ np.array([down * plane.column_direction, across * plane.row_direction])
    return "\\".join([f"{value:.4f}" for value in (mm.round(4) + 0.0).reshape(-1).tolist()]).encode()


def _item(part: Slice, text: bytes) -> bytes:
    """An item of ContourSequence (PS3.3 C.8.8.6)."""
    assert part.instance is not None
    image = [*reference_elements(part.instance.sop_class_uid, part.instance.sop_instance_uid)]
    image += [] if part.frame is None else [element("ReferencedFrameNumber", "IS", str(part.frame))]
    return item(
        element("ContourImageSequence", "SQ", item(*image)),
        element("ContourGeometricType", "CS", "CLOSED_PLANAR"),
        element("NumberOfContourPoints", "IS", str((text.count(b"\\") + 1) // 3)),
        element("ContourData", "DS", text),
    )


def _structure_head(segment: Segment, size: int) -> bytes:
    """The item of ROIContourSequence up to its contours, which take `size` bytes."""
    color = element("ROIDisplayColor", "IS", "\\".join(map(str, segment.color)))
    return color + tag_bytes("ContourSequence") + b"SQ" + struct.pack("<HI", 0, size)


def _structure(segment: Segment, stack: Stack, made: Provenance) -> Dataset:
    structure = Dataset()
    structure.ROINumber = segment.number
    structure.ReferencedFrameOfReferenceUID = stack.frame_of_reference_uid
    structure.ROIName = plain(segment.label)[:64]
    structure.ROIGenerationAlgorithm = "AUTOMATIC"
    use = ", for research use only" if made.research_use else ""
    structure.ROIGenerationDescription = f"medseg, {plain(made.bundle)[:24]}{use}"[:64]
    return structure


def _observation(segment: Segment) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = segment.number
    observation.RTROIInterpretedType = "ORGAN" if segment.category.value in _ANATOMY else ""
    observation.ROIInterpreter = ""
    observation.RTROIIdentificationCodeSequence = [coded(segment.type)]
    return observation


def _frame_of_reference(stack: Stack) -> Dataset:
    """What the contours lie in, and on which images (PS3.3 C.8.8.5)."""
    instances = {part.instance.sop_instance_uid: part.instance for part in stack.slices if part.instance is not None}
    images = Tag("ContourImageSequence")
    series = Dataset()
    series.SeriesInstanceUID = stack.series.series_uid
    references = (item(*reference_elements(one.sop_class_uid, uid)) for uid, one in instances.items())
    series[images] = raw_element(images, "SQ", b"".join(references))
    study = instance_reference(_DETACHED_STUDY, stack.series.study_uid)
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = stack.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame
