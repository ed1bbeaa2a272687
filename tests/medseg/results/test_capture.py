"""Secondary captures: contours where the object is, by the captures' own positions; and what the second reader sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medseg.dicom.phantom import Box
from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.inference.planes import LabelSpool
from medseg.results.capture import CaptureWriter, image_numbers
from medseg.results.verify_capture import verify_captures
from tests.medseg.results.stacks import SEGMENTS, feed, made, make_result, make_stack, multi_frame_stack

BOX = Box((-8.0, 3.0, -3.0), (-2.0, 7.0, 3.0), 200.0)
"""At the patient's right and back: off the middle in each direction."""
OBLIQUE = ((0.8, 0.6, 0.0), (0.36, -0.48, -0.8))
Captures = tuple[Path, Stack, np.ndarray]


def capture(folder: Path, stack: Stack, labels: np.ndarray) -> list[Dataset]:
    """Write, verify, read."""
    spool = LabelSpool()
    feed(spool, stack, SEGMENTS, labels)
    writer = CaptureWriter(folder, spool, make_result(stack, SEGMENTS, labels), made())
    feed(writer, stack, SEGMENTS, labels)
    assert writer.written
    verify(folder, stack, labels, writer.window)
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def verify(folder: Path, stack: Stack, labels: np.ndarray, window: tuple[float, float] = (-160.0, 240.0)) -> None:
    verify_captures(folder, stack, SEGMENTS, labels, exclusive=labels.ndim == 3, window=window)


def of_box(stack: Stack) -> np.ndarray:
    return np.stack([part.read() > 150 for part in stack.slices]).astype(np.uint8)


@pytest.fixture
def written(tmp_path: Path) -> Captures:
    stack = make_stack(shape=(5, 24, 20), spacing_mm=(2.0, 1.0, 1.0), objects=[BOX])
    labels = of_box(stack)
    capture(tmp_path / "sc", stack, labels)
    return tmp_path / "sc", stack, labels


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"orientation": OBLIQUE},
        {"orientation": "sagittal", "spacing_mm": (2.0, 0.5, 0.7)},
        {"orientation": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "tilt_deg": 15.0},
        {"shape": (3, 400, 380), "spacing_mm": (2.0, 0.1, 0.1), "modality": "MR"},
    ],
    ids=["axial", "oblique", "sagittal", "tilted, feet first", "larger than the least size"],
)
def test_colour_lies_around_the_object(tmp_path: Path, how: dict[str, Any]) -> None:
    """In patient millimetres, by the attributes of each capture alone (PS3.3 C.7.6.2.1.1)."""
    stack = make_stack(**({"shape": (5, 24, 20), "spacing_mm": (2.0, 1.0, 1.0), "objects": [BOX]} | how))
    captures = capture(tmp_path / "sc", stack, of_box(stack))
    assert len(captures) == len(stack.slices)
    seen = 0
    for one, part in zip(captures, stack.slices, strict=True):
        assert one.SourceImageSequence[0].ReferencedSOPInstanceUID == part.instance.sop_instance_uid
        assert one.FrameOfReferenceUID == stack.frame_of_reference_uid
        colored = (np.abs(one.pixel_array.astype(int) - SEGMENTS[0].color).max(axis=-1)) <= 1
        colored[:, one.Columns - 230 :] = False  # the legend
        row, column = np.array(one.ImageOrientationPatient, float).reshape(2, 3)
        down, across = (float(value) for value in one.PixelSpacing)
        j, i = np.nonzero(colored)
        points = np.array(one.ImagePositionPatient, float) + np.outer(j * down, column) + np.outer(i * across, row)
        voxel = np.array([2.0, *part.plane.spacing_mm]).max()
        for beyond in (np.array(BOX.low_mm) - points, points - BOX.high_mm):
            assert (beyond < 1.1 * voxel).all()
        seen += len(points)
    assert seen > 100


def test_what_a_capture_says(tmp_path: Path) -> None:
    stack = make_stack(shape=(5, 24, 20), objects=[BOX], number=7)
    captures = capture(tmp_path / "sc", stack, of_box(stack))
    first = captures[0]
    assert (first.SeriesNumber, first.Modality, first.PatientOrientation) == (704, "OT", ["L", "P"])
    assert [one.InstanceNumber for one in captures] == [part.instance.header.InstanceNumber for part in stack.slices]
    assert len({one.SOPInstanceUID for one in captures}) == 5
    assert [path.name for path in sorted((tmp_path / "sc").iterdir())][:2] == ["0001.dcm", "0002.dcm"]
    assert len({one.SeriesInstanceUID for one in captures}) == 1


def test_frames_of_one_image_are_numbered_by_place(tmp_path: Path, shared_data: Path) -> None:
    stack = multi_frame_stack(shared_data)
    captures = capture(tmp_path / "sc", stack, np.pad(np.ones((3, 4, 5), np.uint8), ((0, 0), (16, 18), (9, 9))))
    assert image_numbers(stack) == [one.InstanceNumber for one in captures] == [1, 2, 3]
    assert [one.SourceImageSequence[0].ReferencedFrameNumber for one in captures] == [1, 2, 3]


def test_nothing_found_is_one_image_that_says_so(tmp_path: Path) -> None:
    stack = make_stack(shape=(5, 24, 20), objects=[BOX])
    (only,) = capture(tmp_path / "sc", stack, np.zeros(stack.shape, np.uint8))
    assert only.SourceImageSequence[0].ReferencedSOPInstanceUID == stack.slices[2].instance.sop_instance_uid


def test_segments_that_overlap(tmp_path: Path) -> None:
    stack = make_stack(shape=(3, 24, 20), objects=[BOX])
    labels = np.zeros((3, 3, 24, 20), np.uint8)
    labels[1, 0, 4:16, 3:15] = labels[1, 1, 8:22, 8:20] = labels[2, 2] = 1  # one of them fills its slice
    capture(tmp_path / "sc", stack, labels)


def _moved(one: Dataset) -> None:
    one.ImagePositionPatient[0] = float(one.ImagePositionPatient[0]) + 1.0


def _mirrored(one: Dataset) -> None:
    one.PixelData = np.ascontiguousarray(one.pixel_array[:, ::-1]).tobytes()


def _of_another_slice(one: Dataset) -> None:
    one.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2"


def _other_spacing(one: Dataset) -> None:
    one.PixelSpacing = [float(value) * 1.1 for value in one.PixelSpacing]


def _turned(one: Dataset) -> None:
    one.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def _in_the_air(one: Dataset) -> None:
    pixels = one.pixel_array.copy()
    pixels[100, 100] = (255, 0, 0)
    one.PixelData = pixels.tobytes()


@pytest.mark.parametrize("change", [_moved, _mirrored, _of_another_slice, _other_spacing, _turned, _in_the_air])
def test_what_differs_is_seen(written: Captures, change: Callable[[Dataset], None]) -> None:
    folder, stack, labels = written
    one = pydicom.dcmread(folder / "0003.dcm")
    change(one)
    one.save_as(folder / "0003.dcm")
    with pytest.raises(VerificationFailed):
        verify(folder, stack, labels)


def test_other_labels_and_a_missing_file_are_seen(written: Captures) -> None:
    folder, stack, labels = written
    for other in (labels[:, ::-1], labels[:, :, ::-1], labels * 0):
        with pytest.raises(VerificationFailed):
            verify(folder, stack, other)
    (folder / "0004.dcm").unlink()
    with pytest.raises(VerificationFailed, match=r"0004\.dcm: missing"):
        verify(folder, stack, labels)
