"""The tables of a cohort: results.csv and results.parquet, failures.csv, manifest.json (docs/cohorts.md).

Tidy: a row for each segment of each result. Rows are in order of items, series and segments, whatever order they were
done in. Each file is replaced as a whole, so that whoever reads it, or kills us, finds a table.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from medseg.cohort.finished import Failure, Finished
from medseg.cohort.report import report_page
from medseg.errors import OutputNotWritable
from medseg.texts import to_json, valid

#: Columns of results, in order, and what they hold (docs/cohorts.md).
RESULTS: Final[Mapping[str, pyarrow.DataType]] = {
    "item": pyarrow.string(),
    "patient": pyarrow.string(),
    "day": pyarrow.int64(),
    "study_uid": pyarrow.string(),
    "series_uid": pyarrow.string(),
    "phase": pyarrow.string(),
    "bundle": pyarrow.string(),
    "bundle_version": pyarrow.string(),
    "segment": pyarrow.int64(),
    "label": pyarrow.string(),
    "volume_ml": pyarrow.float64(),
    "voxels": pyarrow.int64(),
    "components": pyarrow.int64(),
    "mean": pyarrow.float64(),
    "sd": pyarrow.float64(),
    "unit": pyarrow.string(),
    "centroid_x_mm": pyarrow.float64(),
    "centroid_y_mm": pyarrow.float64(),
    "centroid_z_mm": pyarrow.float64(),
    "confidence": pyarrow.float64(),
    "flags": pyarrow.string(),
    "channels": pyarrow.string(),
    "folder": pyarrow.string(),
    "bids": pyarrow.string(),
    "result_key": pyarrow.string(),
    "bundle_digest": pyarrow.string(),
    "seg_uid": pyarrow.string(),
    "sr_uid": pyarrow.string(),
    "device": pyarrow.string(),
    "engine": pyarrow.string(),
    "precision": pyarrow.string(),
    "streamed": pyarrow.bool_(),
    "read_s": pyarrow.float64(),
    "prepare_s": pyarrow.float64(),
    "infer_s": pyarrow.float64(),
    "restore_s": pyarrow.float64(),
    "encode_s": pyarrow.float64(),
    "total_s": pyarrow.float64(),
}
FAILURES: Final = ("item", "study_uid", "series_uid", "bundle", "kind", "code", "exit_code", "message")


def write_tables(
    out: Path,
    items: Sequence[Finished],
    others: Sequence[tuple[str, Failure]],
    manifest: Mapping[str, Any],
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Everything that is known now. others: failures of inputs that gave no item. more: files besides, by name.

    Raises OutputNotWritable.
    """
    rows = [row for item in items for row in _rows(item)]
    columns = {name: pyarrow.array([row[name] for row in rows], kind) for name, kind in RESULTS.items()}
    table = pyarrow.table(columns)
    packed = io.BytesIO()
    parquet.write_table(table, packed)
    failures = [{"item": item.name} | asdict(failure) for item in items for failure in item.failures]
    failures += [{"item": name} | asdict(failure) for name, failure in others]
    try:
        _replace(out / "results.csv", _csv(list(RESULTS), rows))
        _replace(out / "results.parquet", packed.getvalue())
        _replace(out / "failures.csv", _csv(FAILURES, failures))
        _replace(out / "manifest.json", to_json(manifest, indent=2))
        for name, content in more.items():
            _replace(out / name, content)
        _replace(out / "report.html", report_page(out))
    except OSError as error:
        raise OutputNotWritable(out, error.strerror or str(error)) from error


def _rows(item: Finished) -> Iterator[dict[str, Any]]:
    for result in sorted(item.results, key=lambda one: str(one["folder"])):
        uids, timings = result["sop_instance_uids"], result["timings_s"]
        of_all = {
            "item": item.name,
            "patient": item.patient or None,
            "day": item.day,
            "seg_uid": uids.get("seg"),
            "sr_uid": uids.get("sr"),
            "channels": _channels(result["channels"]),
        } | {f"{stage}_s": seconds for stage, seconds in timings.items()}
        for segment in result["segments"]:
            centroid = segment.get("centroid_mm") or (None, None, None)
            values = result | segment | of_all
            values |= {"segment": segment["number"], "flags": _flags(result["flags"], segment["number"])}
            values["bids"] = result.get("bids", {}).get("files", {}).get(str(segment["number"]))
            values |= {f"centroid_{axis}_mm": value for axis, value in zip("xyz", centroid, strict=True)}
            yield {name: _text(values.get(name)) for name in RESULTS}


def _flags(flags: Iterable[Mapping[str, Any]], number: int) -> str:
    """Codes of the doubts about a segment, and of those about its whole result."""
    return ";".join(dict.fromkeys(flag["code"] for flag in flags if flag["segment"] in (None, number)))


def _channels(channels: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Name=series, of each."""
    said = (f"{name}={'' if channel is None else channel['series_uid']}" for name, channel in channels.items())
    return ";".join(said) or None


def _text(value: Any) -> Any:
    return valid(value) if isinstance(value, str) else value


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """UTF-8, comma, a head of names; what is not known is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    match value:
        case None:
            return ""
        case bool():
            return json.dumps(value)
        case float():
            return repr(value)
        case _:
            return value


def _replace(path: Path, content: bytes) -> None:
    """A file that is there whole, whoever else writes it. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
