"""Does a SEG say what it was meant to say? A second reader, which shares no code with the writer.

The file is opened again with pydicom and compared with the label planes and the source headers: voxels, positions,
references, identity. A result that fails here never leaves.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.inference.labels import LabelPlane

TOLERANCE_MM = 1e-3

_PER_FRAME_GROUPS = Tag(0x5200, 0x9230)
# What pydicom and struct raise for a file that is cut short or lacks something.
MALFORMED = (InvalidDicomError, AttributeError, LookupError, ValueError, TypeError, EOFError, OSError, struct.error)
_LONG_FORM = frozenset((b"SQ", b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"))


@dataclass(frozen=True)
class Verified:
    """What was found to be right."""

    frames: int
    voxels: dict[int, int]


def verify_seg(
    path: Path, stack: Stack, segments: tuple[Segment, ...], planes: Iterable[LabelPlane], *, exclusive: bool
) -> Verified:
    """Read the SEG at `path` and compare it with what was meant.

    planes: label planes k = 0 .. K-1 as they were given to the writer.

    Raises VerificationFailed with the first difference.
    """
    try:
        return _verify(path, stack, segments, planes, exclusive=exclusive)
    except MALFORMED as error:
        raise VerificationFailed(f"{path.name}: cannot be read back: {error}") from error


@dataclass(frozen=True)
class Frame:
    """What a frame's functional groups say. segment: None where they name none, as in a label map."""

    segment: int | None
    source: tuple[str, int | None]
    position_mm: tuple[float, ...]


@dataclass(frozen=True)
class Written:
    """What a segmentation must be."""

    sop_class: str
    syntax: str
    type: str
    numbers: tuple[int, ...]


def _verify(
    path: Path, stack: Stack, segments: tuple[Segment, ...], planes: Iterable[LabelPlane], *, exclusive: bool
) -> Verified:
    with path.open("rb") as file:
        seg = pydicom.dcmread(file, stop_before_pixels=True)
        pixel_element = file.tell()
        numbers = tuple(segment.number for segment in segments)
        check_identity(seg, stack, segments, Written(SegmentationStorage, ExplicitVRLittleEndian, "BINARY", numbers))
        frames = tuple(frames_of(seg))
        pixels = _pixel_data(file, pixel_element, len(frames), stack.shape[1] * stack.shape[2])
        return _compare(frames, pixels, stack, segments, planes, exclusive=exclusive)


def _compare(
    frames: tuple[Frame, ...],
    pixels: _PixelData,
    stack: Stack,
    segments: tuple[Segment, ...],
    planes: Iterable[LabelPlane],
    *,
    exclusive: bool,
) -> Verified:
    counts = dict.fromkeys((segment.number for segment in segments), 0)
    where: list[dict[int, int]] = [{} for _ in stack.slices]  # of each slice: segment -> frame
    for number, (frame, k) in enumerate(zip(frames, placed(frames, stack), strict=True)):
        if frame.segment is None:
            raise VerificationFailed(f"frame {number + 1}: no SegmentIdentification")
        if frame.segment not in counts:
            raise VerificationFailed(f"frame {number + 1}: there is no segment {frame.segment}")
        if frame.segment in where[k]:
            raise VerificationFailed(f"frame {number + 1}: a second frame of segment {frame.segment} on slice {k}")
        where[k][frame.segment] = number
    k = -1
    for k, plane in enumerate(planes):
        if k == len(where):
            break
        found: dict[int, int] = {}
        for segment, number in where[k].items():
            start, bits = pixels.frame(number)
            labels, value = (plane, segment) if exclusive else (plane[segment - 1], 1)
            if not np.array_equal(labels.reshape(-1)[start : start + bits.size] == value, bits):
                raise VerificationFailed(
                    f"frame {number + 1}: voxels of segment {segment} on slice {k} differ from what was found"
                )
            found[segment] = int(np.count_nonzero(bits))
            counts[segment] += found[segment]
        # No frame has a voxel too many; that none is missing, the sum says.
        if np.count_nonzero(plane) != sum(found.values()):
            raise VerificationFailed(f"slice {k}: {_missing(plane, found, exclusive=exclusive)}")
    if k + 1 != len(stack.slices):
        raise VerificationFailed(f"{k + 1} label planes for {len(stack.slices)} slices")
    return Verified(len(frames), counts)


