"""The demonstration on the MNI152 brain: right volumes, right places, objects that others can read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from tests.peers.programs import dciodvfy
from tests.waiting import wait_for

CENTRES_RAS_MM = {"left": (-27.0, -20.0, -16.0), "right": (27.0, -20.0, -16.0)}

pytestmark = pytest.mark.skipif(find_spec("nilearn") is None, reason="nilearn carries the MNI152 MRI")


def voxel_centres_ras_mm(seg: highdicom.seg.Segmentation) -> NDArray[np.float64]:
    """Of every voxel in any segment, (n, 3), from each frame's own position: the file alone is asked."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, right = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        j, i = np.nonzero(frame)
        first = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        points.append(first + np.outer(i * right, cosines[0]) + np.outer(j * down, cosines[1]))
    return np.concatenate(points) * [-1.0, -1.0, 1.0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Result folders of `medseg demo` by side."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "medseg", "demo"], cwd=folder, check=True, timeout=300)
    names = {"left": "1_hippocampus_t1_unet3d", "right": "2_hippocampus_t1_unet3d"}
    return {side: folder / "demo" / "results" / name for side, name in names.items()}


def test_both_sides_have_the_right_volume_in_the_right_place(results: dict[str, Path]) -> None:
    volumes = {}
    for side, folder in results.items():
        record = json.loads((folder / "result.json").read_text())
        volumes[side] = sum(segment["volume_ml"] for segment in record["segments"])
        points = voxel_centres_ras_mm(highdicom.seg.segread(folder / "seg.dcm"))
        assert np.linalg.norm(points.mean(axis=0) - CENTRES_RAS_MM[side]) <= 5.0
        assert len(points) / 1000 == pytest.approx(volumes[side], rel=1e-3)  # voxels of 1 mm
        assert dcmread(folder / "seg.dcm").ContentQualification == "RESEARCH"
    assert all(3.0 <= volume <= 5.0 for volume in volumes.values())
    assert abs(volumes["left"] / volumes["right"] - 1) <= 0.1


def test_every_format_is_there(results: dict[str, Path]) -> None:
    for folder in results.values():
        names = {path.name for path in folder.iterdir()}
        assert names == {"seg.dcm", "sr.dcm", "labels.nii.gz", "overlay.png", "result.json"}


def test_objects_conform(results: dict[str, Path]) -> None:
    for folder in results.values():
        assert dciodvfy(folder / "seg.dcm") == []
        assert dciodvfy(folder / "sr.dcm") == []


def test_the_round_trip_brings_the_same_objects(results: dict[str, Path]) -> None:
    folder = results["left"].parents[1] / "round-trip"
    came = {one.SOPInstanceUID: one for one in map(dcmread, (folder / "pacs").iterdir())}
    assert len(came) == 4
    for result in results.values():
        for name in ("seg.dcm", "sr.dcm"):
            expected = dcmread(result / name)
            assert came[expected.SOPInstanceUID].get("PixelData") == expected.get("PixelData")
    assert "delivery" in (folder / "serve.log").read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medseg", "demo"]
    log = tmp_path / "demo" / "round-trip" / "serve.log"
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL) as demo:
        wait_for("the gateway to listen", lambda: log.exists() and "listening" in log.read_text())
        assert len(group(demo.pid)) > 2
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(120) == 130
    wait_for("all of them to end", lambda: not group(demo.pid))


def group(leader: int) -> list[int]:
    """The processes of a process group, those that only wait to be reaped left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp, *_ = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found
