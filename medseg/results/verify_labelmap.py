"""Does a label map say what it was meant to say? A second reader, as `verify` is of a BINARY segmentation."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.uid import RLELossless

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.inference.labels import LabelPlane
from medseg.results.verify import MALFORMED, Written, check_identity, frames_of, placed

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def verify_labelmap(path: Path, stack: Stack, segments: tuple[Segment, ...], planes: Iterable[LabelPlane]) -> None:
    """Read the label map at `path` and compare it with the label planes that the writer was given.

    Raises VerificationFailed with the first difference.
    """
    try:
        _verify(path, stack, segments, planes)
    except MALFORMED as error:
        raise VerificationFailed(f"{path.name}: cannot be read back: {error}") from error


def _verify(path: Path, stack: Stack, segments: tuple[Segment, ...], planes: Iterable[LabelPlane]) -> None:
    numbers = (0, *(segment.number for segment in segments))
    with path.open("rb") as file:
        seg = pydicom.dcmread(file, stop_before_pixels=True)
        check_identity(seg, stack, segments, Written(_SOP_CLASS, RLELossless, "LABELMAP", numbers))
        if seg.PixelPaddingValue != 0 or seg.BitsAllocated != 8:
            raise VerificationFailed(f"{path.name}: background {seg.PixelPaddingValue}, {seg.BitsAllocated} bits")
        frame_of: dict[int, int] = {}
        for number, k in enumerate(placed(frames_of(seg), stack)):
            if k in frame_of:
                raise VerificationFailed(f"frame {number + 1}: a second frame on slice {k}")
            frame_of[k] = number
        begins = _frame_places(file)
        if len(begins) != len(frame_of):
            raise VerificationFailed(f"PixelData: {len(begins)} fragments, expected {len(frame_of)}")
        k = -1
        for k, plane in enumerate(planes):
            back = _read_frame(file, begins[frame_of[k]], plane.shape) if k in frame_of else np.zeros_like(plane)
            if not np.array_equal(back, plane):
                raise VerificationFailed(
                    f"slice {k}: {np.count_nonzero(back != plane)} voxels differ from what was found"
                )
        if k + 1 != len(stack.slices):
            raise VerificationFailed(f"{k + 1} label planes for {len(stack.slices)} slices")


def _frame_places(file: BinaryIO) -> list[tuple[int, int]]:
    """Where each fragment begins, and its length; the table of offsets must say the same (PS3.5 A.4)."""
    head = file.read(12)
    if head != b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff":
        raise VerificationFailed("PixelData: not an encapsulated element of bytes")
    items: list[tuple[int, int]] = []
    while (tag := file.read(4)) == _ITEM:
        (length,) = struct.unpack("<I", file.read(4))
        items.append((file.tell(), length))
        file.seek(length, 1)
    if tag != _END or file.read(5) != bytes(4):
        raise VerificationFailed("PixelData: its end is not where its items end")
    (table, size), *frames = items
    file.seek(table)
    offsets = struct.unpack(f"<{size // 4}I", file.read(size))
    first = table + size
    if offsets != tuple(begin - 8 - first for begin, _ in frames):
        raise VerificationFailed("PixelData: its table of offsets does not say where frames begin")
    return frames


def _read_frame(file: BinaryIO, place: tuple[int, int], shape: tuple[int, ...]) -> LabelPlane:
    """A frame of one RLE segment (PS3.5 G.3.1)."""
    begin, length = place
    file.seek(begin)
    data = file.read(length)
    if struct.unpack_from("<2I", data) != (1, 64):
        raise VerificationFailed("PixelData: a frame that is not one RLE segment")
    voxels, at = bytearray(), 64
    while len(voxels) < shape[0] * shape[1]:
        control = data[at]
        if control < 128:
            voxels += data[at + 1 : at + 2 + control]
            at += 2 + control
        else:
            voxels += data[at + 1 : at + 2] * (257 - control)
            at += 2
    return np.frombuffer(bytes(voxels), np.uint8).reshape(shape)