def placed(frames: Iterable[Frame], stack: Stack) -> Iterator[int]:
    """Of each frame the slice that it is of, and lies on by its own attributes and by the source's header."""
    slices = slices_by_reference(stack)
    for number, frame in enumerate(frames):
        k = slices.get(frame.source)
        if k is None:
            raise VerificationFailed(f"frame {number + 1}: its source {frame.source} is not a slice of the stack")
        distance = math.dist(frame.position_mm, source_position_mm(stack, k))
        if not distance <= TOLERANCE_MM:
            raise VerificationFailed(
                f"frame {number + 1}: lies {distance:.4f} mm from its source {frame.source}, allowed {TOLERANCE_MM} mm"
            )
        yield k


def _missing(plane: LabelPlane, in_file: Mapping[int, int], *, exclusive: bool) -> str:
    """What a label plane has that the frames of its slice have not. in_file: segment -> voxels."""
    wanted = np.bincount(plane.reshape(-1)) if exclusive else [0, *(np.count_nonzero(mask) for mask in plane)]
    wrong = (
        f"{voxels} voxels of segment {segment}, {in_file.get(segment, 0)} in the file"
        for segment, voxels in enumerate(wanted)
        if segment and voxels != in_file.get(segment, 0)
    )
    return ", ".join(wrong)


