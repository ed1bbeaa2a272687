"""Headers: read without their pixels, and looked at leniently.

Values in real headers may be absent, empty or malformed, and pydicom converts them only when asked. `Attributes`
answers None in all three cases, so that a bad value of no importance does no harm.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from decimal import InvalidOperation
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, BinaryIO
from zipfile import BadZipFile

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medseg.dicom.encoding import MOST_INFLATED, Encoding, by_bytes, find_encoding, inflated, wrong_syntax
from medseg.dicom.instance import Instance, Remark
from medseg.dicom.pixel_element import PIXEL_KEYWORDS, PixelElement, fragments, pixel_element
from medseg.dicom.private import kept
from medseg.errors import UnreadableInstance
from medseg.names import named_uid

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

EMPTY, NOT_DICOM = "empty file", "not a DICOM file"

_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_UID = re.compile(r"[!-\[\]-~]*")  # what a result can refer to, the forms of PS3.5 9.1 or not
_NUMBERS = frozenset(("DS", "IS"))
_TEXT = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
# What values of these say depends on nothing else in their data set: no character set, no other VR.
_ALONE = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "SL", "SS", "TM", "UI", "UL", "US"))
_PIXEL_GROUP = 0x7FE00000
_SHARED_BYTES = 256
_STUDY_TRAITS = ("PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
_SERIES_TRAITS = ("Modality", "SeriesDate", "SeriesTime", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID")
_tag = cache(Tag)


class Attributes:
    """Attributes looked up through several data sets, the first that has one wins."""

    def __init__(self, *datasets: Dataset) -> None:
        self._datasets = datasets

    def value(self, keyword: str) -> Any:
        """The value, or None where it is absent, empty or malformed; a malformed number as its text."""
        tag = _tag(keyword)
        for dataset in self._datasets:
            if tag in dataset:
                try:
                    value = _value(dataset, tag)
                except (*MALFORMED, OSError):
                    return _as_text(dataset.get_item(tag, keep_deferred=True))
                return None if value in ("", b"") or (isinstance(value, MultiValue) and not value) else value
        return None

    def present(self, tags: Mapping[int, Any]) -> list[int]:
        """Those of the tags that are in any of the data sets, in their order."""
        here = set().union(*(tags.keys() & dataset.keys() for dataset in self._datasets))
        return [tag for tag in tags if tag in here]

    def text(self, keyword: str) -> str:
        """The value as text, its parts joined by backslashes; empty where there is none."""
        return "\\".join(self.texts(keyword))

    def texts(self, keyword: str) -> tuple[str, ...]:
        """The parts of a value as texts without padding.

        A VR of one text (UT, ST, LT) does not part at the backslash (PS3.5 6.2); who asks for parts does.
        """
        value = self.value(keyword)
        if value is None:
            return ()
        parts = value if isinstance(value, MultiValue | list) else [value]
        return tuple(text.strip() for part in parts for text in str(part).split("\\"))

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """The parts of a value as numbers; empty where one of them is none."""
        try:
            return tuple(_number(part) for part in self.texts(keyword))
        except ValueError:
            return ()

    def number(self, keyword: str) -> float | None:
        """The first part of a value as a number."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None


def _value(dataset: Dataset, tag: BaseTag) -> Any:
    """Converted once for all slices that say the same: an element that a data set has converted stays in it, and takes
    more memory than the rest of the header."""
    element: Any = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.VR in _ALONE and element.length <= _SHARED_BYTES:
        return _converted(element._replace(value_tell=0))
    return dataset[tag].value


@lru_cache(maxsize=4096)
def _converted(element: RawDataElement) -> Any:
    return convert_raw_data_element(element).value


def _number(text: str) -> float:
    if "_" in text or not text.isascii():  # which Python allows
        raise ValueError
    return float(text)


def _as_text(element: Any) -> str | None:
    """What is written where a number should be, of an element that is as it was read."""
    if isinstance(element, RawDataElement) and element.VR in ("DS", "IS") and element.value:
        return element.value.decode("ascii", "replace").strip("\0 ") or None
    return None


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
        raise UnreadableInstance(name, EMPTY if not start else NOT_DICOM)
    stream.seek(0)
    coded = find_encoding(stream)
    header = read_header(stream, coded)
    if is_directory(header):
        return Instance(header, open_stream, name)
    # A deflated data set has no place of its own in the stream.
    offset = None if coded.syntax == DeflatedExplicitVRLittleEndian else stream.tell()
    pixels = None if offset is None else pixel_element(stream, implicit=coded.implicit, little=coded.little)
    remarks = [*coded.remarks, *_without_file_meta(header)]
    if pixels is not None and not all(keyword in header for keyword in (*_REQUIRED, "Rows")):
        remarks += _completed(header, stream, coded, pixels)
    remarks += _with_numbers(header)
    _complete_uids(header)
    absent = [keyword for keyword in _REQUIRED if not look(header).text(keyword)]
    if absent:
        raise UnreadableInstance(name, f"no {', '.join(absent)} in its header")
    wrong = [one for one in (*_REQUIRED, "FrameOfReferenceUID") if not _UID.fullmatch(look(header).text(one))]
    if wrong:
        raise UnreadableInstance(name, f"{', '.join(wrong)} of characters that no UID can have")
    _slim(header)
    if offset is not None and pixels is None and "Rows" in header:
        raise UnreadableInstance(name, "cut short: the file ends before the pixel data")
    if pixels is not None and _is_decompressed(header, coded.syntax, pixels):
        remarks.append(wrong_syntax(coded.syntax, "not compressed"))
        header.file_meta.TransferSyntaxUID = by_bytes(coded.implicit, coded.little)
    return Instance(header, open_stream, name, offset, tuple(remarks))


