"""What a SEG says, read by pydicom and highdicom."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from medseg.bundle.bundle import Code, Segment
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import Stack
from medseg.dicom.sources import read_series
from medseg.errors import GeometryRefused, InvalidBundle, OutputNotWritable
from medseg.results import seg as seg_module
from medseg.results.modules import series_number
from medseg.results.provenance import Provenance
from medseg.results.seg import SegWriter
from medseg.results.verify import verify_seg
from tests.medseg.results.stacks import (
    ANATOMY,
    LIVER,
    MADE_AT,
    SEGMENTS,
    blobs,
    feed,
    made,
    make_stack,
    multi_frame_stack,
    to_stack,
)


def write(
    folder: Path,
    stack: Stack,
    labels: np.ndarray,
    segments: Sequence[Segment] = SEGMENTS,
    provenance: Provenance | None = None,
    **settings: Any,
) -> highdicom.seg.Segmentation:
    """Write, verify, and read with highdicom."""
    path = folder / "seg.dcm"
    writer = SegWriter(path, provenance or made(), **settings)
    feed(writer, stack, segments, labels)
    assert writer.written
    verify_seg(path, stack, segments, labels, exclusive=labels.ndim == 3)
    return highdicom.seg.segread(path)


def uids(stack: Stack) -> list[str]:
    return [part.instance.sop_instance_uid for part in stack.slices]


def test_voxels_come_back_through_highdicom(tmp_path: Path) -> None:
    stack = make_stack(shape=(6, 15, 21))
    labels = blobs(stack.shape)
    seg = write(tmp_path, stack, labels)
    back = seg.get_pixels_by_source_instance(uids(stack), combine_segments=True, assert_missing_frames_are_empty=True)
    assert (back == labels).all()
    assert len(seg.PerFrameFunctionalGroupsSequence) == seg.NumberOfFrames == 15  # the last plane is empty


def test_what_every_segmentation_says(tmp_path: Path) -> None:
    stack = make_stack(number=7)
    source = stack.series.instances[0].header
    seg = write(tmp_path, stack, blobs(stack.shape))
    assert seg.SOPClassUID == SegmentationStorage
    assert seg.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert (seg.Modality, seg.SegmentationType, seg.SegmentsOverlap) == ("SEG", "BINARY", "NO")
    assert seg.ImageType == ["DERIVED", "PRIMARY"]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.SeriesNumber == 701
    assert seg.SeriesDescription == "AI abdomen_ct SEG (research use)"
    assert seg.ContentQualification == "RESEARCH"
    assert (seg.ContentDate, seg.ContentTime) == ("20260304", "050607")
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(uids(stack))
    assert "SourceImageSequence" not in seg
    (equipment,) = seg.ContributingEquipmentSequence
    assert equipment.ManufacturerModelName == "abdomen_ct"
    assert equipment.SoftwareVersions == "0.1.0"
    assert float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == 2.0


def test_segments_are_coded_named_coloured_and_explained(tmp_path: Path) -> None:
    stack = make_stack()
    seg = write(tmp_path, stack, blobs(stack.shape))
    for item, segment in zip(seg.SegmentSequence, SEGMENTS, strict=True):
        assert (item.SegmentNumber, item.SegmentLabel) == (segment.number, segment.label)
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodingSchemeDesignator, kind.CodeValue) == (segment.type.scheme, segment.type.value)
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("abdomen_ct", "0.1.0")
        assert algorithm.AlgorithmParameters == "bundle_sha256=" + "0" * 64
    (modifier,) = seg.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert modifier.CodeMeaning == "Left"


def test_laterality_of_a_lesion_stands_with_its_region(tmp_path: Path) -> None:
    lung = Code("SCT", "39607008", "Lung")
    nodule = replace(SEGMENTS[2], number=1, region=lung)
    stack = make_stack()
    seg = write(tmp_path, stack, blobs(stack.shape, 1), (nodule,))
    (region,) = seg.SegmentSequence[0].AnatomicRegionSequence
    assert region.CodeValue == "39607008"
    assert region.AnatomicRegionModifierSequence[0].CodeValue == "7771000"


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_colours_survive_cielab(color: tuple[int, int, int]) -> None:
    description = seg_module.describe(replace(LIVER, color=color), made())
    back = highdicom.color.CIELabColor.from_dicom_value(description.RecommendedDisplayCIELabValue).to_rgb()
    assert np.abs(np.subtract(back, color)).max() <= 2


def test_the_same_key_gives_the_same_bytes(tmp_path: Path) -> None:
    stack, files = make_stack(), []
    for name in ("one", "two"):
        feed(SegWriter(tmp_path / name, made()), stack, SEGMENTS, blobs(stack.shape))
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_only_the_key_makes_uids(tmp_path: Path) -> None:
    stack = make_stack()
    first = write(tmp_path, stack, blobs(stack.shape))
    later = write(tmp_path, stack, blobs(stack.shape), provenance=made(made_at=datetime(2030, 1, 1)))
    other = write(tmp_path, stack, blobs(stack.shape), provenance=made("b"))
    assert first.SOPInstanceUID == later.SOPInstanceUID
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value != other[keyword].value
    assert first.SegmentSequence[0].TrackingUID != other.SegmentSequence[0].TrackingUID


def test_nothing_found_writes_no_file(tmp_path: Path) -> None:
    stack = make_stack()
    writer = SegWriter(tmp_path / "seg.dcm", made())
    feed(writer, stack, SEGMENTS, np.zeros(stack.shape, np.uint8))
    assert not writer.written
    assert list(tmp_path.iterdir()) == []


def test_nothing_found_can_be_one_empty_frame(tmp_path: Path) -> None:
    stack = make_stack()
    seg = write(tmp_path, stack, np.zeros(stack.shape, np.uint8), write_empty=True)
    assert seg.NumberOfFrames == 1
    assert not seg.pixel_array.any()
    assert len(seg.SegmentSequence) == 3


def test_a_segment_without_voxels_keeps_its_number(tmp_path: Path) -> None:
    stack = make_stack()
    labels = blobs(stack.shape)
    labels[labels == 2] = 0
    seg = write(tmp_path, stack, labels)
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [1, 2, 3]
    back = seg.get_pixels_by_source_instance(uids(stack), combine_segments=True, assert_missing_frames_are_empty=True)
    assert (back == labels).all()


def test_one_segment(tmp_path: Path) -> None:
    stack = make_stack()
    labels = blobs(stack.shape, 1)
    seg = write(tmp_path, stack, labels, (LIVER,))
    back = seg.get_pixels_by_source_instance(uids(stack), assert_missing_frames_are_empty=True)
    assert (back[..., 0] == labels).all()


def test_many_segments(tmp_path: Path) -> None:
    stack = make_stack(shape=(4, 32, 33))
    segments = tuple(Segment(n, f"S{n}", ANATOMY, LIVER.type, None, None, (n, 9, 9), None) for n in range(1, 105))
    labels = np.random.default_rng(1).integers(0, 105, stack.shape).astype(np.uint8)
    seg = write(tmp_path, stack, labels, segments)
    back = seg.get_pixels_by_source_instance(uids(stack), combine_segments=True, assert_missing_frames_are_empty=True)
    assert (back == labels).all()


def test_overlapping_segments(tmp_path: Path) -> None:
    stack = make_stack()
    labels = np.random.default_rng(1).integers(0, 2, (6, 3, 16, 20)).astype(np.uint8)
    seg = write(tmp_path, stack, labels)
    assert seg.SegmentsOverlap == "YES"
    back = seg.get_pixels_by_source_instance(uids(stack), assert_missing_frames_are_empty=True)
    assert (back == labels.transpose(0, 2, 3, 1)).all()


def test_segments_that_could_overlap_but_do_not(tmp_path: Path) -> None:
    stack = make_stack()
    labels = np.stack([blobs(stack.shape) == n for n in (1, 2, 3)], axis=1).astype(np.uint8)
    assert write(tmp_path, stack, labels).SegmentsOverlap == "NO"


@pytest.mark.parametrize(
    ("source", "expected"), [(3, 301), (None, 1), (0, 1), (-5, 1), (2**31 - 1, 1), (21474836, 2147483601)]
)
def test_series_numbers_stay_in_their_range(source: int | None, expected: int) -> None:
    assert series_number(source, 1) == expected


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", ["", "ISO 2022 IR 87"]])
def test_names_keep_their_bytes(tmp_path: Path, charset: str | list[str]) -> None:
    name = "Yamada^Tarou=山田^太郎" if isinstance(charset, list) else "Müller^José"

    def named(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = charset
        dataset.PatientName = name

    stack = make_stack(named)
    source = stack.series.instances[0]
    seg = write(tmp_path, stack, blobs(stack.shape))
    assert seg.SpecificCharacterSet == charset
    assert str(seg.PatientName) == name
    before = pydicom.dcmread(source.open()).get_item("PatientName").value
    assert pydicom.dcmread(tmp_path / "seg.dcm").get_item("PatientName").value == before


def test_names_survive_when_the_header_was_read_before(tmp_path: Path) -> None:
    def named(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^José"

    stack = make_stack(named)
    for instance in stack.series.instances:
        assert "Müller" in str(instance.header.PatientName)
    assert str(write(tmp_path, stack, blobs(stack.shape)).PatientName) == "Müller^José"


def test_our_own_words_suit_any_character_set(tmp_path: Path) -> None:
    def bare(dataset: Dataset) -> None:
        del dataset.SpecificCharacterSet

    stack = make_stack(bare)
    seg = write(tmp_path, stack, blobs(stack.shape, 1), (replace(LIVER, label="Läsion, groß"),))
    assert "SpecificCharacterSet" not in seg
    assert seg.SegmentSequence[0].SegmentLabel == "Lasion, gro"


def test_bad_values_of_the_source_neither_stop_us_nor_change(tmp_path: Path) -> None:
    bad = {
        "PatientBirthDate": b"not a date",
        "PatientSex": b"unknown!",
        "PatientAge": b"old ",
        "PatientWeight": b"heavy ",
        "PatientName": b"A^B^C^D^E^F^G=x=y=z=w\\two ",
        "StudyDate": b"2026.13.45",
        "StudyTime": b"half past ",
        "PatientID": b"x" * 80,
        "StudyID": b"a study id that is too long for it",
    }
    stack = make_stack()
    files = []
    for instance in stack.series.instances:
        dataset = pydicom.dcmread(instance.open())
        for keyword, value in bad.items():
            tag = pydicom.datadict.tag_for_keyword(keyword)
            vr = pydicom.datadict.dictionary_VR(tag)
            dataset[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        files.append(buffer.getvalue())
    stack = to_stack(files)
    path = tmp_path / "seg.dcm"
    feed(SegWriter(path, made()), stack, SEGMENTS, blobs(stack.shape))
    verify_seg(path, stack, SEGMENTS, blobs(stack.shape), exclusive=True)
    seg = pydicom.dcmread(path)
    for keyword, value in bad.items():
        assert seg.get_item(keyword).value == value


def test_missing_attributes_are_there_and_empty(tmp_path: Path) -> None:
    absent = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    absent = (*absent, "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "SeriesNumber")

    def strip(dataset: Dataset) -> None:
        for keyword in absent:
            del dataset[keyword]

    stack = make_stack(strip)
    seg = write(tmp_path, stack, blobs(stack.shape))
    for keyword in absent[:-1]:
        assert keyword in seg
        assert not seg[keyword].value
    assert seg.SeriesNumber == 1


def test_only_attributes_of_the_iod_are_taken(tmp_path: Path) -> None:
    def request(dataset: Dataset) -> None:
        dataset.RequestingService = "ward"
        dataset.InstitutionName = "Hospital"
        dataset.KVP = "120"
        dataset.ProcedureCodeSequence = [_code("P5-09051", "SRT", "Magnetic resonance imaging")]
        dataset.add_new(0x00091001, "LO", "private")

    stack = make_stack(request)
    seg = write(tmp_path, stack, blobs(stack.shape))
    assert all(keyword not in seg for keyword in ("RequestingService", "InstitutionName", "KVP"))
    assert seg.ProcedureCodeSequence[0].CodeValue == "P5-09051"
    assert not any(element.tag.is_private for element in seg)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def test_a_lossy_source_stays_marked(tmp_path: Path) -> None:
    def lossy(dataset: Dataset) -> None:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = [10.5, 3]
        dataset.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]

    stack = make_stack(lossy)
    seg = write(tmp_path, stack, blobs(stack.shape))
    assert seg.LossyImageCompression == "01"
    assert list(seg.LossyImageCompressionRatio) == [10.5, 3]
    assert list(seg.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]
    clean = make_stack()
    assert write(tmp_path, clean, blobs(clean.shape)).LossyImageCompression == "00"


def test_no_frame_of_reference_no_segmentation(tmp_path: Path) -> None:
    stack = replace(make_stack(), frame_of_reference_uid="")
    with pytest.raises(GeometryRefused, match="no FrameOfReferenceUID"):
        SegWriter(tmp_path / "seg.dcm", made()).begin(stack, SEGMENTS, exclusive=True)


def test_nifti_gives_no_segmentation(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(GeometryRefused):
        SegWriter(tmp_path / "seg.dcm", made()).begin(read_nifti(tmp_path / "v.nii"), SEGMENTS, exclusive=True)


def test_an_assumed_frame_of_reference_is_the_stacks(tmp_path: Path) -> None:
    def strip(dataset: Dataset) -> None:
        del dataset.FrameOfReferenceUID

    stack = make_stack(strip, assume=True)
    seg = write(tmp_path, stack, blobs(stack.shape))
    assert seg.FrameOfReferenceUID == stack.frame_of_reference_uid != ""


def test_segments_must_be_numbered_from_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match=r"\[2, 3\]"):
        SegWriter(tmp_path / "seg.dcm", made()).begin(make_stack(), SEGMENTS[1:], exclusive=True)


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    stack = make_stack()
    with pytest.raises(OutputNotWritable):
        feed(SegWriter(tmp_path / "file" / "seg.dcm", made()), stack, SEGMENTS, blobs(stack.shape))


def test_a_failure_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Iterator[bytes]:
        yield b"some bytes"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(seg_module, "pixel_data", full)
    stack = make_stack()
    with pytest.raises(OutputNotWritable, match="No space left"):
        feed(SegWriter(tmp_path / "seg.dcm", made()), stack, SEGMENTS, blobs(stack.shape))
    assert list(tmp_path.iterdir()) == []


def test_a_multi_frame_source(tmp_path: Path, shared_data: Path) -> None:
    stack = multi_frame_stack(shared_data)
    assert stack.shape == (3, 38, 23)
    labels = blobs(stack.shape)
    seg = write(tmp_path, stack, labels)
    numbers = [
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]
    assert set(numbers) == {part.frame for part in stack.slices[:-1]}
    back = seg.get_pixels_by_source_frame(
        stack.slices[0].instance.sop_instance_uid,
        [part.frame for part in stack.slices],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert (back == labels).all()


def test_a_series_without_most_attributes(tmp_path: Path, shared_data: Path) -> None:
    (series,) = read_series(shared_data / "dicom" / "ct_ircadb01_17" / "PATIENT_DICOM.zip")
    (stack,) = classify(series, assume_frame_of_reference=True).stacks
    labels = np.zeros(stack.shape, np.uint8)
    labels[40:43, 100:200, 150:300] = 1
    seg = write(tmp_path, stack, labels)
    assert seg.PatientID in ("", None)
    assert seg.FrameOfReferenceUID == stack.frame_of_reference_uid
    assert seg.NumberOfFrames == 3


@pytest.mark.parametrize(("only", "asked", "marked"), [(True, False, True), (False, False, False), (False, True, True)])
def test_a_bundle_for_research_stays_marked(only: bool, asked: bool, marked: bool) -> None:
    file = {"path": Path("b"), "weights": Path("b/models/model.pt")}
    bundle = SimpleNamespace(name="b", version="1", digest="0" * 64, research_only=only, **file)
    provenance = Provenance.of(bundle, made().key, MADE_AT, research_use=asked)
    assert provenance.research_use is marked
    assert ("research use" in provenance.description("SEG")) is marked


def test_a_long_bundle_name_leaves_room_for_the_warning() -> None:
    description = made(bundle="b" * 100).description("SEG")
    assert len(description) == 64
    assert description.endswith("SEG (research use)")
