"""Case 7: slices out of order, a middle slice missing, a tilted gantry, two orientations, a localizer, mixed spacing,
enhanced multi-frame, an instance of more than 500 MB.

The right series is segmented, or there is a refusal with a name; memory stays below its ceiling.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from medseg.dicom.phantom import make_series
from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import FakePacs
from tests.gateway.phantoms import ORGAN, new_phantom
from tests.gateway.receiving import (
    CT,
    RawPeer,
    associate_request,
    encode,
    make_ct,
    pdu,
    pdv,
    store_message,
    store_request,
)
from tests.waiting import wait_for

MEGABYTE = 1 << 20


def geometry(seed: int, slices: int = 12, **how: object) -> list[Dataset]:
    """A phantom as `new_phantom`, scanned as the arguments of `make_series` say."""
    scanned = make_series(spacing_mm=(3.0, 2.0, 2.0), shape=(slices, 32, 32), objects=[ORGAN], seed=seed, **how)  # type: ignore[arg-type]
    named = new_phantom(seed, len(scanned))
    for one, name in zip(scanned, named, strict=True):
        for keyword in ("Manufacturer", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(one, keyword, name[keyword].value)
    return scanned


def out_of_order() -> list[Dataset]:
    series = geometry(1)
    return [series[k] for k in np.random.default_rng(0).permutation(len(series))]


def two_orientations() -> list[Dataset]:
    axial, coronal = geometry(5), geometry(5, orientation="coronal")
    for one in coronal:
        one.SeriesInstanceUID, one.StudyInstanceUID = axial[0].SeriesInstanceUID, axial[0].StudyInstanceUID
        one.FrameOfReferenceUID = axial[0].FrameOfReferenceUID
        one.SOPInstanceUID += ".2"
    return axial + coronal


def localizer() -> list[Dataset]:
    series = geometry(6, slices=2)
    for one in series:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return series


def mixed_spacing() -> list[Dataset]:
    """Twelve slices, 3 mm apart, and then 9."""
    series = geometry(7, slices=24)
    return series[:12] + series[12::3]


# Each: the series, and the state of its job with the reason in its error or the flag in its result.
SCANS: dict[str, tuple[Callable[[], list[Dataset]], str, str]] = {
    "out of order": (out_of_order, "done", ""),
    "a slice missing": (lambda: geometry(2, missing=(6,)), "done", "bridged_gap"),
    "many slices missing": (lambda: geometry(3, missing=(4, 5, 6)), "cancelled", "missing"),
    "tilted gantry": (lambda: geometry(4, tilt_deg=12.0), "done", "gantry_tilt"),
    "two orientations": (two_orientations, "done", "mixed_orientation"),
    "localizer": (localizer, "cancelled", "localizer"),
    "mixed spacing": (mixed_spacing, "done", "spacing_change"),
}


def test_case_07_each_geometry_is_segmented_or_refused_by_name(gateway: Faulty, pacs: FakePacs) -> None:
    scans = {name: make() for name, (make, _, _) in SCANS.items()}
    for series in scans.values():
        assert set(store_all(gateway.port, series)) == {0}
    gateway.complete(*scans.values())
    ended = {name: gateway.ended(series) for name, series in scans.items()}
    found = {name: (job.state, job.error) for name, job in ended.items()}
    assert {name: state for name, (state, _) in found.items()} == {name: state for name, (_, state, _) in SCANS.items()}
    for name, (_, state, said) in SCANS.items():
        if state == "cancelled":
            assert said in found[name][1].lower(), found[name]
        else:
            (result,) = gateway.current_results(scans[name])
            assert said in json.dumps(json.loads(result.facts)).lower()
            study = scans[name][0].StudyInstanceUID
            wait_for("the result", lambda study=study: any(one.StudyInstanceUID == study for one in pacs.of("SR")))


def enhanced(series: list[Dataset]) -> Dataset:
    """The slices of a series as one enhanced CT instance (PS3.3 A.38)."""
    first = series[0]
    one = make_ct(SOPClassUID=EnhancedCTImageStorage, Modality="CT", Manufacturer="Phantom")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
        setattr(one, keyword, first[keyword].value)
    one.SOPInstanceUID = f"{first.SeriesInstanceUID}.9"
    one.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    one.NumberOfFrames = len(series)
    one.PixelRepresentation = first.PixelRepresentation
    one.PixelData = b"".join(slice_.PixelData for slice_ in series)
    one["PixelData"].VR = "OW"
    shared, orientation, measures, transformation = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    transformation.RescaleIntercept, transformation.RescaleSlope = first.RescaleIntercept, first.RescaleSlope
    transformation.RescaleType = "HU"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.PixelValueTransformationSequence = [transformation]
    one.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for slice_ in series:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = slice_.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    one.PerFrameFunctionalGroupsSequence = frames
    return one


def test_case_07_an_enhanced_instance_is_segmented_frame_by_frame(gateway: Faulty) -> None:
    series = geometry(8)
    one = enhanced(series)
    request = associate_request(contexts=[(1, str(EnhancedCTImageStorage), "1.2.840.10008.1.2.1")])
    with RawPeer(gateway.port, request) as peer:
        peer.send(store_message(str(EnhancedCTImageStorage), str(one.SOPInstanceUID), encode(one)))
        assert peer.read_status() == 0
        peer.release()
    gateway.complete([one])
    assert gateway.ended([one]).state == "done", gateway.ended([one]).error
    (result,) = gateway.current_results([one])
    assert json.loads(result.facts)[0]["segments"][0]["voxels"] > 0


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had, MB."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_case_07_an_instance_of_600_mb(gateway: Faulty) -> None:
    """It streams to the disk: the receiver needs no more memory for it than for any other."""
    one = make_ct(Modality="OT")
    head = encode(one)[: -len(one.PixelData) - 12]
    length = 600 * MEGABYTE
    receivers = [pid for name, pid in gateway.pids().items() if name.startswith("receiver")]
    before_mb = max(map(peak_mb, receivers))
    with RawPeer(gateway.port, associate_request(), timeout_s=300) as peer:
        peer.send(pdu(pdv(1, 3, store_request(CT, str(one.SOPInstanceUID)))))
        element = b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little")
        peer.send(pdu(pdv(1, 0, head + element)))
        piece = pdu(pdv(1, 0, bytes(100 * 1024)))
        for _ in range(length // (100 * 1024) - 1):
            peer.send(piece)
        peer.send(pdu(pdv(1, 2, bytes(100 * 1024))))
        assert peer.read_status() == 0
        peer.release()
    (row,) = gateway.instances([one])
    assert (gateway.spool / row.path).stat().st_size > length
    assert max(map(peak_mb, receivers)) < before_mb + 100
    (gateway.spool / row.path).unlink()
