"""An object in Explicit VR Little Endian, piece by piece: as it is where it is in that, else written anew.

    file meta | header, encoded anew | pixel element: tag, VR, length | frame | frame | ... (one in memory at a time)

What follows the pixels (padding, signatures that no longer hold) is left out. Values stay; only how they are encoded
changes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmwrite
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from gateway.web.dicomweb.pixels import PixelSource, pieces, source_of
from medseg.dicom.encoding import MOST_INFLATED, find_encoding, inflated
from medseg.dicom.headers import look, read_data_set, read_header
from medseg.dicom.pixel_element import PIXEL_KEYWORDS, PixelElement, pixel_element

LONGEST_VALUE: Final = 0xFFFFFFFE
_TAGS: Final = {keyword: tag for tag, keyword in PIXEL_KEYWORDS.items()}


def why_not(path: Path) -> str:
    """Why an object cannot be given plain; empty where it can. Raises UnreadableInstance, OSError."""
    with path.open("rb") as stream:
        coded = find_encoding(stream)
        header = read_header(stream, coded)
        if coded.syntax == DeflatedExplicitVRLittleEndian:
            return ""
        element = pixel_element(stream, implicit=coded.implicit, little=coded.little)
    if element is None or "Rows" not in header:
        return ""
    source = source_of(path)
    if not source.decodable:
        return f"nothing here decodes {source.syntax.name} with {source.samples} samples per pixel"
    if source.plain_bytes > LONGEST_VALUE:
        return f"its pixels take {source.plain_bytes} bytes, and {LONGEST_VALUE} is the most that one value may have"
    return ""


def explicit(path: Path, transfer_syntax_uid: str) -> Iterator[bytes]:
    """The whole file. transfer_syntax_uid: as its file meta information has it."""
    if transfer_syntax_uid == ExplicitVRLittleEndian:
        yield from pieces(path)
        return
    with path.open("rb") as stream:
        coded = find_encoding(stream)
        header = read_header(stream, coded)
        if coded.syntax == DeflatedExplicitVRLittleEndian:
            stream.seek(coded.offset)
            whole = inflated(stream, MOST_INFLATED)
            read_data_set(whole, coded)
            element = pixel_element(whole, implicit=False, little=True)
        else:
            element = pixel_element(stream, implicit=coded.implicit, little=coded.little)
    yield _head(header)
    if element is not None:
        yield from _pixels(source_of(path), element)


def _head(header: Dataset) -> bytes:
    """Everything before the pixels."""
    written = BytesIO()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = UID(look(header).text("SOPClassUID"))
    header.file_meta.MediaStorageSOPInstanceUID = UID(look(header).text("SOPInstanceUID"))
    for tag in [tag for tag in header.keys() if tag.element == 0]:  # noqa: SIM118 - iterating converts values
        del header[tag]  # group lengths, which are no longer so
    dcmwrite(written, header, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return written.getvalue()


def _pixels(source: PixelSource, element: PixelElement) -> Iterator[bytes]:
    vr = {"FloatPixelData": b"OF", "DoubleFloatPixelData": b"OD"}.get(element.keyword)
    vr = vr or (b"OW" if source.bits > 8 else b"OB")
    length = source.plain_bytes
    tag = _TAGS[element.keyword]
    yield struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length + length % 2)
    yield from source.all_plain()
    yield b"\0" * (length % 2)
