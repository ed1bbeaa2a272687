"""Stacks, labels and results for the tests of this folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset

from medseg.bundle.bundle import Code, Segment
from medseg.dicom.geometry import classify
from medseg.dicom.headers import read_instance
from medseg.dicom.instance import Instance, Plane, Vector
from medseg.dicom.phantom import make_series
from medseg.dicom.series import Stack
from medseg.dicom.sources import to_series
from medseg.inference.labels import LabelSink, Measured, SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.results.findings import Finding, findings_of
from medseg.results.identity import result_key
from medseg.results.provenance import Provenance
from tests.medseg.inference.whole import pieces

MADE_AT = datetime(2026, 3, 4, 5, 6, 7)
ANATOMY = Code("SCT", "123037004", "Anatomical Structure")
ABNORMAL = Code("SCT", "49755003", "Morphologically Abnormal Structure")
LEFT = Code("SCT", "7771000", "Left")
LIVER = Segment(1, "Liver", ANATOMY, Code("SCT", "10200004", "Liver"), None, None, (221, 130, 101), None)
SPLEEN = Segment(2, "Spleen", ANATOMY, Code("SCT", "78961009", "Spleen"), None, None, (157, 108, 162), None)
KIDNEY = Segment(3, "Left kidney", ANATOMY, Code("SCT", "64033007", "Kidney"), None, LEFT, (185, 102, 83), None)
SEGMENTS = (LIVER, SPLEEN, KIDNEY)


def made(seed: str = "a", **changes: Any) -> Provenance:
    facts: dict[str, Any] = {
        "key": result_key([seed], "0" * 64, {}),
        "bundle": "abdomen_ct",
        "bundle_version": "0.1.0",
        "bundle_digest": "0" * 64,
        "made_at": MADE_AT,
    }
    return Provenance(**(facts | changes))


def position_mm(plane: Plane, row: int, column: int) -> Vector:
    """Where a voxel of a slice lies, by its own geometry (PS3.3 C.7.6.2.1.1)."""
    down, along = plane.spacing_mm
    position: Vector = plane.position_mm + row * down * plane.column_direction + column * along * plane.row_direction
    return position


def make_stack(change: Callable[[Dataset], None] = lambda _: None, *, assume: bool = False, **phantom: Any) -> Stack:
    """The only stack of a phantom series; `change` alters each data set before it is encoded and read."""
    datasets = make_series(**({"shape": (6, 16, 20)} | phantom))
    for dataset in datasets:
        change(dataset)
    return to_stack([_encoded(dataset) for dataset in datasets], assume=assume)


def to_stack(files: Sequence[bytes], *, assume: bool = False) -> Stack:
    series = to_series([_instance(data, number) for number, data in enumerate(files)])
    verdict = classify(series, assume_frame_of_reference=assume)
    assert len(verdict.stacks) == 1, verdict.refusals
    return verdict.stacks[0]


def multi_frame_stack(shared_data: Path) -> Stack:
    """The real legacy-converted enhanced CT of 3 frames among dcmqi's examples.

    Its RescaleType is "US", so as a CT that is not in HU it is rightly refused; here it says HU.
    """
    folder = shared_data / "dicom" / "dcmqi" / "segmentations" / "23x38x3" / "multiframe"
    source = pydicom.dcmread(next(path for path in folder.iterdir() if path.suffix == ".dcm"))
    for groups in (*source.SharedFunctionalGroupsSequence, *source.PerFrameFunctionalGroupsSequence):
        for item in groups.get("PixelValueTransformationSequence", ()):
            item.RescaleType = "HU"
    return to_stack([_encoded(source)])


def _encoded(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _instance(data: bytes, number: int) -> Instance:
    return read_instance(lambda: io.BytesIO(data), f"file {number}")


def feed(sink: LabelSink, stack: Stack, segments: tuple[Segment, ...], labels: np.ndarray) -> None:
    """Give a label volume to a sink: (K, J, I) exclusive, or (K, segments, J, I) overlapping."""
    sink.begin(stack, segments, exclusive=labels.ndim == 3)
    for k, plane in enumerate(labels):
        sink.plane(k, plane)
    sink.end()


def save_source(stack: Stack, folder: Path) -> Path:
    """The stack's instances as files, for programs that read a folder."""
    folder.mkdir()
    for number, instance in enumerate(stack.series.instances):
        with instance.open() as stream:
            (folder / f"{number:04d}.dcm").write_bytes(stream.read())
    return folder


def blobs(shape: tuple[int, int, int], count: int = 3, seed: int = 0) -> np.ndarray:
    """Exclusive labels 1 .. count in random places, none on the last plane."""
    labels = np.random.default_rng(seed).integers(0, count + 1, shape).astype(np.uint8)
    labels[-1] = 0
    return labels


def findings(stack: Stack, segments: tuple[Segment, ...], labels: np.ndarray, most: int = 20) -> tuple[Finding, ...]:
    """What is measured of these labels."""
    spool = LabelSpool()
    feed(spool, stack, segments, labels)
    return findings_of(spool, most)


def make_result(stack: Stack, segments: tuple[Segment, ...], labels: np.ndarray, **changes: Any) -> SegmentationResult:
    """The result that a pipeline would report for these labels."""
    measured = []
    for number, segment in enumerate(segments):
        masks = labels == segment.number if labels.ndim == 3 else labels[:, number] != 0
        counts = masks.sum(axis=(1, 2))
        volume_ml = float(sum(n * stack.voxel_ml(k) for k, n in enumerate(counts)))
        measured.append(Measured(segment, int(counts.sum()), volume_ml, pieces(masks)[1], 0.9))
    facts: dict[str, Any] = {
        "stack": stack,
        "measured": tuple(measured),
        "flags": (),
        "warnings": (),
        "timings_s": {"read": 0.1, "total": 1.0},
        "device": "cpu",
        "engine": "torch",
        "precision": "fp32",
        "streamed": True,
        "streamed_reason": None,
    }
    return SegmentationResult(**(facts | changes))
