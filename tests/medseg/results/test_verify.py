"""Verification must catch what would show voxels in a wrong place, or none at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medseg.dicom.series import Stack
from medseg.errors import VerificationFailed
from medseg.results.seg import SegWriter
from medseg.results.verify import verify_seg
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, made, make_stack

Written = tuple[Path, Stack, np.ndarray]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    stack = make_stack(shape=(6, 15, 21))
    labels = blobs(stack.shape)
    path = tmp_path / "seg.dcm"
    feed(SegWriter(path, made()), stack, SEGMENTS, labels)
    return path, stack, labels


def _groups(seg: Dataset) -> Sequence[Dataset]:
    return seg.PerFrameFunctionalGroupsSequence


def _swap_frames(seg: Dataset) -> None:
    _groups(seg)[0], _groups(seg)[1] = _groups(seg)[1], _groups(seg)[0]


def _no_derivation(seg: Dataset) -> None:
    del _groups(seg)[3].DerivationImageSequence


def _two_sources(seg: Dataset) -> None:
    images = _groups(seg)[2].DerivationImageSequence[0].SourceImageSequence
    images.append(_groups(seg)[3].DerivationImageSequence[0].SourceImageSequence[0])


def _other_source(seg: Dataset) -> None:
    source = _groups(seg)[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = "1.2.3"


def _shifted(seg: Dataset) -> None:
    position = _groups(seg)[4].PlanePositionSequence[0].ImagePositionPatient
    position[2] = float(position[2]) + 0.01


def _swapped_sources(seg: Dataset) -> None:
    one, two = (_groups(seg)[n].DerivationImageSequence[0].SourceImageSequence[0] for n in (0, 1))
    one.ReferencedSOPInstanceUID, two.ReferencedSOPInstanceUID = (
        two.ReferencedSOPInstanceUID,
        one.ReferencedSOPInstanceUID,
    )


def _flipped_bit(seg: Dataset) -> None:
    data = bytearray(seg.PixelData)
    data[100] ^= 1 << 5
    seg.PixelData = bytes(data)


def _frame_left_out(seg: Dataset) -> None:
    del _groups(seg)[-1]
    seg.NumberOfFrames -= 1
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    data = np.packbits(bits[: seg.NumberOfFrames * 15 * 21], bitorder="little").tobytes()
    seg.PixelData = data + b"\0" * (len(data) % 2)


def _short_pixels(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[:-2]


def _other_segment(seg: Dataset) -> None:
    _groups(seg)[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2


def _other_orientation(seg: Dataset) -> None:
    seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, -1, 0]


def _other_spacing(seg: Dataset) -> None:
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [1.0, 1.01]


def _other_frame_of_reference(seg: Dataset) -> None:
    seg.FrameOfReferenceUID = "1.2.3"


def _other_study(seg: Dataset) -> None:
    seg.StudyInstanceUID = "1.2.3"


def _other_code(seg: Dataset) -> None:
    seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "1"


def _no_colour(seg: Dataset) -> None:
    del seg.SegmentSequence[1].RecommendedDisplayCIELabValue


def _no_label(seg: Dataset) -> None:
    seg.SegmentSequence[0].SegmentLabel = ""


@pytest.mark.parametrize(
    "harm",
    [
        _swap_frames,
        _no_derivation,
        _two_sources,
        _other_source,
        _shifted,
        _swapped_sources,
        _flipped_bit,
        _frame_left_out,
        _short_pixels,
        _other_segment,
        _other_orientation,
        _other_spacing,
        _other_frame_of_reference,
        _other_study,
        _other_code,
        _no_colour,
        _no_label,
    ],
)
def test_harm_is_found(written: Written, harm: Callable[[Dataset], object]) -> None:
    path, stack, labels = written
    seg = pydicom.dcmread(path)
    harm(seg)
    seg.save_as(path)
    with pytest.raises(VerificationFailed):
        verify_seg(path, stack, SEGMENTS, labels, exclusive=True)


def test_what_was_written_passes_also_after_another_program_saved_it(written: Written) -> None:
    path, stack, labels = written
    found = verify_seg(path, stack, SEGMENTS, labels, exclusive=True)
    assert found.voxels == {n: int((labels == n).sum()) for n in (1, 2, 3)}
    pydicom.dcmread(path).save_as(path)
    assert verify_seg(path, stack, SEGMENTS, labels, exclusive=True) == found


@pytest.mark.parametrize("change", [(0, 2, 2), (5, 0, 0)])
def test_labels_other_than_written_are_found(written: Written, change: tuple[int, int, int]) -> None:
    path, stack, labels = written
    labels[change] = labels[change] % 3 + 1
    with pytest.raises(VerificationFailed):
        verify_seg(path, stack, SEGMENTS, labels, exclusive=True)


def test_too_few_planes_are_found(written: Written) -> None:
    path, stack, labels = written
    with pytest.raises(VerificationFailed, match="5 label planes for 6 slices"):
        verify_seg(path, stack, SEGMENTS, labels[:5], exclusive=True)


def test_a_cut_file_is_found(written: Written) -> None:
    path, stack, labels = written
    for keep in (0.99, 0.5, 0.05, 0.0):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        with pytest.raises(VerificationFailed):
            verify_seg(path, stack, SEGMENTS, labels, exclusive=True)
