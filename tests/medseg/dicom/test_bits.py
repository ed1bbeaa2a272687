"""Only the bits of the value count (PS3.5 8.1.1), however samples are encoded; others may hold anything."""

from __future__ import annotations

import re
from typing import Any

import jpeg_ls
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless

from medseg.dicom.decode import stored_plane
from medseg.dicom.geometry import Reason, classify
from medseg.dicom.phantom import make_series
from medseg.dicom.slices import expand
from medseg.errors import UndecodablePixels
from tests.medseg.dicom.encoders import COMPRESSED, PLAIN, file_of, frame_of, with_frame
from tests.medseg.dicom.made import each, instance_of, series_of

ROWS, COLUMNS = 36, 33


def image(allocated: int, stored: int, high: int, *, signed: bool) -> Dataset:
    dataset = make_series(shape=(1, ROWS, COLUMNS))[0]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
    dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), "0"
    return dataset


def words_of(truth: NDArray[Any], allocated: int, stored: int, low: int, rubbish: NDArray[Any]) -> NDArray[Any]:
    """Values in their bits, anything in the others."""
    mask = (2**stored - 1) << low
    words = ((truth.astype(np.int64) << low) & mask) | (rubbish & ~mask & (2**allocated - 1))
    return words.astype(f"<u{allocated // 8}")


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, bool, NDArray[Any], NDArray[Any]]:
    allocated = draw(st.sampled_from([8, 16, 16, 32]))
    stored = draw(st.integers(max(1, allocated // 2), allocated))
    low = draw(st.integers(0, allocated - stored))
    signed = draw(st.booleans())
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    least, most = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    truth = chance.integers(least, most, (ROWS, COLUMNS), endpoint=False)
    return allocated, stored, low, signed, truth, chance.integers(0, 2**allocated, (ROWS, COLUMNS))


@pytest.mark.parametrize("syntax", PLAIN, ids=lambda syntax: syntax.name)
@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_uncompressed(syntax: UID, layout: tuple[int, int, int, bool, NDArray[Any], NDArray[Any]]) -> None:
    allocated, stored, low, signed, truth, rubbish = layout
    dataset = image(allocated, stored, stored - 1 + low, signed=signed)
    words = words_of(truth, allocated, stored, low, rubbish)
    swap = allocated > 8 and not syntax.is_little_endian
    dataset.PixelData = (words.byteswap() if swap else words).tobytes()
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    assert (stored_plane(instance_of(file_of(dataset, syntax))) == truth).all()


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_compressed(syntax: UID, layout: tuple[int, int, int, bool, NDArray[Any], NDArray[Any]]) -> None:
    """All bits are in the code stream, and the value's alone are it."""
    allocated, stored, low, signed, truth, rubbish = layout
    if allocated == 32:  # no encoder takes so many
        return
    dataset = image(allocated, stored, stored - 1 + low, signed=signed)
    words = words_of(truth, allocated, stored, low, rubbish)
    with_frame(dataset, syntax, frame_of(words, syntax, allocated))
    assert (stored_plane(instance_of(dataset)) == truth).all()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1], ids=lambda syntax: syntax.name)
@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_a_code_stream_of_the_values_bits_alone(
    syntax: UID, layout: tuple[int, int, int, bool, NDArray[Any], NDArray[Any]]
) -> None:
    """As encoders do; HighBit then says nothing of where the value lies."""
    allocated, stored, low, signed, truth, _ = layout
    if allocated == 32 or stored < (8 if syntax == JPEGLosslessSV1 else 2):  # GDCM knows no fewer
        return
    words = words_of(truth, allocated, stored, 0, np.zeros_like(truth))
    dataset = image(allocated, stored, stored - 1 + low, signed=signed)
    with_frame(dataset, syntax, frame_of(words, syntax, stored))
    assert (stored_plane(instance_of(dataset)) == truth).all()


@settings(max_examples=60, deadline=None)
@given(
    stored=st.integers(9, 16), in_stream=st.booleans(), in_header=st.booleans(), more=st.booleans(), seed=st.integers(0)
)
def test_the_sign_is_the_headers(stored: int, in_stream: bool, in_header: bool, more: bool, seed: int) -> None:
    """A JPEG 2000 code stream has a sign of its own, which may be another than PixelRepresentation's."""
    least, most = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if in_header else (0, 2**stored)
    truth = np.random.default_rng(seed).integers(least, most, (ROWS, COLUMNS))
    precision = 16 if more else stored
    cells = truth & (2**precision - 1)  # two's complement
    words = np.where(cells >= 2 ** (precision - 1), cells - 2**precision, cells) if in_stream else cells
    frame = frame_of(words.astype("<i2" if in_stream else "<u2"), JPEG2000Lossless, precision, signed=in_stream)
    dataset = with_frame(image(16, stored, stored - 1, signed=in_header), JPEG2000Lossless, frame)
    assert (stored_plane(instance_of(dataset)) == truth).all()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=lambda syntax: syntax.name)
