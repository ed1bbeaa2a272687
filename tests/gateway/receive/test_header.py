"""Who an instance is, without decoding it."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from gateway.ledger import patients
from gateway.receive.identity import Identity, NeedMore, NotDicom, identify
from tests.gateway.receiving import encode, make_ct


def nested(depth: int, *, undefined: bool) -> Dataset:
    inner = Dataset()
    inner.StudyInstanceUID, inner.CodeMeaning = "1.9.9.9", "not this one"
    for _ in range(depth):
        outer = Dataset()
        inner.is_undefined_length_sequence_item = undefined
        outer.ReferencedSeriesSequence = [inner, inner]
        outer["ReferencedSeriesSequence"].is_undefined_length = undefined
        inner = outer
    return inner


def with_sequences(undefined: bool) -> Dataset:
    instance = make_ct(SourceImageSequence=[nested(3, undefined=undefined)])
    instance["SourceImageSequence"].is_undefined_length = undefined
    instance.add_new(0x00090010, "LO", "PRIVATE")
    instance.add_new(0x00091001, "OB", bytes(3000))
    instance.add_new(0x00091002, "UN", b"odd")
    return instance


def identity_of(instance: Dataset) -> Identity:
    return Identity(
        str(instance.SOPClassUID),
        str(instance.SOPInstanceUID),
        str(instance.StudyInstanceUID),
        str(instance.SeriesInstanceUID),
        patients.key(str(instance.PatientID)),
    )


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless]
)
def test_the_identity_pydicom_wrote(syntax: str, undefined: bool) -> None:
    instance = with_sequences(undefined)
    encoding = ExplicitVRLittleEndian if syntax == JPEG2000Lossless else syntax
    data = encode(instance, encoding)
    assert identify(data, syntax, whole=True) == identity_of(instance)
    assert identify(memoryview(data), syntax, whole=False) == identity_of(instance)


@pytest.mark.parametrize("rest", [b"", b"\xfc\xff\xfc\xffOB\0\0\xff\0\0\0"], ids=["", "and rubbish at the end"])
def test_an_identity_out_of_order(rest: bytes) -> None:
    """PS3.5 7.1 asks for ascending tags; some senders have others, and every reader takes them."""
    instance = make_ct()
    data = encode(instance)
    at, pixels = data.index(b"\x08\0\x16\0UI"), data.index(b"\xe0\x7f\x10\0O")
    for shuffled in (data[pixels:] + data[:pixels], data[:at] + data[pixels:] + data[at:pixels] + rest):
        assert identify(shuffled, ExplicitVRLittleEndian, whole=True) == identity_of(instance)
        with pytest.raises(NeedMore):
            identify(shuffled[: at + 40], ExplicitVRLittleEndian, whole=False)


def test_a_deflated_identity() -> None:
    instance = with_sequences(True)
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(encode(instance)) + packer.flush()
    assert identify(data, DeflatedExplicitVRLittleEndian, whole=True) == identity_of(instance)


def test_a_head_is_enough_or_says_that_it_is_not() -> None:
    instance = with_sequences(True)
    data = encode(instance)
    told = 0
    for length in range(0, 4500, 7):
        try:
            assert identify(data[:length], ExplicitVRLittleEndian, whole=False) == identity_of(instance)
            told += 1
        except NeedMore:
            assert not told
    assert told


def test_what_is_absent_is_empty() -> None:
    instance = make_ct()
    del instance.StudyInstanceUID, instance.SeriesInstanceUID
    found = identify(encode(instance), ExplicitVRLittleEndian, whole=True)
    assert (found.study_uid, found.series_uid) == ("", "")


@pytest.mark.parametrize("data", [b"", b"\x08\x00\x16\x00", b"\x08\x00\x16\x00UI\x1a\x001.2", b"x" * 100])
def test_half_an_element_is_not_dicom(data: bytes) -> None:
    if data:
        with pytest.raises(NotDicom):
            identify(data, ExplicitVRLittleEndian, whole=True)
    else:
        assert identify(data, ExplicitVRLittleEndian, whole=True) == Identity("", "", "", "")


def test_sequences_nested_without_end_are_refused() -> None:
    item = b"\x08\x00\x12\x21SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(NotDicom):
        identify(item * 5000, ExplicitVRLittleEndian, whole=True)


@settings(deadline=None, max_examples=150)
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
    ),
    st.booleans(),
    st.integers(0, 1000),
)
def test_noise_is_told_apart(noise: bytes, syntax: str, whole: bool, at: int) -> None:
    good = encode(make_ct(size=2))
    for data in (noise, good[: at % len(good)] + noise):
        with contextlib.suppress(NotDicom, NeedMore):
            identify(data, syntax, whole=whole)
