"""Headers: read without their pixels, and looked at leniently.

Values in real headers may be absent, empty or malformed, and pydicom converts them only when asked. `Attributes`
answers None in all three cases, so that a bad value of no importance does no harm.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from decimal import InvalidOperation
from functools import cache, lru_cache
from typing import Any, BinaryIO
from zipfile import BadZipFile

from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medseg.dicom.instance import Instance
from medseg.errors import UnreadableInstance

#: What pydicom, zlib and zipfile raise for bytes that are not what they claim to be.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    BadZipFile,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    InvalidOperation,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_SHARED_BYTES = 256
_STUDY_TRAITS = ("PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
_SERIES_TRAITS = ("Modality", "SeriesDate", "SeriesTime", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID")


_tag = cache(Tag)


class Attributes:
    """Attributes looked up through several data sets, the first that has one wins."""

    def __init__(self, *datasets: Dataset) -> None:
        self._datasets = datasets

    def value(self, keyword: str) -> Any:
        """The value, or None where it is absent, empty or malformed."""
        tag = _tag(keyword)
        for dataset in self._datasets:
            if tag in dataset:
                try:
                    value = dataset[tag].value
                except MALFORMED:
                    return None
                return None if value in ("", b"") or (isinstance(value, MultiValue) and not value) else value
        return None

    def text(self, keyword: str) -> str:
        """The value as text, its parts joined by backslashes; empty where there is none."""
        return "\\".join(self.texts(keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The parts of a value as texts without padding."""
        value = self.value(keyword)
        if value is None:
            return ()
        return tuple(str(part).strip() for part in (value if isinstance(value, MultiValue | list) else [value]))

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """The parts of a value as numbers; empty where one of them is none."""
        try:
            return tuple(float(part) for part in self.texts(keyword))
        except ValueError:
            return ()

    def number(self, keyword: str) -> float | None:
        """The first part of a value as a number."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None


def look(dataset: Dataset) -> Attributes:
    """A lenient look at one data set."""
    return Attributes(dataset)


def transfer_syntax(header: Dataset) -> UID:
    """The transfer syntax in which the object's bytes are."""
    return UID(str(header.file_meta.TransferSyntaxUID))


def read_instance(open_stream: Callable[[], BinaryIO], name: str) -> Instance:
    """Read an object's header, up to its pixel data.

    A file without preamble is taken where it parses as a data set with the UIDs of an object.

    Raises:
        UnreadableInstance: not DICOM, without its UIDs, or an image cut short before its pixels.
    """
    try:
        with open_stream() as stream:
            return _read(stream, open_stream, name)
    except MALFORMED as error:
        raise UnreadableInstance(name, f"malformed DICOM: {_one_line(error)}") from error
    except OSError as error:
        raise UnreadableInstance(name, f"cannot be read: {error.strerror or error}") from error


def _read(stream: BinaryIO, open_stream: Callable[[], BinaryIO], name: str) -> Instance:
    start = stream.read(132)
    if start[128:] != b"DICM" and not _starts_like_dataset(start):
        raise UnreadableInstance(name, "empty file" if not start else "not a DICOM file")
    stream.seek(0)
    header = dcmread(stream, stop_before_pixels=True, force=True)
    header.buffer = None  # pydicom would keep the stream, and with it the whole object, in memory
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = _guessed_syntax(header)
    if is_directory(header):
        return Instance(header, open_stream, name)
    _complete_uids(header)
    absent = [keyword for keyword in _REQUIRED if not look(header).text(keyword)]
    if absent:
        raise UnreadableInstance(name, f"no {', '.join(absent)} in its header")
    _slim(header)
    # A deflated data set has no place of its own in the stream.
    deflated = transfer_syntax(header) == DeflatedExplicitVRLittleEndian
    offset = None if deflated else stream.tell()
    if offset is not None and "Rows" in header and not _at_pixels(stream, header):
        raise UnreadableInstance(name, "cut short: the file ends before the pixel data")
    return Instance(header, open_stream, name, offset)


def is_directory(header: Dataset) -> bool:
    """Whether this is a DICOMDIR."""
    return "DirectoryRecordSequence" in header or (
        look(header.file_meta).text("MediaStorageSOPClassUID") == "1.2.840.10008.1.3.10"
    )


def derived_uids(header: Dataset) -> dict[str, str]:
    """UIDs (2.25) for study and series of an object in which they were emptied: made of what its slices share."""
    return {
        "StudyInstanceUID": _derived("study", header, _STUDY_TRAITS),
        "SeriesInstanceUID": _derived("series", header, (*_STUDY_TRAITS, *_SERIES_TRAITS)),
    }


