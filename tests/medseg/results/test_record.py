"""result.json, and files that come whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.dicom.series import LeftOut
from medseg.errors import GeometryRefused, OutputNotWritable
from medseg.inference.labels import Flag, Within
from medseg.results.files import replacing
from medseg.results.record import refusal_record, result_record, unit_of, write_record
from tests.medseg.inference.whole import pieces
from tests.medseg.results.stacks import ABNORMAL, SEGMENTS, blobs, findings, made, make_result, make_stack


def test_the_record_of_a_result(tmp_path: Path) -> None:
    stack = make_stack()
    labels = blobs(stack.shape)
    result = make_result(
        stack, SEGMENTS, labels, flags=(Flag("edge", "touches the edge", 1),), warnings=("one slice was bridged",)
    )
    first, *others = result.measured
    first = replace(first, within=Within(40.1234567, 2.5, (1.00049, -2.0, 3.0)))
    measured, outputs = findings(stack, SEGMENTS, labels), {"seg": Path("out/seg.dcm")}
    record = result_record(replace(result, measured=(first, *others)), measured, made(), outputs, peak_rss_mb=123.456)
    assert list(record)[:18] == [
        "study_uid",
        "series_uid",
        "bundle",
        "bundle_version",
        "outputs",
        "segments",
        "unit",
        "flags",
        "timings_s",
        "peak_rss_mb",
        "device",
        "engine",
        "precision",
        "exact",
        "streamed",
        "streamed_reason",
        "warnings",
        "result_key",
    ]
    assert record["outputs"] == {"seg": "out/seg.dcm"}
    assert record["segments"][0] == {
        "number": 1,
        "label": "Liver",
        "volume_ml": round(int((labels == 1).sum()) * 0.002, 6),
        "voxels": int((labels == 1).sum()),
        "components": pieces(labels == 1)[1],
        "confidence": 0.9,
        "mean": 40.1235,
        "sd": 2.5,
        "centroid_mm": [1.0, -2.0, 3.0],
        "long_axis_mm": round(measured[0].diameters.long_mm, 3),
        "short_axis_mm": round(measured[0].diameters.short_mm, 3),
        "lesions": [],
    }
    assert record["unit"] == "HU"
    assert record["flags"] == [{"code": "edge", "message": "touches the edge", "segment": 1}]
    assert record["warnings"] == ["one slice was bridged"]
    assert record["sop_instance_uids"] == {"seg": made().key.uid("seg")}
    write_record(tmp_path / "result.json", record)
    assert json.loads((tmp_path / "result.json").read_text()) == record


def test_why_a_result_did_not_stream_is_told() -> None:
    stack = make_stack()
    result = make_result(stack, SEGMENTS, blobs(stack.shape), streamed=False, streamed_reason="percentiles")
    record = result_record(result, findings(stack, SEGMENTS, blobs(stack.shape)), made(), {}, peak_rss_mb=1)
    assert record["streamed"] is False
    assert record["streamed_reason"] == "percentiles"
    assert record["warnings"] == []


def test_lesions_are_listed() -> None:
    stack = make_stack()
    labels = np.zeros(stack.shape, np.uint8)
    labels[3, 2:4, 5] = labels[0, 9, 9] = 1
    segments = (replace(SEGMENTS[0], category=ABNORMAL),)
    record = result_record(
        make_result(stack, segments, labels), findings(stack, segments, labels), made(), {}, peak_rss_mb=1
    )
    larger, smaller = record["segments"][0]["lesions"]
    assert [larger[key] for key in ("number", "voxels", "slice", "long_axis_mm", "short_axis_mm")] == [
        1,
        2,
        4,
        2.0,
        1.0,
    ]
    assert (smaller["voxels"], smaller["tracking_uid"]) == (1, made().key.uid("segment.1.lesion.2"))


@pytest.mark.parametrize(("modality", "unit"), [("CT", "HU"), ("MR", None)])
def test_the_unit_of_values(modality: str, unit: str | None) -> None:
    assert unit_of(make_stack(modality=modality)) == unit


def test_the_record_of_a_refusal() -> None:
    error = GeometryRefused("1.2", "missing_slices", "no slice at 3 mm")
    lost = LeftOut("unreadable", 2, "files", "empty file")
    assert refusal_record("1", "1.2", "b", error, [lost]) == {
        "study_uid": "1",
        "series_uid": "1.2",
        "bundle": "b",
        "error": {"code": "missing_slices", "message": "series 1.2: no slice at 3 mm"},
        "left_out": [{"code": "unreadable", "count": 2, "of": "files", "why": "empty file", "lost": True}],
    }


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("second, cut")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_what_the_system_refuses_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="cannot write results"), replacing(tmp_path / "file" / "x"):
        pass
