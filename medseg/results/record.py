"""What a result looks like as JSON: `result.json`, and a line of `medseg infer --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from medseg.dicom.series import ChannelImage, LeftOut, Stack
from medseg.errors import ChannelsMissing, MedsegError
from medseg.inference.labels import RegionFound, SegmentationResult
from medseg.results.diameters import Diameters
from medseg.results.files import replacing
from medseg.results.findings import Finding, Lesion, lesion_uid
from medseg.results.identity import key_object_role
from medseg.results.provenance import Provenance
from medseg.texts import shown, to_json

UNITS: Final = {"CT": "HU"}
"""Of what modality's values are in. Those of MR have none; those of PET are in what the series says (PS3.3 C.8.9.1)."""

_OBJECTS = ("seg", "labelmap", "sr", "rtstruct")  # formats of one DICOM object


def result_record(
    result: SegmentationResult,
    findings: Sequence[Finding],
    provenance: Provenance,
    outputs: Mapping[str, Path],
    *,
    peak_rss_mb: float,
) -> dict[str, Any]:
    """The record of a result.

    findings: of each segment. outputs: format ("seg", "nifti" ...) to the file written.
    timings_s: seconds by stage and in total. flags, warnings: what a reader must know.
    """
    uids = {name: str(provenance.key.uid(name)) for name in _OBJECTS if name in outputs}
    if "ko" in outputs:
        uids["ko"] = str(provenance.key.uid(key_object_role(captured="sc" in outputs)))
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
                "mean": _rounded(found.within.mean),
                "sd": _rounded(found.within.sd),
                "centroid_mm": _point(found.within.centroid_mm),
                **_axes(finding.diameters),
                "lesions": [_lesion(lesion, finding, provenance) for lesion in finding.lesions],
            }
            for found, finding in zip(result.measured, findings, strict=True)
        ],
        "unit": unit_of(result.stack),
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
        "channels": channel_records(result.stack),
        "left_out": left_out_records(result.stack.left_out),
        "region": region_record(result.region),
    }


def _lesion(lesion: Lesion, finding: Finding, provenance: Provenance) -> dict[str, Any]:
    return {
        "number": lesion.number,
        "volume_ml": round(lesion.volume_ml, 6),
        "voxels": lesion.voxels,
        "mean": _rounded(lesion.within.mean),
        "sd": _rounded(lesion.within.sd),
        "centroid_mm": _point(lesion.within.centroid_mm),
        **_axes(lesion.diameters),
        "slice": lesion.k + 1,
        "tracking_uid": str(lesion_uid(provenance, finding.segment, lesion)),
    }


def _axes(diameters: Diameters | None) -> dict[str, float | None]:
    return {
        "long_axis_mm": None if diameters is None else round(diameters.long_mm, 3),
        "short_axis_mm": None if diameters is None else round(diameters.short_mm, 3),
    }


def region_record(region: RegionFound | None) -> dict[str, Any] | None:
    """Where the network looked; None where that was the whole image, as the bundle has it."""
    if region is None:
        return None
    return {
        "first_pass": region.first_pass,
        "mode": region.mode,
        "found": bool(region.boxes),
        "everywhere": region.everywhere,
        "share": round(region.share, 6),
        "boxes": [
            {
                "label": box.label,
                "low_mm": list(box.low_mm),
                "high_mm": list(box.high_mm),
                "slices": list(box.slices),
                "rows": list(box.rows),
                "columns": list(box.columns),
                "mirrored": list(box.mirrored),
            }
            for box in region.boxes
        ],
    }


def unit_of(stack: Stack) -> str | None:
    """Of the values that the slices of a stack are read in; None where they have none, or it is not known."""
    instance = stack.slices[0].instance
    if stack.series.modality == "PT" and instance is not None:
        return str(instance.header.get("Units", "")) or None
    return UNITS.get(stack.series.modality) if instance is not None else None


def _point(mm: tuple[float, float, float] | None) -> list[float] | None:
    return None if mm is None else [round(value, 3) for value in mm]


def _rounded(value: float | None) -> float | None:
    """To six digits, which is what values read from slices have."""
    return None if value is None else float(f"{value:.6g}")


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
        "error": {"code": error.code, "message": str(error)} | _channels_missing(error),
        "left_out": left_out_records(left_out),
    }


def _channels_missing(error: MedsegError) -> dict[str, Any]:
    if not isinstance(error, ChannelsMissing):
        return {}
    listed = [{"name": name, "series_uids": list(uids), "expected": fits} for name, uids, fits in error.channels]
    return {"channels": listed}


def channel_records(stack: Stack) -> dict[str, Any]:
    """The channels of an input of several series, by name; None for one that was not there."""
    return {channel.name: _channel(channel) for channel in stack.channels}


def _channel(channel: ChannelImage) -> dict[str, Any] | None:
    if channel.stack is None:
        return None
    return {
        "series_uid": channel.stack.series.series_uid,
        "phase": channel.stack.phase,
        "resampled": channel.matrix is not None,
        "overlap": round(channel.overlap, 4),
    }


def left_out_records(left_out: Iterable[LeftOut]) -> list[dict[str, Any]]:
    """What is in no result, as JSON."""
    return [{"code": one.code, "count": one.count, "of": one.of, "why": one.why, "lost": one.lost} for one in left_out]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Raises OutputNotWritable."""
    with replacing(path) as temporary:
        temporary.write_bytes(to_json(record, indent=2))
