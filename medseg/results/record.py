"""What a result looks like as JSON: `result.json`, and a line of `medseg infer --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medseg.dicom.series import LeftOut
from medseg.errors import MedsegError
from medseg.inference.labels import SegmentationResult
from medseg.results.files import replacing
from medseg.results.provenance import Provenance
from medseg.texts import shown, to_json


def result_record(
    result: SegmentationResult, provenance: Provenance, outputs: Mapping[str, Path], *, peak_rss_mb: float
) -> dict[str, Any]:
    """The record of a result.

    outputs: format ("seg", "sr", "nifti", "png") to the file written.
    timings_s: seconds by stage and in total. flags, warnings: what a reader must know.
    """
    uids = {name: str(provenance.key.uid(name)) for name in ("seg", "sr") if name in outputs}
    return {
        "study_uid": result.stack.series.study_uid,
        "series_uid": result.stack.series.series_uid,
        "bundle": provenance.bundle,
        "bundle_version": provenance.bundle_version,
        "outputs": {name: shown(path) for name, path in outputs.items()},
        "segments": [
            {
                "number": found.segment.number,
                "label": found.segment.label,
                "volume_ml": round(found.volume_ml, 6),
                "voxels": found.voxels,
                "components": found.components,
                "confidence": None if found.confidence is None else round(found.confidence, 4),
            }
            for found in result.measured
        ],
        "flags": [{"code": flag.code, "message": flag.message, "segment": flag.segment} for flag in result.flags],
        "timings_s": dict(result.timings_s),
        "peak_rss_mb": round(peak_rss_mb, 1),
        "device": result.device,
        "engine": result.engine,
        "precision": result.precision,
        "exact": result.exact,
        "streamed": result.streamed,
        "streamed_reason": result.streamed_reason,
        "warnings": list(result.warnings),
        "result_key": provenance.key.digest,
        "sop_instance_uids": uids,
        "bundle_digest": provenance.bundle_digest,
        "weights": provenance.weights,
        "phase": result.stack.phase,
        "left_out": left_out_records(result.stack.left_out),
    }


def refusal_record(
    study_uid: str | None,
    series_uid: str | None,
    bundle: str | None,
    error: MedsegError,
    left_out: Iterable[LeftOut] = (),
) -> dict[str, Any]:
    """The record of a series, or of a whole input, that gave no result."""
    return {
        "study_uid": study_uid,
        "series_uid": series_uid,
        "bundle": bundle,
        "error": {"code": error.code, "message": str(error)},
        "left_out": left_out_records(left_out),
    }


def left_out_records(left_out: Iterable[LeftOut]) -> list[dict[str, Any]]:
    """What is in no result, as JSON."""
    return [{"code": one.code, "count": one.count, "of": one.of, "why": one.why, "lost": one.lost} for one in left_out]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Raises OutputNotWritable."""
    with replacing(path) as temporary:
        temporary.write_bytes(to_json(record, indent=2))
