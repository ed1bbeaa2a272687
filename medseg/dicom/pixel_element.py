"""The element that holds an object's pixels: where it is, how long, and what it is made of."""

from __future__ import annotations

import struct
from typing import BinaryIO, Final, NamedTuple

PIXEL_KEYWORDS: Final = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD


class PixelElement(NamedTuple):
    """value: where its value begins. length: of the value; None where it is encapsulated."""

    keyword: str
    value: int
    length: int | None


def pixel_element(stream: BinaryIO, *, implicit: bool, little: bool) -> PixelElement | None:
    """The element that begins where the stream is, which is left at its value; None where there is none of pixels."""
    order = "<" if little else ">"
    head = stream.read(8)
    if len(head) < 8:
        return None
    group, number = struct.unpack_from(f"{order}HH", head)
    keyword = PIXEL_KEYWORDS.get(group << 16 | number)
    if keyword is None:
        return None
    # Pixel data have VRs with a length of 32 bits (PS3.5 7.1.2); the length of others follows at once.
    if not implicit and head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN"):
        long = stream.read(4)
        if len(long) < 4:
            return None
        (length,) = struct.unpack(f"{order}L", long)
    elif implicit:
        (length,) = struct.unpack_from(f"{order}L", head, 4)
    else:
        (length,) = struct.unpack_from(f"{order}H", head, 6)
    return PixelElement(keyword, stream.tell(), None if length == UNDEFINED else int(length))


class Fragments(NamedTuple):
    """Fragments of encapsulated pixel data.

    places: where each begins, and its length. end: where the last ends. closed: whether there is a delimiter; without
    one, at the very end of an object, some may lack.
    """

    places: tuple[tuple[int, int], ...]
    end: int
    closed: bool


def fragments(stream: BinaryIO) -> Fragments:
    """Look at the items that begin where the stream is (the first is the offset table), and leave it there.

    Raises ValueError where they are cut short, or damaged: a JPEG decoder paints what is missing grey and says nothing.
    """
    begin = stream.tell()
    end = stream.seek(0, 2)
    at, places = begin, list[tuple[int, int]]()
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            if len(places) < 2 or head.strip(b"\0"):
                raise ValueError(f"cut short: encapsulated pixel data have no end after {end - begin} bytes")
            closed = False
            break
        group, element, length = struct.unpack("<HHL", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            at, closed = at + 8, True
            break
        if tag != _ITEM:
            raise ValueError(f"damaged: ({group:04X},{element:04X}) where a fragment of pixel data should begin")
        places.append((at + 8, length))
        at += 8 + length
        if at > end:
            raise ValueError(f"cut short: a fragment of pixel data lacks {at - end} of {length} bytes")
    stream.seek(begin)
    return Fragments(tuple(places[1:]), at, closed)
