"""Pixels against other decoders (DCMTK, GDCM) and against uncompressed siblings; damage; padding; order."""

from __future__ import annotations

import io
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import set_pixel_data
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from medseg.dicom.decode import PLUGINS, stored_plane
from medseg.dicom.geometry import classify
from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance, Pixels, Slice
from medseg.dicom.phantom import make_series
from medseg.dicom.slices import expand
from medseg.errors import UndecodablePixels, UnreadableInstance
from tests.medseg.dicom.made import instance_of, series_of, to_bytes
from tests.peers import require


@pytest.fixture
def files(shared_data: Path) -> Path:
    return shared_data / "dicom" / "pydicom_files"


def opened(path: Path) -> Instance:
    return read_instance(partial(path.open, "rb"), path.name)


SIBLINGS = [
    ("MR_small_RLE.dcm", "MR_small.dcm"),
    ("MR_small_bigendian.dcm", "MR_small.dcm"),
    ("MR_small_implicit.dcm", "MR_small.dcm"),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    ("MR_small_padded.dcm", "MR_small.dcm"),
    ("693_J2KR.dcm", "693_UNCR.dcm"),
    ("emri_small_RLE.dcm", "emri_small.dcm"),
    ("emri_small_big_endian.dcm", "emri_small.dcm"),
    ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
    ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
]


@pytest.mark.parametrize(("packed", "plain"), SIBLINGS)
def test_every_encoding_of_an_image_gives_its_pixels(files: Path, packed: str, plain: str) -> None:
    expected = dcmread(files / plain)
    frames = int(expected.get("NumberOfFrames", 1))
    assert expected.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    stored = np.frombuffer(expected.PixelData, "<i2" if expected.PixelRepresentation else "<u2")
    volume = stored[: frames * expected.Rows * expected.Columns].reshape(frames, expected.Rows, expected.Columns)
    for frame in range(frames):
        assert (stored_plane(opened(files / packed), frame + 1 if frames > 1 else None) == volume[frame]).all()


BY_DCMTK = [
    ("bad_sequence.dcm", "dcmdjpeg", []),
    ("JPGExtended.dcm", "dcmdjpeg", []),
    ("JPEG-lossy.dcm", "dcmdjpeg", []),
    ("MR_small_jpeg_ls_lossless.dcm", "dcmdjpls", []),
    ("MR_small_RLE.dcm", "dcmdrle", []),
    ("image_dfl.dcm", "dcmconv", ["+te"]),
    ("MR_small_bigendian.dcm", "dcmconv", ["+te"]),
    ("MR_small_implicit.dcm", "dcmconv", ["+te"]),
    ("CT_small.dcm", "dcmconv", ["+te"]),
]


@pytest.mark.peer("dcmtk")
@pytest.mark.parametrize(("name", "program", "options"), BY_DCMTK)
def test_dcmtk_gives_the_same_pixels(files: Path, tmp_path: Path, name: str, program: str, options: list[str]) -> None:
    plain = tmp_path / "plain.dcm"
    subprocess.run([require(program), *options, files / name, plain], check=True, capture_output=True)
    expected = dcmread(plain)
    bits = f"{'i' if expected.PixelRepresentation else 'u'}{expected.BitsAllocated // 8}"
    stored = np.frombuffer(expected.PixelData, f"<{bits}")[: expected.Rows * expected.Columns]
    found = stored_plane(opened(files / name))
    assert (found == stored.reshape(found.shape)).all()


BY_GDCM = ["693_J2KI.dcm", "MR2_J2KR.dcm", "explicit_VR-UN.dcm", "J2K_pixelrep_mismatch.dcm"]


@pytest.mark.parametrize("name", BY_GDCM)
def test_gdcm_gives_the_same_jpeg_2000_pixels(files: Path, name: str) -> None:
    _same_as_gdcm(files / name)


