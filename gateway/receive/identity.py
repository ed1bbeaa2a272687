"""Who an instance is, read from the first bytes of its data set without decoding the rest.

Elements of a data set stand in order of their tags (PS3.5 7.1), so the UIDs that make a path are near the front:
(0008,0016) (0008,0018) (0020,000D) (0020,000E), and before these whose it is: (0010,0020) (0010,0021). The walk skips
values by their lengths and reads nothing else; where senders keep another order it goes on to the end.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from gateway.ledger import patients

SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
STUDY_INSTANCE_UID, SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E
CHARACTER_SET, PATIENT_ID, ISSUER_OF_PATIENT_ID = 0x00080005, 0x00100020, 0x00100021
FILE_META_LENGTH, TRANSFER_SYNTAX_UID, SOURCE_AE_TITLE = 0x00020000, 0x00020010, 0x00020016
MEDIA_SOP_CLASS_UID, MEDIA_SOP_INSTANCE_UID = 0x00020002, 0x00020003
NEEDED = frozenset((SOP_CLASS_UID, SOP_INSTANCE_UID, PATIENT_ID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID))
WANTED = NEEDED | {CHARACTER_SET, ISSUER_OF_PATIENT_ID}

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
MOST_INFLATED = 1 << 26  # a deflated header that needs more than this is refused
DEEPEST = 32
Data: TypeAlias = bytes | bytearray | memoryview


class NeedMore(Exception):
    """The bytes end before all that is wanted was seen."""


class NotDicom(ValueError):
    """Bytes that are not a data set in their transfer syntax."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The UIDs of a composite instance; empty where the data set has none. patient: `gateway.ledger.patients.key`."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    patient: str = ""


class FileMeta(NamedTuple):
    """What a file says of its data set. offset_bytes: where that starts."""

    offset_bytes: int
    transfer_syntax_uid: str
    source_ae: str
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


class _Encoding(NamedTuple):
    explicit: bool
    tag: struct.Struct
    short: struct.Struct
    long: struct.Struct


_LITTLE = (struct.Struct("<HH"), struct.Struct("<H"), struct.Struct("<I"))
_BIG = (struct.Struct(">HH"), struct.Struct(">H"), struct.Struct(">I"))
_IMPLICIT_LE, _EXPLICIT_LE, _EXPLICIT_BE = (
    _Encoding(False, *_LITTLE),
    _Encoding(True, *_LITTLE),
    _Encoding(True, *_BIG),
)


def identify(data: Data, transfer_syntax_uid: str, *, whole: bool) -> Identity:
    """The identity of a data set from its first bytes; raises NotDicom, or NeedMore unless `data` is the `whole`."""
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        data = _inflate(data)
    try:
        return _identity(data, _encoding(transfer_syntax_uid), whole)
    except (NeedMore, struct.error):
        if whole:
            raise NotDicom("the data set ends inside an element") from None
        raise NeedMore from None


def _identity(data: Data, encoding: _Encoding, whole: bool) -> Identity:
    values: dict[int, bytes] = {}
    position, size, beyond = 0, len(data), False
    try:
        while position < size:
            tag, vr, length, position = _element(data, position, encoding)
            beyond = beyond or tag > SERIES_INSTANCE_UID
            if beyond and values.keys() >= NEEDED:
                break
            if length == UNDEFINED:
                position = _after_sequence(data, position, _IMPLICIT_LE if vr == b"UN" else encoding, 0)
                continue
            if tag in WANTED:
                if position + length > size:
                    raise NeedMore
                values[tag] = bytes(data[position : position + length])
            position += length
        else:
            if not whole or (position > size and not beyond):
                raise NeedMore
    except (NeedMore, NotDicom, struct.error):
        if not (whole and beyond):  # else what is looked for is where it should be, or nowhere
            raise
    character_set = values.get(CHARACTER_SET, b"")
    patient, issuer = (_text(values.get(tag, b""), character_set) for tag in (PATIENT_ID, ISSUER_OF_PATIENT_ID))
    return Identity(
        _uid(values.get(SOP_CLASS_UID, b"")),
        _uid(values.get(SOP_INSTANCE_UID, b"")),
        _uid(values.get(STUDY_INSTANCE_UID, b"")),
        _uid(values.get(SERIES_INSTANCE_UID, b"")),
        patients.key(patient, issuer),
    )


