"""Frames of an object: as they are stored, or as Explicit VR Little Endian has them, one at a time.

stored                            plain
encapsulated: its fragments       decoded, by what decodes for inference (`medseg.dicom.decode`): one grey value
native, little endian: the bytes  the same
native, big endian or deflated    other byte order, inflated
one bit a pixel                   bits of one frame, from the first bit of a byte on
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from pydicom.encaps import get_frame
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from gateway.web.dicomweb.problems import not_here
from medseg.dicom.decode import PLUGINS, stored_plane
from medseg.dicom.headers import MALFORMED, look, read_instance, transfer_syntax
from medseg.dicom.instance import Instance
from medseg.dicom.pixel_element import PixelElement, fragments, pixel_element
from medseg.dicom.stored import bits_of
from medseg.errors import UndecodablePixels

PIECE: Final = 1 << 18  # bytes that are read and sent at once
#: Pixels in these are as they are.
NATIVE: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


@dataclass(frozen=True, eq=False)
class PixelSource:
    """The pixels of an object. syntax: its transfer syntax, as the bytes are. samples: of a pixel, as they lie."""

    instance: Instance
    syntax: UID
    frames: int
    rows: int
    columns: int
    samples: int
    bits: int

    @property
    def encapsulated(self) -> bool:
        return self.syntax not in NATIVE

    @property
    def decodable(self) -> bool:
        """Whether it can be given plain."""
        return not self.encapsulated or (self.syntax in PLUGINS and self.samples == 1)

    @property
    def frame_bits(self) -> int:
        """Of a frame that is not compressed."""
        return self.rows * self.columns * self.samples * self.bits

    @property
    def plain_bytes(self) -> int:
        """Of all frames, plain."""
        return -(-self.frames * self.frame_bits // 8)

    def stored(self, frame: int) -> bytes:
        """A frame as it is stored, counted from 1. Raises UndecodablePixels."""
        return self._guarded(self._stored, frame)

    def plain(self, frame: int) -> bytes:
        """A frame as Explicit VR Little Endian has it. Raises UndecodablePixels."""
        return self._guarded(self._plain, frame)

    def all_plain(self) -> Iterator[bytes]:
        """All frames, one behind the other: of one bit a pixel, they need not begin with a byte."""
        if self.frame_bits % 8 == 0:
            yield from (self.plain(frame) for frame in range(1, self.frames + 1))
            return
        left = np.zeros(0, np.uint8)
        for frame in range(1, self.frames + 1):
            bits = np.unpackbits(np.frombuffer(self.plain(frame), np.uint8), bitorder="little")[: self.frame_bits]
            bits = np.concatenate([left, bits])
            whole = len(bits) // 8 * 8
            left = bits[whole:]
            yield np.packbits(bits[:whole], bitorder="little").tobytes()
        yield np.packbits(left, bitorder="little").tobytes()

    def _guarded(self, read: Any, frame: int) -> bytes:
        try:
            with self.instance.open() as stream:
                return cast(bytes, read(stream, frame))
        except (*MALFORMED, OSError) as error:
            why = f"frame {frame}: {type(error).__name__}"
            raise UndecodablePixels(self.instance.sop_instance_uid, self.syntax.name, why) from error

    def _stored(self, stream: BinaryIO, frame: int) -> bytes:
        element = self._element(stream)
        if not self.encapsulated:
            return self._native(stream, element, frame)
        there = fragments(stream)
        if self.frames == 1 or len(there.places) == self.frames:
            parts = there.places if self.frames == 1 else there.places[frame - 1 : frame]
            return b"".join(_read(stream, begin, length) for begin, length in parts)
        return get_frame(stream, frame - 1, number_of_frames=self.frames)

    def _plain(self, stream: BinaryIO, frame: int) -> bytes:
        if not self.encapsulated and self.instance.pixel_offset is not None:
            return _little(self._native(stream, self._element(stream), frame), self.syntax, self.bits)
        stored = stored_plane(self.instance, frame if self.frames > 1 else None)
        if self.bits == 1:
            return np.packbits(stored.astype(bool), bitorder="little").tobytes()
        samples = stored.astype(f"<u{self.bits // 8}") if stored.dtype.kind in "iu" else stored
        return (samples << bits_of(look(self.instance.header)).low if stored.dtype.kind in "iu" else samples).tobytes()

    def _element(self, stream: BinaryIO) -> PixelElement:
        implicit, little = self.instance.header.original_encoding
        stream.seek(self.instance.pixel_offset or 0)
        element = pixel_element(stream, implicit=bool(implicit), little=little is not False)
        if element is None:
            raise ValueError("no pixel data where they were expected")
        return element

    def _native(self, stream: BinaryIO, element: PixelElement, frame: int) -> bytes:
        begin = (frame - 1) * self.frame_bits
        end = begin + self.frame_bits
        if element.length is None or element.length * 8 < end:
            raise ValueError("cut short")
        first, last = begin // 8, -(-end // 8)
        data = _read(stream, element.value + first, last - first)
        if begin % 8 == 0 and end % 8 == 0:
            return data
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[begin % 8 :][: self.frame_bits]
        return np.packbits(bits, bitorder="little").tobytes()


def _read(stream: BinaryIO, begin: int, length: int) -> bytes:
    stream.seek(begin)
    data = stream.read(length)
    if len(data) < length:
        raise ValueError("cut short")
    return data


def _little(data: bytes, syntax: UID, bits: int) -> bytes:
    """In little endian. 8-bit samples of big endian lie in words of 16 bits (PS3.5 A.3)."""
    if syntax != ExplicitVRBigEndian or bits == 1:
        return data
    width = max(bits // 8, 2)
    if len(data) % width:
        return data
    return np.frombuffer(data, f">u{width}").astype(f"<u{width}").tobytes()


@lru_cache(maxsize=64)
def source_of(path: Path) -> PixelSource:
    """The pixels of the object in a file. Raises Problem where it has none, UnreadableInstance."""
    instance = read_instance(cast(Any, partial(path.open, "rb")), path.name)
    seen = look(instance.header)
    numbers = [seen.number(keyword) for keyword in ("Rows", "Columns")]
    if not all(numbers):
        raise not_here(f"instance {instance.sop_instance_uid} has no pixels: a frame of it")
    samples = int(seen.number("SamplesPerPixel") or 1)
    if seen.text("PhotometricInterpretation") == "YBR_FULL_422" and transfer_syntax(instance.header) in NATIVE:
        samples = 2  # two pixels share their chrominance (PS3.3 C.7.6.3.1.2)
    return PixelSource(
        instance,
        transfer_syntax(instance.header),
        max(int(seen.number("NumberOfFrames") or 1), 1),
        int(numbers[0] or 0),
        int(numbers[1] or 0),
        samples,
        int(seen.number("BitsAllocated") or 16),
    )


def pieces(path: Path, begin: int = 0, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a file, or a part of them. Raises OSError where they are not all there."""
    with path.open("rb") as stream:
        stream.seek(begin)
        while length is None or length > 0:
            data = stream.read(PIECE if length is None else min(PIECE, length))
            if not data:
                if length:
                    raise OSError("a file is shorter than it was")
                return
            length = None if length is None else length - len(data)
            yield data