def _derived(what: str, header: Dataset, keywords: tuple[str, ...]) -> str:
    view = look(header)
    told = "|".join(view.text(keyword) for keyword in keywords)
    return f"2.25.{int.from_bytes(hashlib.sha256(f'medseg {what} {told}'.encode()).digest()[:16])}"


def _complete_uids(header: Dataset) -> None:
    """Fill UIDs that a de-identifier emptied: of the object from the file meta (PS3.10 7.1), of study and series from
    what their slices share. Images only; the geometry warns of the latter."""
    if "Rows" not in header:
        return
    view, meta = look(header), look(header.file_meta)
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        stored = meta.text(f"MediaStorage{keyword}")
        if stored and not view.text(keyword):
            setattr(header, keyword, stored)
    if not (view.text("StudyInstanceUID") and view.text("SeriesInstanceUID")):
        for keyword, uid in derived_uids(header).items():
            if not view.text(keyword):
                setattr(header, keyword, uid)


def _starts_like_dataset(start: bytes) -> bool:
    """Whether bytes without a preamble begin with an element of group 0002 or 0008, in either byte order."""
    if len(start) < 8:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", start[:4])
        if group in (0x0002, 0x0008) and element <= 0x0100:
            return True
    return False


def _guessed_syntax(header: Dataset) -> UID:
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _at_pixels(stream: BinaryIO, header: Dataset) -> bool:
    here = stream.read(4)
    if len(here) < 4:
        return False
    order = "<" if transfer_syntax(header).is_little_endian else ">"
    group, element = struct.unpack(f"{order}HH", here)
    return (group << 16 | element) in _PIXEL_TAGS


def _slim(header: Dataset) -> None:
    """Make a header small, since it stays in memory as long as its series does.

    Vendors keep 10-100 KB of private protocol in every slice: dropped. Most values are the same in every slice of a
    series: kept once. Raw elements never change, pydicom replaces one in its data set when it converts the value.
    """
    for tag in [tag for tag in header.keys() if tag.is_private]:  # noqa: SIM118 - iterating a Dataset converts values
        del header[tag]
    for element in list(header.values()):
        if isinstance(element, RawDataElement) and element.length <= _SHARED_BYTES:
            header[element.tag] = _shared(element._replace(value_tell=0))


@lru_cache(maxsize=4096)
def _shared(element: RawDataElement) -> RawDataElement:
    return element


def _one_line(error: BaseException) -> str:
    """The first line of a message, without the values that it quotes: they may be a patient's."""
    lines = str(error).splitlines()
    return _QUOTED.sub("'...'", lines[0]) if lines else type(error).__name__


def frames(header: Dataset) -> list[Attributes]:
    """One view for each frame: its own functional groups, the shared ones, then the header (PS3.3 C.7.6.16).

    Raises:
        UnreadableInstance: the functional groups are malformed, or not one for each frame.
    """
    try:
        shared = _macros(header.get("SharedFunctionalGroupsSequence") or [Dataset()])
        views = [Attributes(*_macros([own]), *shared, header) for own in header.PerFrameFunctionalGroupsSequence]
    except (*MALFORMED, OSError) as error:
        raise UnreadableInstance(str(header.SOPInstanceUID), f"functional groups: {_one_line(error)}") from error
    stated = look(header).number("NumberOfFrames")
    if stated != len(views):
        why = f"functional groups of {len(views)} frames: expected {stated or 0:g} (NumberOfFrames)"
        raise UnreadableInstance(str(header.SOPInstanceUID), why)
    return views


def first_frame(header: Dataset) -> Attributes:
    """A lenient view of an object's first frame: its functional groups, the shared ones, the header, the file meta."""
    seen = (header, header.file_meta) if hasattr(header, "file_meta") else (header,)
    try:
        per_frame, shared = (header.get(f"{which}FunctionalGroupsSequence") or [] for which in ("PerFrame", "Shared"))
        return Attributes(*(macro for groups in (per_frame, shared) if groups for macro in _macros(groups)), *seen)
    except MALFORMED:
        return Attributes(*seen)


def _macros(groups: Any) -> list[Dataset]:
    """The first item of each functional group macro."""
    items = []
    for element in groups[0]:
        if element.VR == "SQ" and element.value:
            item = element.value[0]
            items.append(item)
            # e.g. the gradient direction inside the diffusion macro
            items.extend(inner.value[0] for inner in item if inner.VR == "SQ" and inner.value)
    return items