def test_a_code_stream_of_fewer_bits(syntax: UID) -> None:
    """Its values need no more; but where the highest of them may be a sign or not, nobody knows."""
    truth = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 500
    dataset = with_frame(image(16, 12, 11, signed=True), syntax, frame_of(truth.astype("<u2"), syntax, 10))
    assert (stored_plane(instance_of(dataset)) == truth).all()
    truth[0, 0] = 600  # bit 9
    with_frame(dataset, syntax, frame_of(truth.astype("<u2"), syntax, 10))
    with pytest.raises(UndecodablePixels, match="10 unsigned bits: expected 12 signed ones"):
        stored_plane(instance_of(dataset))


def test_a_code_stream_that_ends_within_the_value() -> None:
    truth = np.ones((ROWS, COLUMNS), "<u2")
    dataset = image(16, 12, 15, signed=False)
    with_frame(dataset, JPEG2000Lossless, frame_of(truth, JPEG2000Lossless, 14))
    with pytest.raises(UndecodablePixels, match=r"14 bits: expected 12 \(BitsStored\) or 16 \(HighBit\)"):
        stored_plane(instance_of(dataset))


@pytest.mark.parametrize("signed", [False, True])
def test_a_lossy_value_a_little_beyond_its_range_does_not_wrap(signed: bool) -> None:
    """Near-lossless, in 16 bits: what was 4095 may come back as 4098, and is no air."""
    least, most = (-2048, 2047) if signed else (0, 4095)
    truth = np.random.default_rng(3).choice([*range(least, least + 4), *range(most - 3, most + 1)], (ROWS, COLUMNS))
    frame = bytes(jpeg_ls.encode_buffer((truth & 0xFFFF).astype("<u2").tobytes(), ROWS, COLUMNS, 1, 16, lossy_error=3))
    decoded = np.frombuffer(jpeg_ls.decode_pixel_data(frame)[0], "<i2" if signed else "<u2").reshape(ROWS, COLUMNS)
    assert decoded.max() > most or decoded.min() < least  # there is something to show
    found = stored_plane(instance_of(with_frame(image(16, 12, 11, signed=signed), JPEGLSNearLossless, frame)))
    assert (found == decoded.clip(least, most)).all()
    assert np.abs(found.astype(int) - truth).max() <= 3


def test_bits_above_a_lossy_value_are_no_part_of_it() -> None:
    truth = np.random.default_rng(4).integers(100, 4000, (ROWS, COLUMNS))
    words = (truth | np.where(truth % 2, 0x8000, 0)).astype("<u2")
    frame = bytes(jpeg_ls.encode_buffer(words.tobytes(), ROWS, COLUMNS, 1, 16, lossy_error=2))
    found = stored_plane(instance_of(with_frame(image(16, 12, 11, signed=False), JPEGLSNearLossless, frame)))
    assert np.abs(found.astype(int) - truth).max() <= 2


NONSENSE = [
    ({"BitsStored": 17}, "BitsStored 17 of BitsAllocated 16"),
    ({"BitsStored": 0}, "BitsStored 0"),
    ({"HighBit": 16}, "HighBit 16"),
    ({"HighBit": 7}, "HighBit 7 with BitsStored 16 of 16: expected 15, 15 at most"),
    ({"PixelRepresentation": 2}, "PixelRepresentation 2"),
    ({"RescaleSlope": "0"}, "RescaleSlope 0"),
    ({"RescaleSlope": "1e-60"}, "RescaleSlope 1e-60"),
    ({"RescaleIntercept": "1e60"}, "RescaleIntercept 1e\\+60"),
    ({"Rows": 0}, "Rows"),
]


@pytest.mark.parametrize(("values", "said"), NONSENSE)
def test_numbers_that_make_no_sense(values: dict[str, object], said: str) -> None:
    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    verdict = classify(series_of(each(make_series(shape=(4, 4, 4)), change)))
    assert not verdict.stacks
    assert [one.reason for one in verdict.refusals] == [Reason.MALFORMED_HEADER]
    assert re.search(said, verdict.refusals[0].detail)


def test_values_that_scaling_carries_off_are_none() -> None:
    """Float32 ends at 3.4e38."""
    dataset = image(16, 16, 15, signed=False)
    dataset.RescaleSlope = "1e35"
    dataset.PixelData = np.arange(ROWS * COLUMNS).astype("<u2").tobytes()[:-2] + b"\xff\xff"
    (plane,) = expand(instance_of(dataset))
    assert np.isfinite(plane.read()).sum() == ROWS * COLUMNS - 1


def test_pixels_in_floats() -> None:
    """Float Pixel Data (PS3.3 C.7.6.24) have no stored bits; what is not a number stays so."""
    truth = np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype("<f4")
    truth[0, 0] = np.nan
    dataset = image(32, 32, 31, signed=False)
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
        delattr(dataset, keyword)
    dataset.FloatPixelData = truth.tobytes()
    found = stored_plane(instance_of(dataset))
    assert np.array_equal(found, truth, equal_nan=True)
