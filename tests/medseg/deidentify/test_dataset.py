"""The basic profile: over every attribute that there is, at any depth, whatever VR it is written with."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, Sequence, dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.deidentify import actions
from medseg.deidentify.dataset import deidentified
from medseg.deidentify.pseudonyms import Pseudonyms
from tests.medseg.deidentify import judge, published

NAMES = Pseudonyms(b"k" * 32)
TEXT, DAY, UID = "PLANTED", "20190314", "1.2.999.77.1"
PLANTED = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), TEXT),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), TEXT.encode() + b"\0"),
    "AS": "042Y",
    "DA": DAY,
    "DT": f"{DAY}101112",
    "UI": UID,
}
#: What says which class, not which object, stays as it is.
KINDS = {tag for keyword in actions._KINDS if (tag := tag_for_keyword(keyword))}
ALL = [
    tag
    for tag, (vr, *_) in DicomDictionary.items()
    if tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFE) and tag & 0xFFFF and " or " not in vr
]


def has_value(tag: int) -> bool:
    """Whether a planted value must go: it does by the table, or since it is a date or a UID."""
    vr, in_table = judge.vr_of(tag), (tag >> 16, tag & 0xFFFF) in judge.table()
    return vr in PLANTED and tag not in KINDS and (in_table or vr in ("DA", "DT", "UI"))


def element(tag: int) -> DataElement:
    return DataElement(tag, judge.vr_of(tag), PLANTED[judge.vr_of(tag)])


def everything(tags: Iterable[int]) -> Dataset:
    dataset = Dataset()
    for tag in filter(has_value, tags):
        dataset[tag] = element(tag)
    dataset.add_new(0x00090010, "LO", TEXT)
    dataset.add_new(0x00091001, "LO", TEXT)
    dataset.add_new(0x60003000, "OW", TEXT.encode() + b"\0")
    dataset.add_new(0x60024000, "LT", TEXT)
    dataset.add_new(0x00160B31, "LO", TEXT)  # of no dictionary
    return dataset


def nested() -> Dataset:
    """Every attribute; some of them also in a sequence that stays, one whose items stay, and one made of dummies."""
    outer, inner = everything(ALL), Dataset()
    for at, keyword in enumerate(("SourceImageSequence", "ContentSequence", "DeformableRegistrationSequence")):
        some = everything(tag for tag in ALL[at::3] if (tag >> 16, tag & 0xFFFF) in judge.table())
        inner.DerivationImageSequence = [some]
        outer.add_new(tag_for_keyword(keyword), "SQ", [inner, some])
    return outer


def written(dataset: Dataset, *, implicit: bool) -> bytes:
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    dcmwrite(file, dataset, implicit_vr=implicit, little_endian=True)
    return file.getvalue()


def planted(content: bytes) -> list[bytes]:
    return [value for value in (TEXT.encode(), DAY.encode(), UID.encode(), b"042Y") if value in content]


def test_the_table_is_that_of_the_standard() -> None:
    """As another program reads it (its 621 attributes of 2024e were also compared with a third one, and are alike)."""
    assert Path(actions.__file__).with_name("actions.tsv").read_text() == published.text()
    assert len(actions.table()) == len(published.published()) > 650


@pytest.mark.parametrize("implicit", [True, False])
def test_of_every_attribute_nothing_planted_is_left(implicit: bool) -> None:
    source = dcmread(BytesIO(written(nested(), implicit=implicit)), force=True)
    changed = deidentified(source, NAMES.person(source))
    content = written(changed, implicit=implicit)
    assert planted(content) == []
    assert judge.complaints(dcmread(BytesIO(content), force=True)) == []


def test_what_is_not_in_the_table_keeps_its_bytes() -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.BodyPartExamined, dataset.ImageType = "BRAIN", ["ORIGINAL", "PRIMARY"]
    dataset.ImagePositionPatient = ["1.50", "-2", "3e1"]
    dataset.SOPClassUID, dataset.Rows = "1.2.840.10008.5.1.4.1.1.4", 512
    source = dcmread(BytesIO(written(dataset, implicit=False)), force=True)
    changed = deidentified(source, NAMES.person(source))
    for tag in source.keys():  # noqa: SIM118 - iterating converts values
        assert changed.get_item(tag) == source.get_item(tag)


_SEQUENCES = [tag for tag in ALL if judge.vr_of(tag) == "SQ"]
_OTHERS = [tag for tag in ALL if has_value(tag)]


def _dataset(elements: list[int], sequences: list[tuple[int, list[Dataset]]]) -> Dataset:
    dataset = Dataset()
    for tag in elements:
        dataset[tag] = element(tag)
    for tag, items in sequences:
        dataset.add_new(tag, "SQ", Sequence(items))
    return dataset


_TAGS = st.lists(st.integers(0, len(_OTHERS) - 1).map(_OTHERS.__getitem__), max_size=5)
_SEQUENCE = st.integers(0, len(_SEQUENCES) - 1).map(_SEQUENCES.__getitem__)
DATASETS = st.recursive(
    st.builds(_dataset, _TAGS, st.just([])),
    lambda inner: st.builds(_dataset, _TAGS, st.lists(st.tuples(_SEQUENCE, st.lists(inner, max_size=2)), max_size=3)),
    max_leaves=12,
)


@settings(max_examples=30, deadline=None)
@given(DATASETS, st.booleans())
def test_at_any_depth(dataset: Dataset, implicit: bool) -> None:
    source = dcmread(BytesIO(written(dataset, implicit=implicit)), force=True)
    changed = deidentified(source, NAMES.person(source))
    content = written(changed, implicit=implicit)
    assert planted(content) == []
    assert judge.complaints(dcmread(BytesIO(content), force=True)) == []
    again = dcmread(BytesIO(written(deidentified(dataset, NAMES.person(dataset)), implicit=implicit)), force=True)
    assert again == dcmread(BytesIO(content), force=True)  # whether values had been read before or not


def test_references_stay_references() -> None:
    dataset = Dataset()
    dataset.StudyInstanceUID, dataset.SOPInstanceUID = "1.2.3.4.1", "1.2.3.4.2"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4.2"
    dataset.ReferencedImageSequence = [reference]
    dataset.FailedSOPInstanceUIDList = ["1.2.3.4.1", "1.2.3.4.2"]
    dataset.FrameOfReferenceUID = "1.2.840.10008.1.4.1.1"  # well-known: Talairach
    changed = deidentified(dataset, NAMES.person(dataset))
    assert changed.ReferencedImageSequence[0].ReferencedSOPInstanceUID == changed.SOPInstanceUID
    assert changed.FailedSOPInstanceUIDList == [changed.StudyInstanceUID, changed.SOPInstanceUID]
    assert changed.FrameOfReferenceUID == dataset.FrameOfReferenceUID
    assert changed.ReferencedImageSequence[0].ReferencedSOPClassUID == reference.ReferencedSOPClassUID
