"""`medseg infer` over a cohort: one table, resumed, killed, shared, and the results of single runs."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import parquet
from pydicom import dcmread

from medseg.dicom.phantom import Box, make_series, write_series
from tests.acceptance.conftest import Medseg
from tests.acceptance.test_geometry import threshold_bundle
from tests.acceptance.test_results_places import volume
from tests.conftest import ROOT
from tests.waiting import wait_for

MARKS = {"patient", "day"}
TIMES = {"read_s", "prepare_s", "infer_s", "restore_s", "encode_s", "total_s"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


def make_cohort(folder: Path, studies: int) -> Path:
    """Studies with boxes of several sizes, two volumes, one study that fits nothing, and one that cannot be read."""
    for number in range(studies):
        box = Box((0.0, 0.0, 0.0), (4.0, 2.0 + number % 5, 4.0), 100.0)
        datasets = make_series(shape=(5, 12, 12), spacing_mm=(2.0, 1.0, 1.0), objects=[box], seed=number)
        write_series(datasets, folder / f"site{number % 3}" / f"s{number}")
    write_series(make_series(shape=(4, 8, 8), modality="MR", seed=studies), folder / "mr")
    volume(folder / "nifti" / "one.nii.gz", 5)
    volume(folder / "nifti" / "two.nii", 7)
    (folder / "broken").mkdir()
    (folder / "broken" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    """The table but for what is of the time that it took, and what is of the output alone."""
    with (out / "results.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES | MARKS} for row in csv.DictReader(file)
        ]


def failures(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="") as file:
        return {row["item"]: row["code"] for row in csv.DictReader(file)}


def started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medseg", "infer", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def done(out: Path) -> set[str]:
    return {path.stem for path in (out / ".medseg" / "finished").glob("*.json")}


def test_one_table_the_results_of_single_runs_and_nothing_done_twice(
    medseg: Medseg, bundle: Path, tmp_path: Path
) -> None:
    cohort, out = make_cohort(tmp_path / "in", 3), tmp_path / "out"
    ran = medseg("infer", cohort, "--bundle", bundle, "-o", out, "--format", "seg,sr,nifti", "--jobs", 1)
    assert ran.code == 1, ran.err
    assert sorted(set(failures(out).values())) == ["does_not_fit", "no_study", "unreadable_instance"]
    assert failures(out)["broken"] == "unreadable_instance"
    table = rows(out)
    assert len(table) == 3
    assert parquet.read_table(out / "results.parquet").num_rows == 3
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["results"], manifest["failed"]) == (3, 4)
    assert len(set(re.findall(r"src=\"data:image[^\"]*", (out / "report.html").read_text()))) == 3

    row = table[0]
    record = json.loads((out / row["folder"] / "result.json").read_text())
    (segment,) = record["segments"]
    assert float(row["volume_ml"]) == segment["volume_ml"]
    assert [float(row[f"centroid_{axis}_mm"]) for axis in "xyz"] == segment["centroid_mm"]
    assert (float(row["mean"]), row["unit"]) == (100.0, "HU")
    assert (row["study_uid"], row["seg_uid"]) == (record["study_uid"], record["sop_instance_uids"]["seg"])

    single = next(
        path.parent
        for path in cohort.rglob("*.dcm")
        if dcmread(path, force=True).get("StudyInstanceUID") == row["study_uid"]
    )
    assert medseg("infer", single, "--bundle", bundle, "-o", tmp_path / "single", "--format", "seg,sr,nifti").code == 0
    alone, together = (dcmread(path / "seg.dcm") for path in (tmp_path / "single" / "1_threshold", out / row["folder"]))
    assert alone.PixelData == together.PixelData
    assert alone.SOPInstanceUID == together.SOPInstanceUID

    before = {path: path.stat().st_mtime_ns for path in out.rglob("seg.dcm")}
    shutil.rmtree(out / table[1]["folder"])
    again = medseg("infer", cohort, "--bundle", bundle, "-o", out, "--format", "seg,sr,nifti", "--jobs", 1, "--json")
    assert again.code == 1
    assert len([record for record in again.records if "segments" in record]) == 3
    assert rows(out) == table
    after = {path: path.stat().st_mtime_ns for path in out.rglob("seg.dcm")}
    assert {path for path in before if before[path] != after[path]} == {out / table[1]["folder"] / "seg.dcm"}


def test_an_output_is_of_one_bundle_and_one_version(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "in"
    volume(cohort / "one.nii", 5)
    assert medseg("infer", cohort, "--bundle", bundle, "-o", "out").code == 0
    other = threshold_bundle(tmp_path / "other" / "threshold", {"_target_": "EnsureTyped", "keys": "image"})
    refused = medseg("infer", cohort, "--bundle", other, "-o", "out")
    assert refused.code == 2
    assert "bundle threshold has changed since" in refused.err
    assert rows(tmp_path / "out")[0]["voxels"] == "5"
    assert medseg("infer", cohort, "--bundle", other, "-o", "out", "--overwrite").code == 0
    (tmp_path / "out" / ".medseg" / "cohort.json").write_text('{"layout": 2, "secret": "00"}')
    refused = medseg("infer", cohort, "--bundle", other, "-o", "out")
    assert refused.code == 2
    assert "form 2, expected 1" in refused.err


def test_what_would_be_done(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    ran = medseg("infer", make_cohort(tmp_path / "in", 2), "--bundle", bundle, "-o", "out", "--dry-run", "--json")
    assert ran.code == 0
    assert len([record for record in ran.records if "folder" in record]) == 4
    assert sorted(record["error"]["code"] for record in ran.records if "error" in record) == [
        "does_not_fit",
        "unreadable_instance",
    ]
    assert not list((tmp_path / "out").rglob("result.json"))


def test_shards_are_the_whole(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    cohort = tmp_path / "in"
    for number in range(6):
        volume(cohort / f"v{number}.nii", number + 1)
    names = set()
    for number in (1, 2):
        ran = medseg("infer", cohort, "--bundle", bundle, "-o", "out", "--shard", f"{number}/2", "--dry-run", "--json")
        mine = {record["item"] for record in ran.records}
        assert not names & mine
        names |= mine
    assert names == {f"v{number}" for number in range(6)}
    assert medseg("infer", cohort, "--bundle", bundle, "-o", "out", "--shard", "3/2").code == 2


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(bundle: Path, tmp_path: Path) -> None:
    cohort, out, whole = make_cohort(tmp_path / "in", 24), tmp_path / "out", tmp_path / "whole"
    arguments = (cohort, "--bundle", bundle, "--jobs", 2, "-o")
    assert started(*arguments, whole).wait() == 1
    draw = random.Random(0)
    for _ in range(6):
        process, count = started(*arguments, out), len(done(out))
        wait_for("a study", lambda: len(done(out)) > count or process.poll() is not None)  # noqa: B023 - at once
        time.sleep(draw.uniform(0.0, 0.3))  # the moment is what is drawn
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = {path: path.stat().st_mtime_ns for path in (out / ".medseg" / "finished").glob("*.json")}
        rows(out) if (out / "results.csv").exists() else None
        assert len(before) >= count
    assert started(*arguments, out).wait() == 1
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert rows(out) == rows(whole)
    assert failures(out) == failures(whole)
    assert not list(out.glob("*/.*.part"))


@pytest.mark.slow
def test_two_runs_at_once_do_each_study_once(bundle: Path, tmp_path: Path) -> None:
    cohort, out, whole = make_cohort(tmp_path / "in", 24), tmp_path / "out", tmp_path / "whole"
    arguments = (cohort, "--bundle", bundle, "--jobs", 1, "-o")
    assert started(*arguments, whole).wait() == 1
    both = [started(*arguments, out) for _ in range(2)]
    assert [process.wait() for process in both] == [1, 1]
    assert rows(out) == rows(whole)
    assert failures(out) == failures(whole)


def test_a_table_that_cannot_be_read_is_one_sentence(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe\n")
    refused = medseg("infer", "list.csv", "--bundle", bundle, "-o", "out")
    assert refused.code == 3
    assert "list.csv: not a table that can be read" in refused.error
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_next_one_does_what_is_left(
    medseg: Medseg, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        volume(tmp_path / "in" / f"v{number}.nii", number + 1)
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe\n")
    full = tmp_path / "full"
    full.touch()
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(  # workers are processes of their own
        "import os, pathlib\n"
        "replace = pathlib.Path.replace\n"
        "def full(path, target):\n"
        f"    if target.name == 'v1.json' and os.path.exists({str(full)!r}):\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    return replace(path, target)\n"
        "pathlib.Path.replace = full\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'faults'}{os.pathsep}{ROOT}")
    asked = ("infer", "in", "in/v1.nii", "list.csv", "--bundle", bundle, "-o", "out", "--jobs", 1)
    stopped = medseg(*asked)
    assert stopped.code == 5
    assert "No space left on device" in stopped.error
    assert [row["item"] for row in rows(tmp_path / "out")] == ["v0"]
    assert not list((tmp_path / "out" / ".medseg").glob(".part-*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("labels.nii.gz")}

    full.unlink()
    ended = medseg(*asked)
    assert ended.code == 1
    assert [row["item"] for row in rows(tmp_path / "out")] == ["v0", "v1", "v2"]
    assert failures(tmp_path / "out") == {"list.csv": "input"}
    assert before and all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())
