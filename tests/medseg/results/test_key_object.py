"""The key object selection, read by highdicom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.dicom.series import Stack
from medseg.results.capture import capture_uid
from medseg.results.key_object import write_key_object
from tests.medseg.results.stacks import (
    ABNORMAL,
    LIVER,
    SPLEEN,
    findings,
    made,
    make_result,
    make_stack,
    multi_frame_stack,
)

SEGMENTS = (LIVER, replace(SPLEEN, label="Lesion", category=ABNORMAL))


def select(folder: Path, stack: Stack, labels: np.ndarray, *, captured: bool) -> Dataset:
    result = make_result(stack, SEGMENTS, labels)
    write_key_object(folder / "ko.dcm", result, findings(stack, SEGMENTS, labels), made(), captured=captured)
    return highdicom.ko.KeyObjectSelectionDocument.from_dataset(dcmread(folder / "ko.dcm"))


def selected(document: Dataset) -> list[Dataset]:
    return [item.ReferencedSOPSequence[0] for item in document.ContentSequence if "ReferencedSOPSequence" in item]


def labels_of(stack: Stack) -> np.ndarray:
    """The liver is largest in slice 2, two lesions in slices 1 and 2."""
    labels = np.zeros(stack.shape, np.uint8)
    labels[0:2, 1:4, 1:4] = labels[2, 1:6, 1:6] = 1
    labels[1, 9:12, 9:12] = labels[2, 9:10, 1:3] = 2
    return labels


@pytest.mark.parametrize("captured", [False, True])
def test_each_finding_where_it_is_largest(tmp_path: Path, captured: bool) -> None:
    stack = make_stack()
    document = select(tmp_path, stack, labels_of(stack), captured=captured)
    images = [capture_uid(made(), k) if captured else stack.slices[k].instance.sop_instance_uid for k in (1, 2)]
    assert [one.ReferencedSOPInstanceUID for one in selected(document)] == images
    assert document.SOPInstanceUID == made().key.uid("ko.sc" if captured else "ko")
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == (made().key.uid("sc.series") if captured else stack.series.series_uid)
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == images
    (words,) = [
        item.TextValue
        for item in document.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Key Object Description"
    ]
    assert words.splitlines() == [
        "Image 2: Lesion 1, 0.02 ml",
        "Image 3: Liver, 0.09 ml; Lesion 2, 0.00 ml",
        "For research use only. Not for diagnosis.",
    ]


def test_frames_of_one_image(tmp_path: Path, shared_data: Path) -> None:
    stack = multi_frame_stack(shared_data)
    document = select(tmp_path, stack, labels_of(stack), captured=False)
    assert [one.ReferencedFrameNumber for one in selected(document)] == [2, 3]
    (series,) = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == 1
