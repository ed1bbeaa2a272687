"""A structure set, read by pydicom and by our second reader; an outside program fills it in `acceptance`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.results import structures
from medseg.results.structures import StructureWriter
from medseg.results.verify_structures import verify_structures
from tests.medseg.results.stacks import (
    ABNORMAL,
    KIDNEY,
    LIVER,
    SEGMENTS,
    blobs,
    feed,
    made,
    make_stack,
    multi_frame_stack,
)

Structures = tuple[Path, Stack, np.ndarray]


@pytest.fixture
def written(tmp_path: Path) -> Structures:
    stack = make_stack(shape=(6, 15, 21), number=7, orientation="coronal", spacing_mm=(2.0, 0.7, 1.3))
    labels = blobs(stack.shape)
    labels[labels == 2] = 0
    feed(StructureWriter(tmp_path / "rtstruct.dcm", made()), stack, SEGMENTS, labels)
    return tmp_path / "rtstruct.dcm", stack, labels


def verify(written: Structures) -> None:
    path, stack, labels = written
    verify_structures(path, stack, SEGMENTS, labels, exclusive=labels.ndim == 3)


def test_what_it_says(written: Structures) -> None:
    verify(written)
    found = pydicom.dcmread(written[0])
    assert (found.Modality, found.SeriesNumber, found.ApprovalStatus) == ("RTSTRUCT", 706, "UNAPPROVED")
    assert [(one.ROINumber, one.ROIName) for one in found.StructureSetROISequence] == [(1, "Liver"), (3, "Left kidney")]
    assert [one.RTROIInterpretedType for one in found.RTROIObservationsSequence] == ["ORGAN", "ORGAN"]
    assert found.ROIContourSequence[0].ROIDisplayColor == list(LIVER.color)
    assert "research use" in found.SeriesDescription
    contours = [contour for one in found.ROIContourSequence for contour in one.ContourSequence]
    assert all(len(one.ContourData) == 3 * one.NumberOfContourPoints for one in contours)


def test_structures_that_overlap_and_a_lesion(tmp_path: Path) -> None:
    stack = make_stack(shape=(4, 12, 14))
    labels = np.zeros((4, 2, 12, 14), np.uint8)
    labels[1:3, 0, 2:9, 2:9] = labels[2, 1, 5:12, 5:14] = 1
    segments = (LIVER, replace(KIDNEY, number=2, category=ABNORMAL))
    path = tmp_path / "rtstruct.dcm"
    feed(StructureWriter(path, made()), stack, segments, labels)
    verify_structures(path, stack, segments, labels, exclusive=False)
    assert [one.RTROIInterpretedType for one in pydicom.dcmread(path).RTROIObservationsSequence] == ["ORGAN", ""]


def test_frames_of_one_image_are_told_apart(tmp_path: Path, shared_data: Path) -> None:
    stack = multi_frame_stack(shared_data)
    labels = blobs(stack.shape)
    path = tmp_path / "rtstruct.dcm"
    feed(StructureWriter(path, made()), stack, SEGMENTS, labels)
    verify_structures(path, stack, SEGMENTS, labels, exclusive=True)


def test_a_contour_that_is_too_long_is_parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "_LONGEST", 300)
    stack = make_stack(shape=(3, 15, 21))
    labels = blobs(stack.shape, 1)
    path = tmp_path / "rtstruct.dcm"
    feed(StructureWriter(path, made()), stack, (LIVER,), labels)
    verify_structures(path, stack, (LIVER,), labels, exclusive=True)
    contours = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert max(len("\\".join(map(str, one.ContourData))) for one in contours) < 3 * 300


def test_nothing_found_gives_none(tmp_path: Path) -> None:
    stack = make_stack()
    writer = StructureWriter(tmp_path / "rtstruct.dcm", made())
    feed(writer, stack, SEGMENTS, np.zeros(stack.shape, np.uint8))
    assert (writer.written, list(tmp_path.iterdir())) == (False, [])


def _contour(found: Dataset) -> Dataset:
    contour: Dataset = found.ROIContourSequence[0].ContourSequence[3]
    return contour


def _moved(found: Dataset) -> None:
    contour = _contour(found)
    contour.ContourData = [value + (n % 3 == 0) * 1.3 for n, value in enumerate(contour.ContourData)]


def _off_its_slice(found: Dataset) -> None:
    contour = _contour(found)
    contour.ContourData = [value + (n % 3 == 1) * 0.01 for n, value in enumerate(contour.ContourData)]


def _on_another_image(found: Dataset) -> None:
    other = found.ROIContourSequence[0].ContourSequence[-1].ContourImageSequence
    _contour(found).ContourImageSequence = other


def _missing(found: Dataset) -> None:
    del found.ROIContourSequence[1].ContourSequence[0]


def _twice(found: Dataset) -> None:
    found.ROIContourSequence[0].ContourSequence.append(_contour(found))


def _another_frame_of_reference(found: Dataset) -> None:
    found.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2"


@pytest.mark.parametrize(
    "change", [_moved, _off_its_slice, _on_another_image, _missing, _twice, _another_frame_of_reference]
)
def test_what_differs_is_seen(written: Structures, change: Callable[[Dataset], None]) -> None:
    found = pydicom.dcmread(written[0])
    change(found)
    found.save_as(written[0])
    with pytest.raises(VerificationFailed):
        verify(written)


def test_other_labels_and_a_file_cut_short_are_seen(written: Structures) -> None:
    path, stack, labels = written
    for other in (labels[:, ::-1], labels[:, :, ::-1], labels[::-1], labels[:-1]):
        with pytest.raises(VerificationFailed):
            verify((path, stack, other))
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(VerificationFailed):
        verify(written)
