"""Elements, items and files as bytes, in Explicit VR Little Endian (PS3.5 7.1.2, PS3.10 7.1)."""

from __future__ import annotations

import logging
import struct
import unicodedata
from functools import cache
from typing import cast

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_dataset, write_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import VR, format_number_as_ds

logger = logging.getLogger(__name__)


# What pydicom raises for a value that breaks its VR.
BAD_VALUE = (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, NotImplementedError)


def plain(text: str) -> str:
    """ASCII of a text of ours, so that it can stand under any character set the source came with."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def decimal(value: float) -> str:
    """A DS of at most 16 characters, without a negative zero."""
    return format_number_as_ds(float(value) + 0.0)


def copy_element(source: Dataset, target: Dataset, keyword: str) -> None:
    """Copy one element with its bytes as they are, but for a text that is padded with NUL (PS3.5 6.2 wants a space).

    It is left out where it cannot be read at all.
    """
    tag = Tag(tag_for_keyword(keyword) or 0)
    if tag in target:
        del target[tag]
    if tag not in source:
        return
    if keyword == "SpecificCharacterSet" and not source.get(keyword):  # type 1C: empty says nothing and is an error
        return
    element = cast(DataElement | RawDataElement, source.get_item(tag))
    vr = dictionary_VR(tag)
    if isinstance(element, RawDataElement) and vr != VR.SQ:
        value = element.value or b""
        value = value if vr == VR.UI else value.rstrip(b"\0")
    else:
        try:
            value = _value_bytes(source[tag], source)
        except BAD_VALUE as error:
            logger.warning("attribute left out: %s: %s", keyword, type(error).__name__)
            return
    if len(value) % 2:
        value += b"\0" if vr == VR.UI else b" "
    target[tag] = raw_element(tag, vr, value)


def raw_element(tag: BaseTag, vr: str, value: bytes) -> RawDataElement:
    """An element whose bytes go to the file as they are (Explicit VR Little Endian)."""
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def element(keyword: str, vr: str, value: str | bytes) -> bytes:
    """An element of ours in Explicit VR Little Endian (PS3.5 7.1.2). value: ASCII, or bytes of even length; of a
    sequence its items."""
    data = value.encode("ascii") if isinstance(value, str) else value
    if len(data) % 2:
        data += b"\0" if vr == VR.UI else b" "
    length = struct.pack("<HI", 0, len(data)) if vr == VR.SQ else struct.pack("<H", len(data))
    return tag_bytes(keyword) + vr.encode("ascii") + length + data


def item(*elements: bytes) -> bytes:
    """An item of a sequence (PS3.5 7.5), of elements by increasing tag."""
    length = sum(map(len, elements))
    return b"".join((b"\xfe\xff\x00\xe0", struct.pack("<I", length), *elements))


@cache
def tag_bytes(keyword: str) -> bytes:
    """Group and element of an attribute, little endian."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    return struct.pack("<HH", tag.group, tag.element)


def encode(dataset: Dataset) -> bytes:
    """A data set of ours (ASCII text) in Explicit VR Little Endian."""
    buffer = _buffer()
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def file_head(dataset: Dataset) -> bytes:
    """A DICOM file (PS3.10) up to the end of the elements of `dataset`, raw ones untouched."""
    buffer = _buffer()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, dataset.file_meta, enforce_standard=True)
    for tag in sorted(dataset.keys()):
        write_data_element(buffer, dataset.get_item(tag))
    return buffer.getvalue()


def _buffer() -> DicomBytesIO:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    return buffer


def _value_bytes(element: DataElement, source: Dataset) -> bytes:
    buffer = _buffer()
    write_data_element(buffer, element, source.get("SpecificCharacterSet") or "iso8859")
    encoded = buffer.getvalue()
    # tag 4, VR 2, then a length of 2, or 2 reserved and a length of 4 (PS3.5 7.1.2)
    return encoded[12:] if encoded[4:6] in (b"SQ", b"UN", b"UT", b"UC") else encoded[8:]
