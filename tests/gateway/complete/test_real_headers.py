"""Real headers."""

from __future__ import annotations

import random
from pathlib import Path

import pydicom
import pytest

from gateway.complete.decision import CompletionReason
from gateway.complete.events import (
    AssociationOpened,
    AssociationReleased,
    Image,
    InstanceArrived,
)
from tests.gateway.complete.traffic import (
    SERIES,
    STUDY,
    Timed,
    played,
)


def headers(folder: Path) -> list[pydicom.Dataset]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in files]


def as_sent(found: list[pydicom.Dataset]) -> list[Timed]:
    events: list[Timed] = [(0.0, AssociationOpened("a1", "CT01"))]
    for number, header in enumerate(found, 1):
        uid = f"{STUDY}.{header.InstanceNumber}"  # one of the sets comes without UIDs
        one = InstanceArrived(STUDY, SERIES, uid, Image.from_header(header, uid), "CT01", "a1")
        events.append((number / 10, one))
    return [*events, (events[-1][0], AssociationReleased("a1"))]


@pytest.mark.parametrize("folder", ["ct_totalseg_j2k", "mr_siemens_hfs_t1_sag"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_real_series(shared_data: Path, folder: str, shuffled: bool) -> None:
    found = headers(shared_data / "dicom" / folder)
    found.sort(key=lambda header: header.InstanceNumber)
    withheld = found[9]
    if shuffled:
        random.Random(7).shuffle(found)
    (job,) = played(as_sent(found)).jobs
    assert (job.reason, len(job.uids)) == (CompletionReason.QUIET, len(found))
    (holed,) = played(as_sent([header for header in found if header is not withheld])).jobs
    assert holed.reason is CompletionReason.QUIET_GAP


def test_real_study_with_images_in_acquisition(shared_data: Path) -> None:
    """A GE study on pydicom's DICOMDIR: series MR700 has 7 of 12 images, the single images are whole by themselves."""
    study = shared_data / "dicom" / "pydicom_files" / "dicomdirtests" / "98892003"
    found = headers(study / "MR700")
    (job,) = played(as_sent(found)).jobs
    assert (job.reason, len(job.uids)) == (CompletionReason.QUIET_GAP, 7)
    (single, *_) = headers(study / "MR1")
    assert played(as_sent([single])).jobs[0].reason is CompletionReason.ACQUISITION


def test_headers_with_nothing_or_nonsense_in_them() -> None:
    assert Image.from_header(pydicom.Dataset(), "d") == Image("d")
    odd = pydicom.Dataset()
    odd.ImageOrientationPatient = [1, 0, 0, 0, 1]
    odd.ImagePositionPatient = [1, 2, 3]
    odd.AcquisitionNumber = ""
    odd.ImagesInAcquisition = "0"
    assert Image.from_header(odd, "d") == Image("d")


def test_position_along_the_normal() -> None:
    header = pydicom.Dataset()
    header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # sagittal, normal to the right: (-1, 0, 0)
    header.ImagePositionPatient = [12.5, 3, 4]
    seen = Image.from_header(header, "d")
    assert seen.position_mm == -12.5
    header.ImagePositionPatient = [14.5, 8, 9]
    assert Image.from_header(header, "d").position_mm == -14.5
    assert seen.stack == Image.from_header(header, "d").stack
