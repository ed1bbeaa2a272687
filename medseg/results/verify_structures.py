"""Does a structure set say what it was meant to say? A second reader, as `verify` is of a segmentation.

Its contours are filled again, plane by plane: where the centre of a voxel lies in one (even-odd), it is inside.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from medseg.bundle.bundle import Segment
from medseg.dicom.instance import Vector
from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.inference.labels import LabelPlane
from medseg.results.verify import (
    MALFORMED,
    TOLERANCE_MM,
    elements_of,
    read_element,
    slices_by_reference,
    source_position_mm,
)

_CONTOURS = Tag(0x3006, 0x0039)
_ITEM = b"\xfe\xff\x00\xe0"
_Place = tuple[int, int]


def verify_structures(
    path: Path, stack: Stack, segments: tuple[Segment, ...], planes: Iterable[LabelPlane], *, exclusive: bool
) -> None:
    """Read the structure set at `path` and compare it with the label planes that the writer was given.

    Raises VerificationFailed with the first difference.
    """
    try:
        with path.open("rb") as file:
            _verify(file, stack, segments, planes, exclusive=exclusive)
    except MALFORMED as error:
        raise VerificationFailed(f"{path.name}: cannot be read back: {error}") from error


def _verify(
    file: BinaryIO, stack: Stack, segments: tuple[Segment, ...], planes: Iterable[LabelPlane], *, exclusive: bool
) -> None:
    head = read_partial(file, stop_when=lambda tag, _vr, _length: tag == _CONTOURS)
    frame = head.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    labels = {segment.number: segment.label for segment in segments}
    facts = [
        ("SOPClassUID", RTStructureSetStorage, head.SOPClassUID),
        ("StudyInstanceUID", stack.series.study_uid, head.StudyInstanceUID),
        ("FrameOfReferenceUID", stack.frame_of_reference_uid, frame.FrameOfReferenceUID),
        ("SeriesInstanceUID", stack.series.series_uid, series.SeriesInstanceUID),
        *(
            ("ROINumber", True, int(one.ROINumber) in labels and one.ReferencedFrameOfReferenceUID == expected)
            for one in head.StructureSetROISequence
            for expected in [stack.frame_of_reference_uid]
        ),
    ]
    for name, wanted, there in facts:
        if wanted != there:
            raise VerificationFailed(f"{name}: expected {wanted}, found {there}")
    places = _places(file, stack)
    if {number for _, number in places} != {int(one.ROINumber) for one in head.StructureSetROISequence}:
        raise VerificationFailed("StructureSetROISequence: not the structures that have contours")
    k = -1
    for k, plane in enumerate(planes):
        for number in labels:
            wanted = plane == number if exclusive else plane[number - 1] != 0
            polygons = [_points(file, place, stack, k) for place in places.get((k, number), ())]
            filled = _filled(polygons, wanted.shape)
            if not np.array_equal(filled, wanted):
                many = np.count_nonzero(filled != wanted)
                raise VerificationFailed(f"slice {k}: structure {number}: {many} voxels differ from what was found")
    if k + 1 != len(stack.slices):
        raise VerificationFailed(f"{k + 1} label planes for {len(stack.slices)} slices")


def _places(file: BinaryIO, stack: Stack) -> dict[tuple[int, int], list[_Place]]:
    """Of each slice and structure, where its contours lie in the file."""
    slices, places = slices_by_reference(stack), defaultdict(list)
    begin, end = _sequence(file, b"\x06\x30\x39\x00")
    for first, last in _item_places(file, begin, end):
        number, contours = None, (0, 0)
        at = first
        while at < last:
            file.seek(at)
            tag, vr = file.read(4), file.read(2)
            long = vr == b"SQ"
            (size,) = struct.unpack("<2xI", file.read(6)) if long else struct.unpack("<H", file.read(2))
            at = file.tell() + size
            if tag == b"\x06\x30\x40\x00":
                contours = (at - size, at)
            elif tag == b"\x06\x30\x84\x00":
                number = int(file.read(size))
        if number is None:
            raise VerificationFailed("ROIContourSequence: contours without ReferencedROINumber")
        for place in _item_places(file, *contours):
            k = slices.get(_source(_elements(file, place)[b"\x06\x30\x16\x00"]))
            if k is None:
                raise VerificationFailed(f"structure {number}: a contour on an image that is not of the stack")
            places[k, number].append(place)
    return dict(places)


def _sequence(file: BinaryIO, tag: bytes) -> _Place:
    """Where the sequence that comes next begins and ends."""
    if file.read(8) != tag + b"SQ\0\0":
        raise VerificationFailed("ROIContourSequence is missing")
    (size,) = struct.unpack("<I", file.read(4))
    return file.tell(), file.tell() + size


def _item_places(file: BinaryIO, begin: int, end: int) -> Iterator[_Place]:
    while begin < end:
        file.seek(begin)
        tag, size = struct.unpack("<4sI", file.read(8))
        if tag != _ITEM or begin + 8 + size > end:
            raise VerificationFailed("ROIContourSequence: malformed item")
        begin += 8 + size
        yield begin - size, begin


def _elements(file: BinaryIO, place: _Place) -> dict[bytes, bytes]:
    file.seek(place[0])
    return dict(elements_of(file.read(place[1] - place[0])))


@lru_cache(maxsize=4096)
def _source(element: bytes) -> tuple[str, int | None]:
    (image,) = read_element(element).ContourImageSequence
    frame = image.get("ReferencedFrameNumber")
    return str(image.ReferencedSOPInstanceUID), None if frame is None else int(frame)


def _points(file: BinaryIO, place: _Place, stack: Stack, k: int) -> Vector:
    """(n, 2): row and column of a contour's points, which must lie on their slice."""
    elements = _elements(file, place)
    count = int(elements[b"\x06\x30\x46\x00"][8:])
    points = np.array(elements[b"\x06\x30\x50\x00"][8:].split(b"\\"), np.float64).reshape(count, 3)
    plane = stack.slices[k].plane
    axes = np.stack([plane.column_direction, plane.row_direction, plane.normal])
    along = (points - source_position_mm(stack, k)) @ axes.T
    if np.abs(along[:, 2]).max() > TOLERANCE_MM:
        raise VerificationFailed(f"slice {k}: a contour lies {np.abs(along[:, 2]).max():.4f} mm off it")
    rows_and_columns: Vector = along[:, :2] / plane.spacing_mm
    return rows_and_columns


def _filled(polygons: list[Vector], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels whose centre lies within a polygon: those that an odd number of edges are to the left of.

    Programs that join contours of a plane, and those that take one out of another, give the same where none overlap:
    a voxel in two of them would be missing here.
    """
    changes = np.zeros((shape[0], shape[1] + 1), np.uint8)
    for points in polygons:
        (y0, x0), (y1, x1) = points.T, np.roll(points, -1, axis=0).T
        first, last = np.ceil(np.minimum(y0, y1)).astype(int), np.ceil(np.maximum(y0, y1)).astype(int)
        rows = last - first
        edge = np.repeat(np.arange(len(points)), rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
        column = x0[edge] + (row - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
        np.bitwise_xor.at(changes, (row, np.ceil(column).astype(int)), 1)
    odd: NDArray[np.bool_] = np.bitwise_xor.accumulate(changes, axis=1)[:, :-1] != 0
    return odd
