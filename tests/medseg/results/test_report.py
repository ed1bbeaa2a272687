"""The structured report, read by highdicom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medseg.dicom.series import Stack
from medseg.inference.labels import Flag, SegmentationResult
from medseg.results.provenance import Provenance
from medseg.results.report import sentences, write_report
from tests.medseg.results.stacks import (
    ABNORMAL,
    LEFT,
    LIVER,
    SEGMENTS,
    blobs,
    findings,
    made,
    make_result,
    make_stack,
    position_mm,
)

FLAGS = (
    Flag("edge", "Liver: touches the edge of the field of view", 1),
    Flag("range", "values are outside the usual range"),
)


@pytest.fixture
def stack() -> Stack:
    return make_stack()


def write(
    folder: Path,
    result: SegmentationResult,
    labels: np.ndarray | None = None,
    *,
    with_seg: bool = True,
    provenance: Provenance | None = None,
    most: int = 20,
) -> Dataset:
    """labels: that are measured; without them nothing is."""
    path, segments = folder / "sr.dcm", tuple(found.segment for found in result.measured)
    measured = findings(
        result.stack, segments, np.zeros(result.stack.shape, np.uint8) if labels is None else labels, most
    )
    write_report(path, result, measured, provenance or made(), with_seg=with_seg)
    return highdicom.sr.srread(path)


def texts(report: Dataset) -> list[str]:
    found = highdicom.sr.utils.find_content_items(
        report, name=codes.DCM.Finding, value_type=highdicom.sr.ValueTypeValues.TEXT, recursive=True
    )
    return [item.TextValue for item in found]


def volumes(report: Dataset) -> dict[str, list[float]]:
    groups = (
        *report.content.get_volumetric_roi_measurement_groups(),
        *report.content.get_image_measurement_groups(),
    )
    each = [(group, [float(m.value) for m in group.get_measurements(codes.SCT.Volume)]) for group in groups]
    return {group.tracking_identifier.rsplit(" ", 1)[0]: values for group, values in each if values}


def test_volumes_segments_and_doubts(tmp_path: Path, stack: Stack) -> None:
    result = make_result(stack, SEGMENTS, blobs(stack.shape), flags=FLAGS)
    report = write(tmp_path, result)
    assert volumes(report) == {f.segment.label: [round(f.volume_ml, 6)] for f in result.measured}
    for group, segment in zip(report.content.get_volumetric_roi_measurement_groups(), SEGMENTS, strict=True):
        assert group.tracking_uid == made().key.uid(f"segment.{segment.number}")
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == made().key.uid("seg")
        assert reference.referenced_segment_numbers[0] == segment.number
        assert group.finding_type.value == segment.type.value
        assert group.get_measurements(codes.SCT.Volume)[0].unit.value == "ml"
    assert "Liver: touches the edge of the field of view" in texts(report)
    assert "values are outside the usual range" in texts(report)
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert report.SeriesNumber == 102
    assert report.SeriesDescription == "AI abdomen_ct SR (research use)"


def test_lesions_are_counted_and_the_largest_measured(tmp_path: Path, stack: Stack) -> None:
    lesion = replace(LIVER, label="Lesion", category=ABNORMAL, laterality=LEFT)
    labels = np.zeros(stack.shape, np.uint8)
    labels[1, 2:4, 2:7] = labels[4, 8, 8] = labels[4, 12, 12:14] = 1
    report = write(tmp_path, make_result(stack, (lesion,), labels), labels, most=2)
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (count,) = group.get_measurements(highdicom.sr.CodedConcept("246206008", "SCT", "Number of lesions"))
    assert (int(count.value), count.unit.value) == (3, "1")
    assert "Lesion: the 2 largest of 3 lesions are measured one by one." in texts(report)
    of_segment, *each = report.content.get_image_measurement_groups()
    assert of_segment.tracking_uid == group.tracking_uid
    assert [one.tracking_uid for one in each] == [made().key.uid(f"segment.1.lesion.{number}") for number in (1, 2)]
    assert [float(one.get_measurements(codes.SCT.Volume)[0].value) for one in each] == [0.02, 0.004]
    assert each[0].finding_sites[0].laterality.value == LEFT.value
    long, short = (each[1].get_measurements(name)[0] for name in (codes.SCT.LongAxis, codes.SCT.ShortAxis))
    assert [(one.value, one.unit.value) for one in (long, short)] == [(2.0, "mm"), (1.0, "mm")]
    (line,) = long.referenced_coordinates
    plane = stack.slices[4].plane
    ends = [
        position_mm(plane, 12, 12) - 0.5 * plane.row_direction,
        position_mm(plane, 12, 13) + 0.5 * plane.row_direction,
    ]
    assert {tuple(point) for point in line.value} == {tuple(point.tolist()) for point in np.round(ends, 4)}
    assert line.frame_of_reference_uid == stack.frame_of_reference_uid
    mean, deviation = each[1].get_measurements(codes.DCM.AttenuationCoefficient)
    assert (mean.derivation.meaning, deviation.derivation.meaning) == ("Mean", "Standard Deviation")
    assert mean.unit.value == "[hnsf'U]"
    assert mean.value == pytest.approx(stack.slices[4].read()[12, 12:14].mean())


def test_evidence_is_the_series_and_the_segmentation(tmp_path: Path, stack: Stack) -> None:
    report = write(tmp_path, make_result(stack, SEGMENTS, blobs(stack.shape)))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == stack.series.study_uid
    source, seg = study.ReferencedSeriesSequence
    assert source.SeriesInstanceUID == stack.series.series_uid
    assert len(source.ReferencedSOPSequence) == len(stack.slices)
    assert [item.ReferencedSOPInstanceUID for item in seg.ReferencedSOPSequence] == [made().key.uid("seg")]


def test_nothing_found_is_said_in_words_and_refers_to_the_images(tmp_path: Path, stack: Stack) -> None:
    result = make_result(stack, SEGMENTS, np.zeros(stack.shape, np.uint8))
    report = write(tmp_path, result, with_seg=False)
    assert texts(report)[0] == "Nothing found: no Liver, Spleen or Left kidney found in series 1."
    assert volumes(report) == {segment.label: [0.0] for segment in SEGMENTS}
    images = highdicom.sr.utils.find_content_items(
        report, value_type=highdicom.sr.ValueTypeValues.IMAGE, recursive=True
    )
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in images} == {
        part.instance.sop_instance_uid for part in stack.slices
    }
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert len(study.ReferencedSeriesSequence) == 1


def test_one_organ_missing(tmp_path: Path, stack: Stack) -> None:
    labels = blobs(stack.shape)
    labels[labels == 2] = 0
    report = write(tmp_path, make_result(stack, SEGMENTS, labels))
    assert texts(report)[0] == "No Spleen found."
    assert volumes(report)["Spleen"] == [0.0]
    assert len(report.content.get_volumetric_roi_measurement_groups()) == 2


def test_research_use_can_be_turned_off(stack: Stack) -> None:
    result = make_result(stack, SEGMENTS, blobs(stack.shape))
    assert list(sentences(result)) == ["For research use only. Not for diagnosis."]
    assert list(sentences(result, research_use=False)) == []


def test_a_report_with_nothing_to_say_is_still_a_report(tmp_path: Path, stack: Stack) -> None:
    provenance = made(research_use=False)
    report = write(tmp_path, make_result(stack, SEGMENTS, blobs(stack.shape)), provenance=provenance)
    assert texts(report) == []
    assert report.ContentQualification == "PRODUCT"


def test_the_same_key_gives_the_same_bytes(tmp_path: Path, stack: Stack) -> None:
    result = make_result(stack, SEGMENTS, blobs(stack.shape), flags=FLAGS)
    files = []
    for name in ("one", "two"):
        write_report(tmp_path / name, result, findings(stack, SEGMENTS, blobs(stack.shape)), made(), with_seg=True)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_patient_and_study_are_the_sources(tmp_path: Path) -> None:
    def named(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^José"
        dataset.PatientBirthDate = ""

    stack = make_stack(named)
    write(tmp_path, make_result(stack, SEGMENTS, blobs(stack.shape)))
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert str(report.PatientName) == "Müller^José"
    assert report.StudyInstanceUID == stack.series.study_uid