def test_gdcm_gives_the_same_ct_pixels(shared_data: Path) -> None:
    _same_as_gdcm(min((shared_data / "dicom" / "ct_totalseg_j2k").iterdir()))


def _same_as_gdcm(path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    found = stored_plane(opened(path))
    buffer = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    # The header of J2K_pixelrep_mismatch says signed, its codestream unsigned; both keep 13 bits.
    bits = dcmread(path, stop_before_pixels=True).BitsStored
    mask = (1 << bits) - 1
    assert ((np.frombuffer(buffer, "<u2").reshape(found.shape) & mask) == (found.astype(np.int64) & mask)).all()


UNREADABLE = {
    "MR_truncated.dcm": "8130 of 8192 bytes",
    "SC_rgb_jpeg_dcmtk.dcm": "3 samples per pixel",
    "examples_jpeg2k.dcm": "3 samples per pixel",
}


@pytest.mark.parametrize(("name", "said"), UNREADABLE.items())
def test_what_cannot_be_decoded_says_why(files: Path, name: str, said: str) -> None:
    with pytest.raises(UndecodablePixels, match=said) as refused:
        stored_plane(opened(files / name))
    assert refused.value.sop_instance_uid in str(refused.value)
    assert UID(str(dcmread(files / name).file_meta.TransferSyntaxUID)).name in str(refused.value)


CUT = ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
       "bad_sequence.dcm", "JPGExtended.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm"]  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_short_is_never_half_an_image(files: Path, name: str) -> None:
    whole = (files / name).read_bytes()
    pixels = stored_plane(instance_of(whole))
    for length in np.linspace(100, len(whole), 25).astype(int):
        try:
            found = stored_plane(instance_of(whole[:length]))
        except (UndecodablePixels, UnreadableInstance):
            continue
        # What follows the pixels (trailing padding) may go.
        assert length > 0.9 * len(whole)
        assert (found == pixels).all()


@pytest.mark.parametrize("damage", [b"\xff\xd9", b"\xff\xc4", b"\xff\xda\x00\x03"])
def test_damaged_lossless_jpeg_does_not_end_the_process(files: Path, damage: bytes) -> None:
    """GDCM aborts at some of these, or returns half an image."""
    whole = bytearray((files / "bad_sequence.dcm").read_bytes())
    begin = opened(files / "bad_sequence.dcm").pixel_offset
    assert begin is not None
    whole[begin + 2000 : begin + 2000 + 200 * len(damage)] = damage * 200
    with pytest.raises(UndecodablePixels, match="damaged"):
        stored_plane(instance_of(bytes(whole)))
    assert stored_plane(opened(files / "bad_sequence.dcm")).shape == (512, 512)


def test_jpeg_of_another_size_than_its_header_says(files: Path) -> None:
    instance = opened(files / "bad_sequence.dcm")
    instance.header.Rows = 500
    with pytest.raises(UndecodablePixels, match="512, 512"):
        stored_plane(instance)