def _text(value: bytes, character_set: bytes) -> str:
    """A text in the character set that a data set names (PS3.3 C.12.1.1.2), leniently."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    names = [name.strip() for name in _uid(character_set).split("\\")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom says of a wrong one quotes the text
        try:
            return decode_bytes(value, convert_encodings(names), {ord("\\")})
        except (LookupError, ValueError):
            return value.decode("latin-1")


def _element(data: Data, position: int, encoding: _Encoding) -> tuple[int, bytes, int, int]:
    """Tag, VR (empty where implicit), length of the value and where it starts (PS3.5 7.1.2, 7.1.3)."""
    group, element = encoding.tag.unpack_from(data, position)
    tag = group << 16 | element
    if not encoding.explicit or group == 0xFFFE:
        return tag, b"", encoding.long.unpack_from(data, position + 4)[0], position + 8
    vr = bytes(data[position + 4 : position + 6])
    if vr in LONG_VRS:
        return tag, vr, encoding.long.unpack_from(data, position + 8)[0], position + 12
    if len(vr) == 2 and not (vr.isalpha() and vr.isupper()):
        raise NotDicom(f"({group:04X},{element:04X}) has no VR")
    return tag, vr, encoding.short.unpack_from(data, position + 6)[0], position + 8


def _after_sequence(data: Data, position: int, encoding: _Encoding, depth: int) -> int:
    """Where a sequence of undefined length ends (PS3.5 7.5)."""
    if depth > DEEPEST:
        raise NotDicom(f"sequences nested more than {DEEPEST} deep")
    while True:
        tag, _, length, position = _element(data, position, encoding)
        if tag == SEQUENCE_END:
            return position
        if tag != ITEM:
            raise NotDicom(f"{tag:08X} where an item should start")
        position = _after_item(data, position, encoding, depth) if length == UNDEFINED else position + length


def _after_item(data: Data, position: int, encoding: _Encoding, depth: int) -> int:
    while True:
        tag, vr, length, position = _element(data, position, encoding)
        if tag == ITEM_END:
            return position
        if length == UNDEFINED:
            position = _after_sequence(data, position, _IMPLICIT_LE if vr == b"UN" else encoding, depth + 1)
        else:
            position += length


def _uid(value: bytes) -> str:
    value = value.strip(b"\0 ")
    return value.decode("ascii") if value.isascii() else ""


def file_meta_of(data: Data) -> FileMeta:
    """The file meta information at the start of a file (PS3.10 7.1); raises NotDicom."""
    try:
        first, _, length, start = _element(data, 132, _EXPLICIT_LE)
        if bytes(data[128:132]) != b"DICM" or first != FILE_META_LENGTH or length != 4:
            raise NotDicom("no DICM prefix and group length")
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        found, position = {}, start + 4
        while position < end:
            tag, _, length, position = _element(data, position, _EXPLICIT_LE)
            found[tag] = _uid(bytes(data[position : position + length]))
            position += length
    except struct.error:
        raise NotDicom("the file ends inside its meta information") from None
    if position != end or end > len(data) or not found.get(TRANSFER_SYNTAX_UID):
        raise NotDicom("malformed file meta information")
    more = (found.get(tag, "") for tag in (SOURCE_AE_TITLE, MEDIA_SOP_CLASS_UID, MEDIA_SOP_INSTANCE_UID))
    return FileMeta(end, found[TRANSFER_SYNTAX_UID], *more)


def _encoding(transfer_syntax_uid: str) -> _Encoding:
    if transfer_syntax_uid == ImplicitVRLittleEndian:
        return _IMPLICIT_LE
    return _EXPLICIT_BE if transfer_syntax_uid == ExplicitVRBigEndian else _EXPLICIT_LE


def _inflate(data: Data) -> bytes:
    """What can be inflated of raw deflate data (PS3.5 A.5)."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MOST_INFLATED)
    except zlib.error as error:
        raise NotDicom(f"not deflated: {error}") from error
