"""Frames compressed by OpenJPEG, CharLS, pydicom and by hand, for the tests of decoding."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

import jpeg_ls
import numpy as np
import openjpeg.utils
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels import get_encoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless)


def frame_of(words: NDArray[Any], syntax: UID, precision: int, *, signed: bool = False) -> bytes:
    """Words (rows, columns), of which so many low bits are compressed without loss. signed: in JPEG 2000 alone."""
    rows, columns = words.shape
    source = words.astype(f"<{'i' if signed else 'u'}{1 if precision <= 8 else 2}").tobytes()
    if syntax == JPEG2000Lossless:
        return bytes(openjpeg.utils.encode_buffer(source, columns, rows, 1, precision, signed))
    if syntax == JPEGLSLossless:
        return bytes(jpeg_ls.encode_buffer(source, rows, columns, 1, precision))
    if syntax == JPEGLosslessSV1:
        return lossless_jpeg(words, precision)
    return get_encoder(RLELossless).encode(
        words.tobytes(),
        index=0,
        rows=rows,
        columns=columns,
        samples_per_pixel=1,
        bits_allocated=8 * words.itemsize,
        bits_stored=8 * words.itemsize,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
    )


def lossless_jpeg(words: NDArray[Any], precision: int, fill: bytes = b"") -> bytes:
    """Process 14, first-order prediction (ITU-T T.81 annex H), each difference class with a code of five bits.

    fill: before each marker.
    """
    rows, columns = words.shape
    samples = words.astype(np.int64) & (2**precision - 1)
    predicted = np.empty_like(samples)
    predicted[:, 1:] = samples[:, :-1]
    predicted[1:, 0] = samples[:-1, 0]
    predicted[0, 0] = 2 ** (precision - 1)
    bits = []
    for difference in ((samples - predicted + 2**15) % 2**16 - 2**15).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:05b}")
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}")
    coded = "".join(bits)
    coded += "1" * (-len(coded) % 8)
    scan = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    size_of = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    segments = [
        (0xC3, bytes([precision]) + size_of + bytes([1, 1, 0x11, 0])),
        (0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    ]
    made = b"\xff\xd8"
    for marker, content in segments:
        made += fill + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content
    return made + scan + fill + b"\xff\xd9"


def with_frame(dataset: Dataset, syntax: UID, *fragments: bytes) -> Dataset:
    """Let a data set have compressed pixels."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(list(fragments), has_bot=False)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    return dataset


def file_of(dataset: Dataset, syntax: UID, *, stated: UID | None = None) -> bytes:
    """A file with a data set in one of PLAIN; stated: the transfer syntax in its file meta information."""
    plain = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    implicit, little = plain.is_implicit_VR, plain.is_little_endian
    file_meta = dataset.file_meta
    body = BytesIO()
    del dataset.file_meta
    try:
        dcmwrite(body, dataset, implicit_vr=implicit, little_endian=little)
    finally:
        dataset.file_meta = file_meta
    encoded = body.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        encoded = packer.compress(encoded) + packer.flush()
        encoded += b"\0" * (len(encoded) % 2)
    return file_meta_of(dataset, stated or syntax) + encoded


def file_meta_of(dataset: Dataset, stated: UID, *, preamble: bool = True, length: bool = True) -> bytes:
    """File meta information (PS3.10 7.1)."""
    parts = [
        (0x0001, b"OB", b"\0\1"),
        (0x0002, b"UI", str(dataset.SOPClassUID).encode()),
        (0x0003, b"UI", str(dataset.SOPInstanceUID).encode()),
        (0x0010, b"UI", str(stated).encode()),
    ]
    body = b"".join(element(0x0002, number, vr, value) for number, vr, value in parts)
    begin = element(0x0002, 0x0000, b"UL", len(body).to_bytes(4, "little")) if length else b""
    return (bytes(128) + b"DICM" if preamble else b"") + begin + body


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """An element in explicit VR little endian."""
    value += b"\0" * (len(value) % 2)
    head = group.to_bytes(2, "little") + number.to_bytes(2, "little") + vr
    if vr in (b"OB", b"OW", b"UT", b"UN", b"SQ"):
        return head + b"\0\0" + len(value).to_bytes(4, "little") + value
    return head + len(value).to_bytes(2, "little") + value
