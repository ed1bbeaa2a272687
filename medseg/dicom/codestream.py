"""What a compressed frame says of itself: its size, and the bits of its samples.

Decoders go by the code stream, headers describe what comes out of it (PS3.5 8.2); where the two do not agree a frame is
either another image than the header's, or its samples can be read in two ways.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

END_OF_IMAGE: Final = b"\xff\xd9"  # of JPEG 2000 as well (end of codestream)
_START_OF_SCAN: Final = 0xDA
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS: Final = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
_JPEG_LS_FRAME: Final = 0xF7
_BARE: Final = frozenset((0x01, 0xD8, *range(0xD0, 0xD8)))  # markers without a length
_SIZE: Final = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream, and its size
_CODING_STYLE: Final = b"\xff\x52"


@dataclass(frozen=True)
class Codestream:
    """One frame. precision: bits of a sample. lossy: its samples are near those that were compressed."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool
    lossy: bool
    whole: bool


def jpeg(frame: bytes) -> Codestream:
    """Of a frame in JPEG (ITU-T T.81 B.1, B.2) or JPEG-LS (T.87 C.1). Raises ValueError where it is damaged."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("damaged: no JPEG image")
    size: tuple[int, int, int, int] | None = None
    kind, near, scan = 0, 0, len(frame)
    for marker, at, length in _segments(frame):
        if marker in _JPEG_FRAMES or marker == _JPEG_LS_FRAME:
            if length < 8:
                raise ValueError("damaged: a JPEG frame header is cut short")
            size, kind = struct.unpack_from(">BHHB", frame, at), marker
        elif marker == _START_OF_SCAN:
            scan = at + length - 2
            near = frame[scan - 3]  # in JPEG-LS, how far samples may be off
    if size is None:
        raise ValueError("damaged: a JPEG image without a frame header")
    end = frame.find(END_OF_IMAGE, scan)
    precision, rows, columns, samples = size
    whole = end >= 0 and not frame[end + 2 :].strip(b"\x00\xff")
    lossy = near > 0 if kind == _JPEG_LS_FRAME else kind not in _LOSSLESS
    return Codestream(rows, columns, samples, precision, signed=False, lossy=lossy, whole=whole)


def _segments(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, where its parameters begin, and its length with the two bytes of that; the start of scan is the last.

    Any marker may be preceded by any number of fill bytes FF (T.81 B.1.1.2).
    """
    at = 2
    while True:
        if at >= len(frame) or frame[at] != 0xFF:
            there = frame[at : at + 2].hex().upper() or "nothing"
            raise ValueError(f"damaged: {there} where a JPEG marker should be")
        while at < len(frame) and frame[at] == 0xFF:
            at += 1
        if at + 3 > len(frame):
            raise ValueError("damaged: the JPEG image ends early")
        marker = frame[at]
        if marker in _BARE:
            at += 1
            continue
        if marker < 0xC0:
            raise ValueError(f"damaged: FF{marker:02X} where a JPEG marker should be")
        (length,) = struct.unpack_from(">H", frame, at + 1)
        if length < 2 or at + 1 + length > len(frame):
            raise ValueError("damaged: the JPEG image ends early")
        yield marker, at + 3, length
        if marker == _START_OF_SCAN:
            return
        at += 1 + length


def jpeg_2000(frame: bytes) -> Codestream:
    """Of a frame in JPEG 2000 or HTJ2K (ITU-T T.800 A.5.1), bare or inside a JP2 file. Raises ValueError."""
    begin = frame.find(_SIZE)
    if begin < 0 or len(frame) < begin + 43:
        raise ValueError("damaged: no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4L", frame, begin + 8)
    (samples,) = struct.unpack_from(">H", frame, begin + 40)
    depth = frame[begin + 42]
    style = frame.find(_CODING_STYLE, begin + 42)
    lossy = not (0 <= style < len(frame) - 13 and frame[style + 13] == 1)  # the reversible transformation
    return Codestream(
        rows=bottom - top,
        columns=right - left,
        samples=samples,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth >> 7),
        lossy=lossy,
        whole=END_OF_IMAGE in frame[-8:],
    )
