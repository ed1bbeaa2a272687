"""Frames of a segmentation: bits packed as planes come, and their functional groups as bytes.

Building 7,000 frames of functional groups as pydicom data sets takes many seconds; but a frame's groups are those of
its plane and those of its segment side by side, so frames are put together from the bytes of these.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from medseg.dicom.instance import Slice
from medseg.inference.labels import LabelPlane, boxes
from medseg.results.encoding import decimal, element, encode, item
from medseg.results.modules import reference_elements

_PURPOSE = CodedConcept.from_code(codes.cid7202.SourceImageForImageProcessingOperation)
_DERIVATION = CodedConcept.from_code(codes.cid7203.SegmentationImageDerivation)


@dataclass(frozen=True)
class SegFrame:
    """The voxels of one segment in one plane.

    start: the byte of the packed frame at which `packed` begins; all others are 0.
    packed: zlib-compressed bits, eight voxels a byte, first voxel in the lowest bit (PS3.5 8.1.1).
    """

    segment: int
    k: int
    start: int
    packed: bytes


def pack_plane(labels: LabelPlane, k: int) -> Iterator[SegFrame]:
    """The frames of a plane of exclusive labels, or of a single mask of 0 and 1; none for what is not there.

    Only the rows in which a label lies are compared, packed and compressed.
    """
    columns = labels.shape[1]
    flat = labels.reshape(-1)
    for number, (rows, _) in boxes(labels).items():
        start = rows.start * columns // 8
        bits = flat[start * 8 : rows.stop * columns] == number
        packed = zlib.compress(np.packbits(bits, bitorder="little").tobytes(), 1)
        yield SegFrame(number, k, start, packed)


def pixel_data(frames: Iterable[SegFrame], voxels: int) -> Iterator[bytes]:
    """The bytes of PixelData for frames of `voxels` each; frames follow each other without padding (PS3.5 8.1.1)."""
    carried = np.zeros(0, np.uint8)
    for frame in frames:
        data = zlib.decompress(frame.packed)
        whole = np.zeros((voxels + 7) // 8, np.uint8)
        whole[frame.start : frame.start + len(data)] = np.frombuffer(data, np.uint8)
        if voxels % 8 == 0:
            yield whole.tobytes()
            continue
        bits = np.concatenate([carried, np.unpackbits(whole, count=voxels, bitorder="little")])
        full = bits.size // 8 * 8
        carried = bits[full:]
        yield np.packbits(bits[:full], bitorder="little").tobytes()
    if carried.size:
        yield np.packbits(carried, bitorder="little").tobytes()


def functional_groups(frames: Sequence[SegFrame], slices: tuple[Slice, ...], used: tuple[int, ...]) -> bytes:
    """The value of PerFrameFunctionalGroupsSequence: one item per frame.

    used: planes with at least one frame, in order; a frame's second DimensionIndexValue is its place among them.
    """
    place = {k: index for index, k in enumerate(used, start=1)}
    planes = _planes(slices, used)
    segments = {number: _identification(number) for number in {frame.segment for frame in frames}}
    items = []
    for frame in frames:
        derivation, position = planes[frame.k]
        items.append(item(derivation, _frame_content(frame.segment, place[frame.k]), position, segments[frame.segment]))
    return b"".join(items)


def plane_groups(slices: tuple[Slice, ...], used: Sequence[int]) -> bytes:
    """The value of PerFrameFunctionalGroupsSequence of a label map: one item per plane, in order."""
    planes = enumerate(_planes(slices, used).values(), start=1)
    return b"".join(item(derivation, _frame_content(place), position) for place, (derivation, position) in planes)


def _planes(slices: tuple[Slice, ...], used: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
    """What a frame says of the slice that it lies on: where it is from, and where it is."""
    purpose, derived = (item(encode(concept)) for concept in (_PURPOSE, _DERIVATION))
    return {k: (_derivation(slices[k], purpose, derived), _position(slices[k])) for k in used}


def _frame_content(*dimension_index_values: int) -> bytes:
    values = struct.pack(f"<{len(dimension_index_values)}I", *dimension_index_values)
    return element("FrameContentSequence", "SQ", item(element("DimensionIndexValues", "UL", values)))


def _derivation(part: Slice, purpose: bytes, derived: bytes) -> bytes:
    """Derivation Image functional group (PS3.3 C.7.6.16.2.6): exactly the slice that the frame lies on."""
    assert part.instance is not None
    source = item(
        *reference_elements(part.instance.sop_class_uid, part.instance.sop_instance_uid),
        *([] if part.frame is None else [element("ReferencedFrameNumber", "IS", str(part.frame))]),
        element("SpatialLocationsPreserved", "CS", "YES"),
        element("PurposeOfReferenceCodeSequence", "SQ", purpose),
    )
    group = item(element("SourceImageSequence", "SQ", source), element("DerivationCodeSequence", "SQ", derived))
    return element("DerivationImageSequence", "SQ", group)


def _position(part: Slice) -> bytes:
    position = "\\".join(decimal(value) for value in part.plane.position_mm)
    return element("PlanePositionSequence", "SQ", item(element("ImagePositionPatient", "DS", position)))


def _identification(segment: int) -> bytes:
    number = element("ReferencedSegmentNumber", "US", struct.pack("<H", segment))
    return element("SegmentIdentificationSequence", "SQ", item(number))
