"""A label map, read by highdicom, pydicom and our second reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset
from pydicom.pixels.decoders.rle import _rle_decode_frame
from pydicom.uid import RLELossless

from medseg.dicom.series import Stack
from medseg.errors import MayOverlap, VerificationFailed
from medseg.results.labelmap import LabelmapWriter
from medseg.results.rle import rle_frame
from medseg.results.verify_labelmap import verify_labelmap
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, made, make_stack

LabelMap = tuple[Path, Stack, np.ndarray]


@pytest.fixture
def written(tmp_path: Path) -> LabelMap:
    """The last plane is empty, rows and columns odd."""
    stack = make_stack(shape=(6, 15, 21), number=7)
    labels = blobs(stack.shape)
    feed(LabelmapWriter(tmp_path / "labelmap.dcm", made()), stack, SEGMENTS, labels)
    return tmp_path / "labelmap.dcm", stack, labels


@given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 400)), elements=st.sampled_from([0, 0, 0, 1, 255])))
@settings(deadline=None, max_examples=60)
def test_frames_are_rle_as_pydicom_reads_it(plane: np.ndarray) -> None:
    frame = rle_frame(plane)
    assert len(frame) % 2 == 0
    assert bytes(_rle_decode_frame(frame, *plane.shape, 1, 8)) == plane.tobytes()


def test_voxels_come_back_through_highdicom(written: LabelMap) -> None:
    path, stack, labels = written
    verify_labelmap(path, stack, SEGMENTS, labels)
    seg = highdicom.seg.segread(path)
    assert seg.segmentation_type is highdicom.seg.SegmentationTypeValues.LABELMAP
    assert (seg.file_meta.TransferSyntaxUID, seg.NumberOfFrames, seg.SeriesNumber) == (RLELossless, 5, 703)
    sources = [part.instance.sop_instance_uid for part in stack.slices]
    back = seg.get_pixels_by_source_instance(sources, combine_segments=True, assert_missing_frames_are_empty=True)
    assert (back == labels).all()
    assert (pydicom.dcmread(path).pixel_array == labels[:5]).all()
    assert [seg.get_segment_description(n).segment_label for n in (1, 2, 3)] == [one.label for one in SEGMENTS]
    assert [seg.get_segment_description(n).tracking_uid for n in (1, 2, 3)] == [
        made().key.uid(f"segment.{n}") for n in (1, 2, 3)
    ]


def test_nothing_found_gives_none_and_overlap_is_refused(tmp_path: Path) -> None:
    stack = make_stack()
    writer = LabelmapWriter(tmp_path / "labelmap.dcm", made())
    feed(writer, stack, SEGMENTS, np.zeros(stack.shape, np.uint8))
    assert (writer.written, list(tmp_path.iterdir())) == (False, [])
    with pytest.raises(MayOverlap, match="abdomen_ct: its segments may overlap"):
        writer.begin(stack, SEGMENTS, exclusive=False)


def _swapped(seg: Dataset) -> None:
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[0].DerivationImageSequence, groups[1].DerivationImageSequence = (
        groups[1].DerivationImageSequence,
        groups[0].DerivationImageSequence,
    )


def _voxel(seg: Dataset) -> None:
    data = bytearray(seg.PixelData)
    data[-12] ^= 1  # what the last run of the last frame is of
    seg.PixelData = bytes(data)


def _background(seg: Dataset) -> None:
    seg.PixelPaddingValue = 1


def _one_less(seg: Dataset) -> None:
    del seg.SegmentSequence[-1]


@pytest.mark.parametrize("change", [_swapped, _voxel, _background, _one_less])
def test_what_differs_is_seen(written: LabelMap, change: Callable[[Dataset], None]) -> None:
    path, stack, labels = written
    seg = pydicom.dcmread(path)
    change(seg)
    seg.save_as(path)
    with pytest.raises(VerificationFailed):
        verify_labelmap(path, stack, SEGMENTS, labels)


def test_other_labels_and_a_file_cut_short_are_seen(written: LabelMap) -> None:
    path, stack, labels = written
    for other in (labels[:, ::-1], labels[:, :, ::-1], labels[::-1], labels[:-1]):
        with pytest.raises(VerificationFailed):
            verify_labelmap(path, stack, SEGMENTS, other)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VerificationFailed):
        verify_labelmap(path, stack, SEGMENTS, labels)
