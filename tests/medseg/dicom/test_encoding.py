"""Objects whose bytes are otherwise than they say: read where one reading alone is possible, and told."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
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

from medseg.dicom.decode import stored_plane
from medseg.dicom.geometry import Reason, classify
from medseg.dicom.phantom import make_series
from medseg.dicom.series import Level
from medseg.dicom.sources import find_instances, instance_digest
from medseg.errors import UndecodablePixels, UnreadableInstance
from tests.medseg.dicom.encoders import PLAIN, element, file_meta_of, file_of, frame_of, lossless_jpeg, with_frame
from tests.medseg.dicom.made import each, instance_of, series_of, to_bytes

SHAPE = (36, 33)
TRUTH = np.random.default_rng(5).integers(0, 4096, SHAPE)


def image() -> Dataset:
    dataset = make_series(shape=(1, *SHAPE))[0]
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = TRUTH.astype("<u2").tobytes()
    return dataset


def encoded(dataset: Dataset, syntax: UID, stated: UID | None = None) -> bytes:
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    return file_of(dataset, syntax, stated=stated)


def codes(content: bytes) -> list[str]:
    return [remark.code for remark in instance_of(content).remarks]


@pytest.mark.parametrize("preamble", [True, False], ids=["", "without preamble"])
@pytest.mark.parametrize("length", [True, False], ids=["", "without group length"])
@pytest.mark.parametrize("stated", [*PLAIN, JPEG2000Lossless], ids=lambda syntax: f"states {syntax.name}")
@pytest.mark.parametrize("syntax", PLAIN, ids=lambda syntax: f"is {syntax.name}")
def test_a_wrong_transfer_syntax_is_seen_through(syntax: UID, stated: UID, length: bool, preamble: bool) -> None:
    dataset = image()
    whole = encoded(dataset, syntax, stated)
    body = whole[len(file_meta_of(dataset, stated)) :]
    content = file_meta_of(dataset, stated, preamble=preamble, length=length) + body
    if stated == JPEG2000Lossless and syntax == DeflatedExplicitVRLittleEndian:
        with pytest.raises(UnreadableInstance):  # compressed twice: no such thing
            instance_of(content)
        return
    instance = instance_of(content)
    assert (stored_plane(instance) == TRUTH).all()
    assert ["wrong_transfer_syntax"] * (syntax != stated) == sorted({remark.code for remark in instance.remarks})
    assert instance.header.file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("stray", [ExplicitVRLittleEndian, JPEG2000Lossless, ImplicitVRLittleEndian, "1.2.3"])
def test_file_meta_inside_the_data_set_says_nothing(syntax: UID, stray: str) -> None:
    """What a sender left there is no part of what was sent; the length of the true file meta tells it apart."""
    dataset = image()
    whole = encoded(dataset, syntax)
    meta = len(file_meta_of(dataset, syntax))
    content = whole[:meta] + _strays(stray, syntax) + whole[meta:]
    instance = instance_of(content)
    assert (stored_plane(instance) == TRUTH).all()
    assert [remark.code for remark in instance.remarks] == ["file_meta_in_data_set"]
    assert not [tag for tag in instance.header.keys() if tag.group == 2]  # noqa: SIM118
    assert instance.header.file_meta.TransferSyntaxUID == syntax
    assert instance_digest(instance) != instance_digest(instance_of(whole))


def _strays(stated: str, syntax: UID) -> bytes:
    order = "<" if syntax.is_little_endian else ">"
    made = b""
    for number, vr, value in ((0x0002, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"), (0x0010, b"UI", stated.encode())):
        value += b"\0" * (len(value) % 2)
        made += struct.pack(f"{order}HH", 2, number)
        made += (
            struct.pack(f"{order}L", len(value)) if syntax.is_implicit_VR else vr + struct.pack(f"{order}H", len(value))
        )
        made += value
    return made


def test_two_transfer_syntaxes_without_a_length_are_refused() -> None:
    dataset = image()
    body = encoded(dataset, ExplicitVRLittleEndian)[len(file_meta_of(dataset, ExplicitVRLittleEndian)) :]
    strays = _strays(JPEG2000Lossless, ExplicitVRLittleEndian)
    meta = file_meta_of(dataset, ExplicitVRLittleEndian, length=False)
    with pytest.raises(UnreadableInstance, match="2 transfer syntaxes"):
        instance_of(meta + strays + body)
    same = _strays(ExplicitVRLittleEndian, ExplicitVRLittleEndian)
    assert (stored_plane(instance_of(meta + same + body)) == TRUTH).all()


@pytest.mark.parametrize("length", [0, 20, 4000])
def test_a_wrong_group_length_of_the_file_meta(length: int) -> None:
    content = bytearray(encoded(image(), ImplicitVRLittleEndian))
    content[140:144] = length.to_bytes(4, "little")
    assert (stored_plane(instance_of(bytes(content))) == TRUTH).all()


def test_big_endian_without_vrs_is_refused() -> None:
    content = bytearray(encoded(image(), ExplicitVRBigEndian))
    at = content.index(b"\0\x08", 132)
    content[at + 4 : at + 6] = b"\0\0"
    with pytest.raises(UnreadableInstance, match="big endian and has no VRs"):
        instance_of(bytes(content))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_elements_after_the_pixels_are_read(syntax: UID) -> None:
    dataset = image()
    if syntax == RLELossless:
        with_frame(dataset, syntax, frame_of(TRUTH.astype("<u2"), syntax, 16))
    whole = to_bytes(dataset)
    begin = whole.index(b"\xe0\x7f\x10\x00O")
    first = whole.index(b"\x08\x00\x05\x00CS")
    early, pixels = whole[first:begin], whole[begin:]
    instance = instance_of(whole[:first] + pixels + early)
    assert (stored_plane(instance) == TRUTH).all()
    assert [remark.code for remark in instance.remarks] == ["elements_out_of_order"]
    assert instance.header.Rows == SHAPE[0]


def test_elements_in_another_order_are_read() -> None:
    whole = to_bytes(image())
    at, end = whole.index(b"\x08\x00\x18\x00UI"), whole.index(b"\x08\x00\x60\x00CS")
    late = whole.index(b"\xe0\x7f\x10\x00O")
    content = whole[:at] + whole[end:late] + whole[at:end] + whole[late:]
    assert (stored_plane(instance_of(content)) == TRUTH).all()


@pytest.mark.parametrize("padding", [b"\0" * 7, b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0abcd", b"rubbish"])
def test_what_follows_the_pixels_is_no_part_of_them(padding: bytes) -> None:
    assert (stored_plane(instance_of(to_bytes(image()) + padding)) == TRUTH).all()


COMPRESSED = [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1]


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_a_missing_delimiter_at_the_very_end(syntax: UID) -> None:
    """The last frame is seen to be whole by its own end; without that nobody knows what is missing."""
    frame = frame_of(TRUTH.astype("<u2"), syntax, 12)
    content = to_bytes(with_frame(image(), syntax, frame))
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    assert (stored_plane(instance_of(content[:-8])) == TRUTH).all()
    half = 2 * (len(frame) // 4)
    parts = to_bytes(with_frame(image(), syntax, frame[:half], frame[half:]))
    assert (stored_plane(instance_of(parts[:-8])) == TRUTH).all()
    second = len(parts) - 8 - 8 - len(frame[half:]) - len(frame[half:]) % 2
    with pytest.raises(UndecodablePixels, match=r"ends early|cut short"):
        stored_plane(instance_of(parts[:second]))


@pytest.mark.parametrize("syntax", [*COMPRESSED, RLELossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("table", [b"", b"\0\0\0\0", b"\x07\0\0\0", b"\0\0\0\0\xff\xff\xff\0"])
def test_an_offset_table_is_not_needed_for_one_frame(syntax: UID, table: bytes) -> None:
    frame = frame_of(TRUTH.astype("<u2"), syntax, 16 if syntax == RLELossless else 12)
    content = to_bytes(with_frame(image(), syntax, frame))
    at = content.index(b"\xfe\xff\0\xe0\0\0\0\0")
    content = content[: at + 4] + len(table).to_bytes(4, "little") + table + content[at + 8 :]
    assert (stored_plane(instance_of(content)) == TRUTH).all()


def test_rle_without_delimiter_is_refused() -> None:
    content = to_bytes(with_frame(image(), RLELossless, frame_of(TRUTH.astype("<u2"), RLELossless, 16)))
    with pytest.raises(UndecodablePixels, match="cut short"):
        stored_plane(instance_of(content[:-8]))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_fill_bytes_before_any_marker(count: int) -> None:
    """ITU-T T.81 B.1.1.2."""
    frame = lossless_jpeg(TRUTH, 12, fill=b"\xff" * count)
    dataset = with_frame(image(), JPEGLosslessSV1, frame)
    assert (stored_plane(instance_of(dataset)) == TRUTH).all()
    for end in range(2, len(frame) - count - 2, 97):
        with pytest.raises(UndecodablePixels):
            stored_plane(instance_of(with_frame(image(), JPEGLosslessSV1, frame[:end])))


def as_text(vr: str, separator: str = "\\", *keywords: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            value = dataset[keyword].value
            text = separator.join(str(part) for part in (value if dataset[keyword].VM > 1 else [value])).encode()
            text += b" " * (len(text) % 2)
            dataset._dict[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(text), text, 0, False, True)

    return change


NUMBERS = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept")


@pytest.mark.parametrize("vr", ["UT", "ST", "LT", "UC", "UR", "LO", "SH"])
@pytest.mark.parametrize("separator", ["\\", " \\ "])
def test_numbers_written_as_text(vr: str, separator: str) -> None:
    if vr == "UR" and " " in separator:
        pytest.skip("blanks are no part of an address")
    expected = classify(series_of(make_series(shape=(4, 4, 4)))).stacks[0]
    (stack,) = classify(series_of(each(make_series(shape=(4, 4, 4)), as_text(vr, separator, *NUMBERS)))).stacks
    assert np.array_equal(stack.affine, expected.affine)
    assert np.array_equal(stack.slices[1].read(), expected.slices[1].read())
    header = stack.slices[0].instance.header  # type: ignore[union-attr]
    assert [float(size) for size in header.PixelSpacing] == list(stack.spacing_mm[1:])  # for whoever reads it later
    (finding,) = [finding for finding in stack.findings if finding.code == "numbers_as_text"]
    assert finding.level is Level.WARNING
    assert "PixelSpacing" in finding.detail


@pytest.mark.parametrize("text", ["0,8\\0,8", "0.8;0.8", "0.8 0.8", "1_0\\1_0", "0.8\\", "0.8\\0.8\\0.8", "x\\y"])
@pytest.mark.parametrize("vr", ["DS", "UT"])
def test_what_is_no_two_numbers_is_refused_by_name(vr: str, text: str) -> None:
    def change(dataset: Dataset) -> None:
        value = text.encode() + b" " * (len(text) % 2)
        dataset._dict[Tag("PixelSpacing")] = RawDataElement(Tag("PixelSpacing"), vr, len(value), value, 0, False, True)

    verdict = classify(series_of(each(make_series(shape=(4, 4, 4)), change)))
    assert [one.reason for one in verdict.refusals] == [Reason.NO_PIXEL_SPACING]
    assert "PixelSpacing is" in verdict.refusals[0].detail


def test_a_slope_that_is_no_number_is_not_left_out() -> None:
    def change(dataset: Dataset) -> None:
        dataset._dict[Tag("RescaleSlope")] = RawDataElement(Tag("RescaleSlope"), "DS", 4, b"1,5 ", 0, False, True)

    verdict = classify(series_of(each(make_series(modality="MR", shape=(4, 4, 4)), change)))
    assert [one.reason for one in verdict.refusals] == [Reason.MALFORMED_HEADER]
    assert "RescaleSlope is not a number" in verdict.refusals[0].detail


def test_a_localizer_in_text_is_a_localizer() -> None:
    def change(dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        as_text("UT", "\\", "ImageType")(dataset)

    verdict = classify(series_of(each(make_series(shape=(4, 4, 4)), change)))
    assert [one.reason for one in verdict.refusals] == [Reason.LOCALIZER]


def test_findings_count_the_slices(tmp_path: Path) -> None:
    for number, dataset in enumerate(make_series(shape=(4, 4, 4))):
        stated = ImplicitVRLittleEndian if number else ExplicitVRLittleEndian
        (tmp_path / f"{number}.dcm").write_bytes(file_of(dataset, ExplicitVRLittleEndian, stated=stated))
    (series,) = find_instances(tmp_path).series()
    (stack,) = classify(series).stacks
    assert [finding.detail for finding in stack.findings if finding.code == "wrong_transfer_syntax"] == [
        "the file meta information states Implicit VR Little Endian, the bytes are Explicit VR Little Endian: read as "
        "they are (3 of 4 slices)"
    ]


def test_a_length_of_odd_bytes_is_read() -> None:
    dataset = image()
    content = to_bytes(dataset)
    at = content.index(b"\x08\x00\x16\x00UI")
    comment = element(0x0008, 0x0008, b"CS", b"AXIAL")
    odd = comment[:6] + (5).to_bytes(2, "little") + b"AXIAL"
    assert (stored_plane(instance_of(content[:at] + odd + content[at:])) == TRUTH).all()