def read_header(stream: BinaryIO, coded: Encoding) -> FileDataset:
    """The elements before the pixels, with the file meta information; the stream is left at the pixels, unless it is
    deflated: then somewhere."""
    stream.seek(coded.meta)
    meta = stream.read(max(coded.offset - coded.meta, 0))
    file_meta = FileMetaDataset(read_dataset(BytesIO(meta), False, True, stop_when=_not_meta))
    file_meta.TransferSyntaxUID = coded.syntax
    source = stream
    if coded.syntax == DeflatedExplicitVRLittleEndian:
        source = inflated(stream, MOST_INFLATED)
    data_set = read_data_set(source, coded)
    header = FileDataset("", data_set, None, file_meta, coded.implicit, coded.little)
    header.set_original_encoding(coded.implicit, coded.little, data_set._character_set)
    return header


def read_data_set(stream: BinaryIO, coded: Encoding) -> Dataset:
    """The elements from where the stream is to the pixels, where it is left."""
    return read_dataset(stream, coded.implicit, coded.little, stop_when=_at_pixels)


def _not_meta(tag: int, _vr: str | None, _length: int) -> bool:
    return tag >> 16 != 0x0002


def _at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
    return tag in PIXEL_KEYWORDS


def _without_file_meta(header: Dataset) -> list[Remark]:
    """Take elements of group 0002 out of a data set: nothing there says how it is encoded (PS3.5 7.1)."""
    strays = [tag for tag in header.keys() if tag.group == 0x0002]  # noqa: SIM118 - iterating converts values
    for tag in strays:
        del header[tag]
    detail = "elements of the file meta information (group 0002) stand in the data set: left out"
    return [Remark("file_meta_in_data_set", detail)] if strays else []


def _with_numbers(header: Dataset) -> list[Remark]:
    """Give attributes that are numbers by PS3.6 and are written with a VR of text the VR that they have."""
    texts = [element for element in header.values() if isinstance(element, RawDataElement) and element.VR in _TEXT]
    wrong = [element for element in texts if dictionary_has_tag(element.tag) and dictionary_VR(element.tag) in _NUMBERS]
    for element in wrong:
        header[element.tag] = element._replace(VR=dictionary_VR(element.tag))
    names = ", ".join(sorted(keyword_for_tag(element.tag) for element in wrong))
    return [Remark("numbers_as_text", f"{names} written as text (VR): read as numbers")] if wrong else []


def _completed(header: Dataset, stream: BinaryIO, coded: Encoding, pixels: PixelElement) -> list[Remark]:
    """Add what follows the pixels, where their place is not the last: elements out of order (PS3.5 7.1)."""
    stream.seek(fragments(stream).end if pixels.length is None else pixels.value + pixels.length)
    rest = read_dataset(stream, coded.implicit, coded.little)
    missed = [element for element in rest.values() if element.tag not in header and element.tag < _PIXEL_GROUP]
    for element in missed:
        header[element.tag] = element
    return [Remark("elements_out_of_order", "elements of the header follow the pixels")] if missed else []


def _is_decompressed(header: Dataset, syntax: UID, pixels: PixelElement) -> bool:
    """Whether pixels are there as they are, though a transfer syntax is stated that compresses them."""
    if pixels.length is None or not (syntax.is_transfer_syntax and syntax.is_encapsulated):
        return False
    view = look(header)
    bits = [view.number(keyword) or 0 for keyword in ("Rows", "Columns", "BitsAllocated")]
    count = (view.number("SamplesPerPixel") or 1) * (view.number("NumberOfFrames") or 1)
    needed = math.ceil(math.prod(bits) * count / 8)
    return 0 < needed <= pixels.length <= needed + 1


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
    texts = "|".join(view.text(keyword) for keyword in keywords)
    return named_uid(f"medseg {what} {texts}")


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


def _slim(header: Dataset) -> None:
    """Make a header small, since it stays in memory as long as its series does.

    Vendors keep 10-100 KB of private protocol in every slice: dropped, but for what tells volumes apart (`private`).
    Most values are the same in every slice of a series: kept once. Raw elements never change, pydicom replaces one in
    its data set when it converts the value.
    """
    known = kept(header)
    for tag in [tag for tag in header.keys() if tag.is_private and tag not in known]:  # noqa: SIM118 - as in `kept`
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
