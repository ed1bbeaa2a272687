"""How an object's bytes are encoded: where its data set begins, and what it is encoded in, whatever is stated.

    preamble, DICM | file meta information: group 0002, explicit VR | data set
                     (0002,0000) says where it ends                   (0002,0010) says how it is encoded

What stands there may be wrong (PS3.10 7.1): anonymizers write a data set anew and leave the old transfer syntax,
senders leave elements of group 0002 inside a data set. The bytes of a data set leave no doubt about VR and byte order.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medseg.dicom.instance import Remark

MOST_INFLATED: Final = 1 << 26  # bytes of a deflated header; one that needs more is malformed
_HEAD: Final = 1 << 12
_MOST_META: Final = 1 << 24
_META_LENGTH, _TRANSFER_SYNTAX = 0x00020000, 0x00020010
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_FIRST_GROUPS = frozenset((0x0000, 0x0002, 0x0004, 0x0008, 0x0009, 0x0010))
_BY_BYTES = {
    (False, True): ExplicitVRLittleEndian,
    (True, True): ImplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
_WHOLE = frozenset((*_BY_BYTES.values(), DeflatedExplicitVRLittleEndian))


@dataclass(frozen=True)
class Encoding:
    """How the bytes of an object are.

    meta, offset: where the file meta information begins, and where the data set does.
    syntax: its transfer syntax, as the bytes are where what is stated is another.
    implicit, little: whether it has no VRs, and whether its byte order is little endian.
    """

    meta: int
    offset: int
    syntax: UID
    implicit: bool
    little: bool
    remarks: tuple[Remark, ...] = ()


class _Element(NamedTuple):
    tag: int
    begin: int
    value: int
    length: int

    @property
    def end(self) -> int:
        return self.value + self.length


def find_encoding(stream: BinaryIO) -> Encoding:
    """How an object's bytes are; the stream is at their beginning.

    Raises ValueError where they are in no transfer syntax, or two of them are stated and nothing tells which holds.
    """
    size = _HEAD
    head = stream.read(size)
    while True:
        begin = 132 if head[128:132] == b"DICM" else 0
        run = list(_meta(head, begin))
        end = run[-1].end if run else begin
        if end + 16 <= len(head) or len(head) < size or end > _MOST_META:
            break
        size *= 4
        head += stream.read(size - len(head))
    offset = _data_set(head, run, begin)
    stated = _stated(head, [one for one in run if one.begin < offset])
    return _encoding(head, begin, offset, stated)


def _meta(data: bytes, at: int) -> Iterator[_Element]:
    """Elements of group 0002, one behind the other, as far as they are there."""
    while (element := _little(data, at)) is not None and element.tag >> 16 == 0x0002:
        yield element
        at = element.end


def _little(data: bytes, at: int) -> _Element | None:
    """The element that begins there, in little endian, with its VR or without."""
    if at + 12 > len(data):
        return None
    group, number, vr, short, long = struct.unpack_from("<HH2sHL", data, at)
    tag = group << 16 | number
    if vr in _LONG:
        return _Element(tag, at, at + 12, long)
    if _is_vr(vr):
        return _Element(tag, at, at + 8, short)
    return _Element(tag, at, at + 8, struct.unpack_from("<L", data, at + 4)[0])


def _is_vr(two: bytes) -> bool:
    # A length whose bytes look like that is above 16 KiB: the first elements of a data set are not that long.
    return two.isalpha() and two.isupper()


def _data_set(data: bytes, run: list[_Element], begin: int) -> int:
    """Where the data set begins, given all elements of group 0002: it may have some of them, too."""
    if not run:
        return begin
    ends = [element.end for element in run]
    by_length = _by_length(data, run[0])
    if by_length in ends:
        before = [element.tag for element in run if element.begin < by_length]
    else:  # no group length, or a wrong one: tags ascend, so where they begin anew the data set does
        before = [run[0].tag]
        for element in run[1:]:
            if element.tag <= before[-1]:
                break
            before.append(element.tag)
    if _TRANSFER_SYNTAX not in before:
        return ends[-1]
    after = [element for element in run[len(before) :] if element.tag == _TRANSFER_SYNTAX]
    if after and by_length not in ends:
        (first,) = (element for element in run[: len(before)] if element.tag == _TRANSFER_SYNTAX)
        several = {_text(data, first), *(_text(data, element) for element in after)}
        if len(several) > 1:
            raise ValueError(f"{len(several)} transfer syntaxes are stated in group 0002, which has no length")
    return ends[len(before) - 1]


def _by_length(data: bytes, first: _Element) -> int:
    if first.tag != _META_LENGTH or first.length != 4 or first.end > len(data):
        return -1
    return first.end + int(struct.unpack_from("<L", data, first.value)[0])


def _text(data: bytes, element: _Element) -> str:
    return data[element.value : element.end].strip(b"\0 ").decode("ascii", "replace")


def _stated(data: bytes, meta: list[_Element]) -> str:
    return next((_text(data, element) for element in meta if element.tag == _TRANSFER_SYNTAX), "")


def _encoding(data: bytes, meta: int, offset: int, stated: str) -> Encoding:
    while (command := _little(data, offset)) is not None and command.tag >> 16 == 0x0000:
        offset = command.end  # of a message, left there: no part of the data set
    here = data[offset : offset + 8]
    implicit, little = _as_stated(stated)
    if len(here) < 8:  # no element
        return Encoding(meta, offset, UID(stated) if stated else by_bytes(implicit, little), implicit, little)
    low, high = struct.unpack_from("<H", here)[0], struct.unpack_from(">H", here)[0]
    if (stated == DeflatedExplicitVRLittleEndian or min(low, high) not in _FIRST_GROUPS) and _inflates(data, offset):
        actual, implicit, little = DeflatedExplicitVRLittleEndian, False, True
    else:
        little = little if low == high else low < high
        implicit = not _is_vr(here[4:6])
        actual = by_bytes(implicit, little)
    if not stated:
        return Encoding(meta, offset, actual, implicit, little)
    syntax = actual if stated in _WHOLE else UID(stated)
    remarks = _remarks(UID(stated), actual, plain=not implicit and little)
    return Encoding(meta, offset, syntax, implicit, little, remarks)


def by_bytes(implicit: bool, little: bool) -> UID:
    """The transfer syntax of bytes that are not compressed. Raises ValueError where there is none."""
    if (implicit, little) not in _BY_BYTES:
        raise ValueError("the data set is in big endian and has no VRs, which no transfer syntax allows")
    return _BY_BYTES[implicit, little]


def _as_stated(stated: str) -> tuple[bool, bool]:
    """Whether without VRs, whether in little endian."""
    return stated == ImplicitVRLittleEndian, stated != ExplicitVRBigEndian


def _remarks(stated: UID, actual: UID, *, plain: bool) -> tuple[Remark, ...]:
    """plain: whether the data set has VRs and is in little endian, as that of compressed pixels has to be."""
    if stated in _WHOLE:
        return () if stated == actual else (wrong_syntax(stated, actual.name),)
    return () if plain else (wrong_syntax(stated, f"a data set in {actual.name}"),)


def wrong_syntax(stated: UID, found: str) -> Remark:
    """What is said where bytes are otherwise than the file meta information states."""
    detail = f"the file meta information states {stated.name}, the bytes are {found}: read as they are"
    return Remark("wrong_transfer_syntax", detail)


def _inflates(data: bytes, offset: int) -> bool:
    """Whether a data set comes out of deflated bytes (PS3.5 A.5)."""
    try:
        start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[offset:], 8)
    except zlib.error:
        return False
    return len(start) == 8 and struct.unpack_from("<H", start)[0] in _FIRST_GROUPS and _is_vr(start[4:6])


def inflated(stream: BinaryIO, most: int) -> BinaryIO:
    """What is deflated from where the stream is, at most so many bytes of it."""
    return io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), most))
