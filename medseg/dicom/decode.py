"""Pixels of one image plane, as modality values.

Decoders are named one by one, so that a GPL decoder that happens to be installed (pylibjpeg-libjpeg) is never used.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medseg.dicom.gdcm_process import decode_jpeg
from medseg.dicom.headers import MALFORMED, Attributes, transfer_syntax
from medseg.dicom.instance import Instance, Pixels, Slice
from medseg.errors import UndecodablePixels
from medseg.progress import Cancelled, check, never

#: What decodes each compressed transfer syntax: pydicom's plugin of that name, or GDCM in a process of its own.
PLUGINS: dict[UID, str] = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",  # 8 bits; 12 bits by GDCM
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",  # calls OpenJPEG for these
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    RLELossless: "pydicom",
}

_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1}
_START_OF_FRAME = {*range(0xFFC0, 0xFFD0)} - {0xFFC4, 0xFFC8, 0xFFCC}
_START_OF_SCAN = 0xFFDA
_END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class Scaling:
    """From stored values to modality values (PS3.3 C.11.1): value = stored * slope + intercept.

    padding: (least, most) stored value that is no image (PS3.3 C.7.5.1.1.2), or None.
    floor: the modality value that stands for padding.
    """

    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[int, int] | None = None
    floor: float = 0.0

    def apply(self, stored: NDArray[Any]) -> Pixels:
        """Modality values, float32; padding becomes the floor."""
        values = stored.astype(np.float32)
        if self.slope != 1.0:
            values *= np.float32(self.slope)
        if self.intercept != 0.0:
            values += np.float32(self.intercept)
        if self.padding is not None:
            least, most = self.padding
            values[(stored >= least) & (stored <= most)] = self.floor
        return values


def scaling(attributes: Attributes, modality: str) -> Scaling:
    """How a plane's stored values are scaled; slope 1, intercept 0 where nothing is said."""
    slope, intercept = attributes.number("RescaleSlope"), attributes.number("RescaleIntercept")
    return Scaling(
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        padding=_padding(attributes),
        floor=-1024.0 if modality == "CT" else 0.0,
    )