def check_identity(seg: Dataset, stack: Stack, segments: tuple[Segment, ...], written: Written) -> None:
    """What the whole says of itself. Raises VerificationFailed."""
    plane = stack.slices[0].plane
    directions = (*plane.row_direction, *plane.column_direction)
    shared = seg.SharedFunctionalGroupsSequence[0]
    series = seg.ReferencedSeriesSequence
    facts = [
        ("SOPClassUID", written.sop_class, seg.SOPClassUID),
        ("TransferSyntaxUID", written.syntax, seg.file_meta.TransferSyntaxUID),
        ("SegmentationType", written.type, seg.SegmentationType),
        ("StudyInstanceUID", stack.series.study_uid, seg.StudyInstanceUID),
        ("FrameOfReferenceUID", stack.frame_of_reference_uid, seg.FrameOfReferenceUID),
        ("ReferencedSeriesSequence", stack.series.series_uid, series[0].SeriesInstanceUID),
        ("Rows, Columns", (plane.rows, plane.columns), (seg.Rows, seg.Columns)),
        ("SegmentNumber", written.numbers, tuple(item.SegmentNumber for item in seg.SegmentSequence)),
        (
            "SegmentedPropertyTypeCodeSequence",
            [s.type.value for s in segments],
            [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in seg.SegmentSequence if item.SegmentNumber],
        ),
    ]
    for name, expected, found in facts:
        if expected != found:
            raise VerificationFailed(f"{name}: expected {expected}, found {found}")
    for item in seg.SegmentSequence:
        if not item.get("SegmentLabel") or len(item.get("RecommendedDisplayCIELabValue", ())) != 3:
            raise VerificationFailed(f"segment {item.SegmentNumber}: no label or no colour")
    orientation = [float(value) for value in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    if not np.allclose(orientation, directions, atol=1e-6):
        raise VerificationFailed(f"ImageOrientationPatient: expected {directions}, found {orientation}")
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    if not np.allclose(spacing, plane.spacing_mm, rtol=1e-6):
        raise VerificationFailed(f"PixelSpacing: expected {plane.spacing_mm}, found {spacing}")


def frames_of(seg: Dataset) -> Iterator[Frame]:
    """The functional groups of each frame.

    Frames of one plane repeat the same bytes, so elements are read by pydicom once each and remembered.
    """
    groups = seg.get_item(_PER_FRAME_GROUPS)
    if groups is None or not isinstance(groups.value, bytes):
        raise VerificationFailed("PerFrameFunctionalGroupsSequence is missing or of undefined length")
    number = 0
    for number, item in enumerate(_items(groups.value), start=1):
        elements = dict(elements_of(item))
        source, position_mm, segment = None, None, None
        if b"\x08\x00\x24\x91" in elements:
            source = _source(elements[b"\x08\x00\x24\x91"])
        if b"\x20\x00\x13\x91" in elements:
            position_mm = _position_mm(elements[b"\x20\x00\x13\x91"])
        if b"\x62\x00\x0a\x00" in elements:
            segment = _segment(elements[b"\x62\x00\x0a\x00"])
        if source is None or position_mm is None:
            raise VerificationFailed(f"frame {number}: no DerivationImage or PlanePosition")
        yield Frame(segment, source, position_mm)
    if number != seg.NumberOfFrames:
        raise VerificationFailed(f"NumberOfFrames is {seg.NumberOfFrames}, functional groups are {number}")


def _items(value: bytes) -> Iterator[bytes]:
    """The items of a sequence of defined lengths (PS3.5 7.5)."""
    at = 0
    while at < len(value):
        tag, length = struct.unpack_from("<4sI", value, at)
        if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > len(value):
            raise VerificationFailed("PerFrameFunctionalGroupsSequence: malformed item")
        yield value[at + 8 : at + 8 + length]
        at += 8 + length


def elements_of(item: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The elements of an item: tag bytes, and the whole element (PS3.5 7.1.2)."""
    at = 0
    while at < len(item):
        long = item[at + 4 : at + 6] in _LONG_FORM
        (length,) = struct.unpack_from("<I", item, at + 8) if long else struct.unpack_from("<H", item, at + 6)
        end = at + (12 if long else 8) + length
        yield item[at : at + 4], item[at:end]
        at = end


def read_element(element: bytes) -> Dataset:
    """The bytes of one element as a data set."""
    return read_dataset(BytesIO(element), is_implicit_VR=False, is_little_endian=True)


@lru_cache(maxsize=4096)
def _source(element: bytes) -> tuple[str, int | None] | None:
    derivations = read_element(element).DerivationImageSequence
    images = [image for item in derivations for image in item.get("SourceImageSequence", ())]
    if len(images) != 1:
        return None
    frame = images[0].get("ReferencedFrameNumber")
    return str(images[0].ReferencedSOPInstanceUID), None if frame is None else int(frame)


@lru_cache(maxsize=4096)
def _position_mm(element: bytes) -> tuple[float, ...]:
    return tuple(float(value) for value in read_element(element).PlanePositionSequence[0].ImagePositionPatient)


@lru_cache(maxsize=4096)
def _segment(element: bytes) -> int:
    return int(read_element(element).SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def slices_by_reference(stack: Stack) -> dict[tuple[str, int | None], int]:
    """Number of each slice, by its instance and frame."""
    return {
        (part.instance.sop_instance_uid, part.frame): k
        for k, part in enumerate(stack.slices)
        if part.instance is not None
    }


def source_position_mm(stack: Stack, k: int) -> list[float]:
    """ImagePositionPatient as the source's own header has it."""
    part = stack.slices[k]
    if part.instance is None:
        raise VerificationFailed(f"slice {k} has no DICOM instance")
    header = part.instance.header
    if part.frame is None:
        return [float(value) for value in header.ImagePositionPatient]
    groups = header.PerFrameFunctionalGroupsSequence[part.frame - 1]
    if "PlanePositionSequence" not in groups:
        groups = header.SharedFunctionalGroupsSequence[0]
    return [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]


@dataclass(frozen=True)
class _PixelData:
    """The value of PixelData, which begins at byte `begin`: frames are read one at a time. voxels: of a frame."""

    file: BinaryIO
    begin: int
    voxels: int

    def frame(self, number: int) -> tuple[int, NDArray[np.bool_]]:
        """Where the voxels that are set begin, and the bits from there to the last of them."""
        first, last = number * self.voxels, (number + 1) * self.voxels
        self.file.seek(self.begin + first // 8)
        packed = np.frombuffer(self.file.read((last + 7) // 8 - first // 8), np.uint8)
        if self.voxels % 8:
            bits = np.unpackbits(packed, bitorder="little")
            return 0, bits[first % 8 : first % 8 + self.voxels].view(np.bool_)
        used = np.flatnonzero(packed)
        if used.size == 0:
            return 0, np.zeros(0, np.bool_)
        start, stop = int(used[0]), int(used[-1]) + 1
        return start * 8, np.unpackbits(packed[start:stop], bitorder="little").view(np.bool_)


def _pixel_data(file: BinaryIO, at: int, frames: int, voxels: int) -> _PixelData:
    """What the element at byte `at`, the last of the file, must be."""
    expected = (frames * voxels + 15) // 16 * 2
    header = b"\xe0\x7f\x10\x00OB\x00\x00" + expected.to_bytes(4, "little")
    file.seek(at)
    found = file.read(len(header))
    size = file.seek(0, SEEK_END) - at - len(header)
    if found != header or size != expected:
        raise VerificationFailed(f"PixelData: {size} bytes, expected {expected} for {frames * voxels} bits")
    return _PixelData(file, at + len(header), voxels)
