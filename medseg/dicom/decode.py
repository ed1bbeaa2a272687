"""Pixels of one image plane, as modality values.

Decoders are named one by one, so that a GPL decoder that happens to be installed (pylibjpeg-libjpeg) is never used.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medseg.dicom.codestream import Codestream, jpeg, jpeg_2000
from medseg.dicom.encoding import MOST_INFLATED, find_encoding, inflated
from medseg.dicom.gdcm_process import decode_jpeg
from medseg.dicom.headers import MALFORMED, look, read_data_set, transfer_syntax
from medseg.dicom.instance import Instance, Pixels
from medseg.dicom.pixel_element import Fragments, fragments, pixel_element
from medseg.dicom.stored import Bits, Scaling, bits_of
from medseg.errors import UndecodablePixels

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

_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1}
_OVERSHOOT = 16  # lossy values lie at most that part of their range beyond it


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
    implicit, little = _coded(instance.header, syntax)
    if instance.pixel_offset is None:
        stream = _inflated(stream, instance.header)
    else:
        stream.seek(instance.pixel_offset)
    element = pixel_element(stream, implicit=implicit, little=little)
    if element is None:
        raise ValueError("no pixel data where they were expected")
    options = as_pixel_options(instance.header, pixel_keyword=element.keyword, transfer_syntax_uid=syntax)
    options["correct_unused_bits"] = options["apply_j2k_sign_correction"] = options["apply_jls_sign_correction"] = False
    if syntax.is_encapsulated:
        if element.length is not None:
            raise ValueError(f"{element.length} bytes that are not encapsulated: expected fragments")
        return _encapsulated(stream, options, syntax, index, bits_of(look(instance.header)))
    if element.length is None:
        raise ValueError("the pixel data are encapsulated: their compression is not known")
    _check_length(stream, element.length)
    options["pixel_vr"] = "OB" if options.get("bits_allocated") == 8 else "OW"
    stored, _ = get_decoder(syntax).as_array(stream, index=index, raw=True, **options)
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return bits_of(look(instance.header)).values(stored) if element.keyword == "PixelData" else stored


def _coded(header: Dataset, syntax: UID) -> tuple[bool, bool]:
    """Whether a data set has no VRs, and whether it is in little endian: as its header was read."""
    implicit, little = header.original_encoding
    return (
        syntax.is_implicit_VR if implicit is None else implicit,
        syntax.is_little_endian if little is None else little,
    )


def _inflated(stream: BinaryIO, header: Dataset) -> BinaryIO:
    """A deflated data set, at its pixels."""
    view = look(header)
    sizes = [view.number(keyword) or 1 for keyword in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    coded = find_encoding(stream)
    stream.seek(coded.offset)
    whole = inflated(stream, MOST_INFLATED + 8 * math.prod(map(int, sizes)))
    read_data_set(whole, coded)
    return whole


def _check_length(stream: BinaryIO, length: int) -> None:
    """Whether the whole value is there."""
    begin = stream.tell()
    there = stream.seek(0, 2) - begin
    stream.seek(begin)
    if there < length:
        raise ValueError(f"cut short: {there} of {length} bytes of pixel data are there")


def _encapsulated(stream: BinaryIO, options: dict[str, Any], syntax: UID, index: int, bits: Bits) -> NDArray[Any]:
    if syntax not in PLUGINS:
        raise NotImplementedError("no decoder for this transfer syntax")
    if options["samples_per_pixel"] != 1:
        raise ValueError(f"{options['samples_per_pixel']} samples per pixel: expected one grey value")
    there = fragments(stream)
    frame = _frame(stream, there, index, options["number_of_frames"])
    options["number_of_frames"] = 1
    if syntax == RLELossless:
        if not there.closed:
            raise ValueError("cut short: encapsulated pixel data have no end")
        return bits.values(_by_plugin(frame, options, syntax))
    coded = (jpeg_2000 if syntax in JPEG2000TransferSyntaxes else jpeg)(frame)
    _check_frame(coded, options, bits, closed=there.closed and syntax not in _JPEG)
    if syntax in _JPEG:
        if coded.precision < bits.stored:
            raise ValueError(f"a JPEG image of {coded.precision} bits: expected {bits.stored}")
        if PLUGINS[syntax] == "gdcm" or coded.precision > 8:
            return _values(_jpeg_by_gdcm(frame, coded, syntax, bits), coded, bits)
        options["bits_allocated"] = 8
    return _values(_by_plugin(frame, options, syntax), coded, bits)


def _frame(stream: BinaryIO, there: Fragments, index: int, frames: int) -> bytes:
    """The code stream of a frame. Offsets are needed, and right, only where a frame of several has many fragments."""
    if frames != 1 and len(there.places) != frames:
        return get_frame(stream, index, number_of_frames=frames)
    parts = []
    for begin, length in there.places if frames == 1 else there.places[index : index + 1]:
        stream.seek(begin)
        parts.append(stream.read(length))
    return b"".join(parts)


def _by_plugin(frame: bytes, options: dict[str, Any], syntax: UID) -> NDArray[Any]:
    """Samples of all allocated bits."""
    source = encapsulate([frame], has_bot=False)
    stored, _ = get_decoder(syntax).as_array(source, index=0, raw=True, decoding_plugin=PLUGINS[syntax], **options)
    return stored


def _check_frame(coded: Codestream, options: dict[str, Any], bits: Bits, *, closed: bool) -> None:
    """Whether a frame is of the size and kind that the header says, and has its end.

    Decoders paint what is missing grey and say nothing.
    """
    size, expected = [coded.rows, coded.columns, coded.samples], [options["rows"], options["columns"], 1]
    if size != expected or coded.precision > bits.allocated:
        raise ValueError(
            f"an image of {size} (rows, columns, samples) and {coded.precision} bits: expected {expected} and "
            f"{bits.stored} bits of {bits.allocated}"
        )
    if not coded.whole and not closed:
        raise ValueError("damaged: the image ends early")


def _values(samples: NDArray[Any], coded: Codestream, bits: Bits) -> NDArray[Any]:
    """Stored values of a decoded frame.

    precision     above the value's bits    samples as they would lie uncompressed: other bits are no part of them
                  the value's bits          the value
                  below                     a value that needs no more
    """
    top = bits.low + bits.stored
    if coded.precision >= top:
        return _clipped(samples, coded, bits) if coded.lossy and coded.precision > top else bits.values(samples)
    if coded.precision == bits.stored:
        return replace(bits, low=0).values(samples)
    if coded.precision > bits.stored or bits.low:
        raise ValueError(f"samples of {coded.precision} bits: expected {bits.stored} (BitsStored) or {top} (HighBit)")
    highest = samples >> (coded.precision - 1) & 1
    if coded.signed != bits.signed and highest.any():
        kind, expected = ("signed" if signed else "unsigned" for signed in (coded.signed, bits.signed))
        raise ValueError(f"samples of {coded.precision} {kind} bits: expected {bits.stored} {expected} ones")
    return replace(bits, stored=coded.precision).values(samples)


def _clipped(samples: NDArray[Any], coded: Codestream, bits: Bits) -> NDArray[Any]:
    """Values out of a lossy code stream of more bits: where none of them is far off, they are brought within limits.

    Compression may carry a value a little beyond, and what wraps round is another tissue.
    """
    numbers = replace(bits, stored=coded.precision, low=0).values(samples)
    least, most = bits.limits
    beyond = (most - least) // _OVERSHOOT
    if bits.low == 0 and least - beyond <= numbers.min() and numbers.max() <= most + beyond:
        return numbers.clip(least, most)
    return bits.values(samples)


def _jpeg_by_gdcm(frame: bytes, coded: Codestream, syntax: UID, bits: Bits) -> NDArray[Any]:
    pixels = decode_jpeg(
        frame,
        str(syntax),
        rows=coded.rows,
        columns=coded.columns,
        bits_allocated=bits.allocated,
        bits_stored=coded.precision,
        signed=bits.signed,
    )
    stored = np.frombuffer(pixels, f"<{'i' if bits.signed else 'u'}{bits.allocated // 8}")
    return stored.reshape(coded.rows, coded.columns)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