def _padding(attributes: Attributes) -> tuple[int, int] | None:
    value = attributes.number("PixelPaddingValue")
    if value is None:
        return None
    limit = attributes.number("PixelPaddingRangeLimit")
    ends = [_as_stored(end, attributes) for end in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_stored(value: float, attributes: Attributes) -> int:
    """Some writers give a negative padding value as unsigned: 63536 for -2000."""
    bits = int(attributes.number("BitsAllocated") or 16)
    signed = attributes.number("PixelRepresentation") == 1
    stored = int(value) % (1 << bits)
    return stored - (1 << bits) if signed and stored >> (bits - 1) else stored


def read_plane(instance: Instance, frame: int | None, scale: Scaling) -> Pixels:
    """Decode one plane to modality values, (rows, columns) float32.

    Args:
        instance: the object.
        frame: 1-based frame number, or None for a single-frame object.
        scale: from `scaling`.

    Raises:
        UndecodablePixels: no decoder, damaged or missing pixels, or an object that cannot be opened any more.
    """
    return scale.apply(stored_plane(instance, frame))


def stored_plane(instance: Instance, frame: int | None = None) -> NDArray[Any]:
    """Stored values of one plane, (rows, columns), signed or unsigned as the header says.

    Raises:
        UndecodablePixels: as for `read_plane`.
    """
    syntax = transfer_syntax(instance.header)
    index = 0 if frame is None else frame - 1
    try:
        with instance.open() as stream:
            return _decode(stream, instance, syntax, index)
    except (*MALFORMED, RuntimeError) as error:
        raise UndecodablePixels(instance.sop_instance_uid, syntax.name, _last_line(error)) from error
    except OSError as error:
        why = f"{instance.name}: {error.strerror or error}"
        raise UndecodablePixels(instance.sop_instance_uid, syntax.name, why) from error


def _decode(stream: BinaryIO, instance: Instance, syntax: UID, index: int) -> NDArray[Any]:
    if instance.pixel_offset is None:
        return _decode_dataset(dcmread(stream, force=True), syntax, index)
    stream.seek(instance.pixel_offset)
    length = _pixel_length(stream, syntax)
    options = as_pixel_options(instance.header, pixel_keyword="PixelData", transfer_syntax_uid=syntax)
    options["pixel_vr"] = "OB" if options.get("bits_allocated") == 8 else "OW"
    options["unused_low_bits"] = _unused_low_bits(instance.header)
    if not syntax.is_encapsulated:
        _check_length(stream, length)
        return _native(stream, options, syntax, index)
    _check_fragments(stream)
    return _encapsulated(stream, options, syntax, index)


def _decode_dataset(dataset: Dataset, syntax: UID, index: int) -> NDArray[Any]:
    """Pixels of a data set that was read as a whole (deflated)."""
    options = as_pixel_options(dataset, pixel_keyword="PixelData", transfer_syntax_uid=syntax, pixel_vr="OW")
    options["unused_low_bits"] = _unused_low_bits(dataset)
    return _native(dataset.PixelData, options, syntax, index)


def _unused_low_bits(header: Dataset) -> int:
    """Bits below the value, where HighBit is not BitsStored - 1 (retired, but found)."""
    attributes = Attributes(header)
    high, stored = attributes.number("HighBit"), attributes.number("BitsStored")
    return 0 if high is None or stored is None else max(int(high - stored) + 1, 0)


def _pixel_length(stream: BinaryIO, syntax: UID) -> int:
    """Length of the pixel data element; the stream is left at its value."""
    order = "<" if syntax.is_little_endian else ">"
    group, element = struct.unpack(f"{order}HH", stream.read(4))
    if not syntax.is_implicit_VR:
        stream.read(4)
    if group << 16 | element != _PIXEL_DATA:
        raise ValueError(f"({group:04X},{element:04X}) where PixelData was expected")
    (length,) = struct.unpack(f"{order}L", stream.read(4))
    return int(length)


def _check_length(stream: BinaryIO, length: int) -> None:
    """Whether the whole value is there."""
    begin = stream.tell()
    there = stream.seek(0, 2) - begin
    stream.seek(begin)
    if there < length:
        raise ValueError(f"cut short: {there} of {length} bytes of pixel data are there")


def _check_fragments(stream: BinaryIO) -> None:
    """Whether the fragments are all there: a JPEG decoder paints what is missing grey and says nothing."""
    begin = stream.tell()
    end = stream.seek(0, 2)
    at = begin
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError(f"cut short: encapsulated pixel data have no end after {end - begin} bytes")
        group, element, length = struct.unpack("<HHL", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise ValueError(f"damaged: ({group:04X},{element:04X}) where a fragment of pixel data should begin")
        at += 8 + length
        if at > end:
            raise ValueError(f"cut short: a fragment of pixel data lacks {at - end} of {length} bytes")
    stream.seek(begin)


def _native(source: BinaryIO | bytes, options: dict[str, Any], syntax: UID, index: int) -> NDArray[Any]:
    unused_low_bits = options.pop("unused_low_bits")
    options["correct_unused_bits"] = False  # pydicom's correction leaves HighBit out
    stored, _ = get_decoder(syntax).as_array(source, index=index, raw=True, **options)
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return _value_bits(stored, options["bits_stored"], unused_low_bits)


def _value_bits(stored: NDArray[Any], bits: int, unused_low_bits: int = 0) -> NDArray[Any]:
    """Only the bits that are the value's, the sign from the highest of them (PS3.5 8.1.1)."""
    allocated = 8 * stored.dtype.itemsize
    if bits == allocated:
        return stored
    return (stored << (allocated - bits - unused_low_bits)) >> (allocated - bits)


def _encapsulated(stream: BinaryIO, options: dict[str, Any], syntax: UID, index: int) -> NDArray[Any]:
    if syntax not in PLUGINS:
        raise NotImplementedError("no decoder for this transfer syntax")
    del options["unused_low_bits"]
    if options["samples_per_pixel"] != 1:
        raise ValueError(f"{options['samples_per_pixel']} samples per pixel: expected one grey value")
    if syntax in _JPEG:
        begin = stream.tell()
        frame = get_frame(stream, index, number_of_frames=options["number_of_frames"])
        _check_jpeg(frame, options)
        if PLUGINS[syntax] == "gdcm" or options["bits_stored"] > 8:
            return _jpeg_by_gdcm(frame, options, syntax)
        stream.seek(begin)
    stored, _ = get_decoder(syntax).as_array(stream, index=index, raw=True, decoding_plugin=PLUGINS[syntax], **options)
    return stored


def _check_jpeg(frame: bytes, options: dict[str, Any]) -> None:
    """Whether a JPEG frame is of the kind and size the header says, and has its end (ITU-T T.81 B.1, B.2).

    Decoders paint what is missing grey and say nothing.
    """
    if frame[:2] != b"\xff\xd8":
        raise ValueError("damaged: no JPEG image")
    marker, at = 0, 2
    while marker != _START_OF_SCAN:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker in _START_OF_FRAME:
            _check_frame_header(frame[at + 4 : at + 10], options)
        elif marker < 0xFFC0:
            raise ValueError(f"damaged: {marker:04X} where a JPEG marker should be")
        at += 2 + length
    end = frame.find(_END_OF_IMAGE, at)
    if end < 0 or frame[end + 2 :].strip(b"\x00\xff"):
        raise ValueError("damaged: the JPEG image ends early")


def _check_frame_header(header: bytes, options: dict[str, Any]) -> None:
    precision, *size = struct.unpack(">BHHB", header)
    expected = [options["rows"], options["columns"], 1]
    if size != expected or not options["bits_stored"] <= precision <= options["bits_allocated"]:
        raise ValueError(
            f"JPEG image of {size} (rows, columns, samples) and {precision} bits: expected {expected} and "
            f"{options['bits_stored']} bits"
        )


def _jpeg_by_gdcm(frame: bytes, options: dict[str, Any], syntax: UID) -> NDArray[Any]:
    rows, columns, bits = options["rows"], options["columns"], options["bits_stored"]
    signed = bool(options["pixel_representation"])
    pixels = decode_jpeg(
        frame,
        str(syntax),
        rows=rows,
        columns=columns,
        bits_allocated=options["bits_allocated"],
        bits_stored=bits,
        signed=signed,
    )
    stored = np.frombuffer(pixels, f"<{'i' if signed else 'u'}{options['bits_allocated'] // 8}")
    return _value_bits(stored.reshape(rows, columns), bits)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def read_planes(
    slices: Sequence[Slice], *, workers: int = 2, cancelled: Cancelled = never
) -> Iterator[tuple[int, Pixels]]:
    """Planes in order, decoded in parallel, each once; at most 2 x `workers` wait to be taken.

    Yields:
        (k, plane) with plane (rows, columns) float32.

    Raises:
        UndecodablePixels: of the first plane that cannot be decoded.
        Interrupted: `cancelled` said so.
    """
    waiting: deque[Future[Pixels]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        ahead = iter(slices)
        for plane in ahead:
            waiting.append(pool.submit(plane.read))
            if len(waiting) == 2 * workers:
                break
        for k in range(len(slices)):
            check(cancelled)
            pixels = waiting.popleft().result()
            with suppress(StopIteration):
                waiting.append(pool.submit(next(ahead).read))
            yield k, pixels
    finally:
        pool.shutdown(cancel_futures=True)