def test_baseline_jpeg_in_grey(tmp_path: Path) -> None:
    """Eight bits, lossy: as Pillow decodes the same codestream."""
    truth = np.add.outer(np.arange(24), 3 * np.arange(16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(truth).save(buffer, "JPEG", quality=90)
    dataset = make_series(shape=(1, 24, 16))[0]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.RescaleIntercept = "0"
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert (values_of(dataset) == np.asarray(Image.open(buffer))).all()


def test_no_copyleft_decoder_is_asked() -> None:
    jpeg = [syntax for syntax in PLUGINS if "JPEG" in syntax.name and "2000" not in syntax.name]
    assert not [syntax for syntax in jpeg if PLUGINS[syntax] == "pylibjpeg"]


def test_a_vanished_file_is_undecodable(tmp_path: Path) -> None:
    path = tmp_path / "gone.dcm"
    path.write_bytes(to_bytes(make_series()[0]))
    instance = opened(path)
    path.unlink()
    with pytest.raises(UndecodablePixels, match=r"gone\.dcm: No such file"):
        stored_plane(instance)


def changed(**values: object) -> Dataset:
    dataset = make_series(shape=(1, 4, 4))[0]
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def values_of(dataset: Dataset) -> Pixels:
    (plane,) = expand(instance_of(dataset))
    pixels = plane.read()
    assert pixels.dtype == np.float32
    return pixels


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(8, 16),
    low=st.integers(0, 8),
    signed=st.booleans(),
    rubbish=st.integers(0, 2**16 - 1),
    seed=st.integers(0, 999),
)
def test_only_stored_bits_are_the_value(bits: int, low: int, signed: bool, rubbish: int, seed: int) -> None:
    """PS3.5 8.1.1: BitsStored up to HighBit, whatever the other bits hold."""
    low = min(low, 16 - bits)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    truth = np.random.default_rng(seed).integers(least, most, (4, 4))
    mask = (2**bits - 1) << low
    words = ((truth.astype(np.int64) << low) & mask) | (rubbish & ~mask & 0xFFFF)
    dataset = changed(
        PixelRepresentation=int(signed),
        BitsStored=bits,
        HighBit=bits - 1 + low,
        PixelData=words.astype("<u2").tobytes(),
        RescaleIntercept="0",
    )
    assert (values_of(dataset) == truth).all()


def test_rescale_is_applied_to_each_slice_in_float32() -> None:
    datasets = make_series(modality="MR", shape=(3, 4, 4))
    for place, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.1 * (place + 1):.3f}", "-2.5"
    (stack,) = classify_all(datasets)
    for place, plane in enumerate(stack):
        assert plane.read() == pytest.approx(np.full((4, 4), 100 * 0.1 * (place + 1) - 2.5), rel=1e-6)


def classify_all(datasets: list[Dataset]) -> list[tuple[Slice, ...]]:
    return [stack.slices for stack in classify(series_of(datasets)).stacks]


PADDED = [
    pytest.param({"PixelPaddingValue": 5}, [5], id="one value"),
    pytest.param({"PixelPaddingValue": 5, "PixelPaddingRangeLimit": 7}, [5, 6, 7], id="a range"),
    pytest.param({"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 5}, [5, 6, 7], id="a range given downwards"),
    pytest.param({}, [], id="none"),
]


@pytest.mark.parametrize(("said", "padded"), PADDED)
def test_padding_becomes_air(said: dict[str, int], padded: list[int]) -> None:
    stored = np.arange(16, dtype="<u2").reshape(4, 4)
    values = values_of(changed(PixelData=stored.tobytes(), **said))
    expected = np.where(np.isin(stored, padded), -1024.0, stored - 1024.0)
    assert (values == expected).all()


def test_negative_padding_written_as_unsigned() -> None:
    stored = np.full((4, 4), -2000, "<i2")
    stored[0, 0] = 40
    dataset = changed(PixelRepresentation=1, PixelData=stored.tobytes(), RescaleIntercept="0")
    dataset.add_new("PixelPaddingValue", "US", 63536)
    values = values_of(dataset)
    assert values[0, 0] == 40
    assert (values.ravel()[1:] == -1024).all()


def test_mr_padding_becomes_zero() -> None:
    dataset = make_series(modality="MR", shape=(1, 4, 4))[0]
    dataset.PixelPaddingValue = 100
    assert (values_of(dataset) == 0).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_signed_pixels_survive_compression(syntax: UID) -> None:
    truth = np.random.default_rng(3).integers(-2048, 2048, (16, 12)).astype(np.int16)
    dataset = make_series(shape=(1, 16, 12))[0]
    dataset.RescaleIntercept = "0"
    set_pixel_data(dataset, truth, "MONOCHROME2", 12, generate_instance_uid=False)
    dataset.compress(syntax, generate_instance_uid=False)
    assert (values_of(dataset) == truth).all()
