"""Writing and verifying a SEG of 104 segments on 512x512x200: highdicom beside medseg, in turns.

    python benchmarks/seg_object.py [--rounds 5] [--slices 200] [--segments 104] > seg.jsonl

The labels are balls of many sizes all over the volume, no two of which overlap. highdicom: `Segmentation` and
`save_as`, then `segread` and its voxels. medseg: `SegWriter` fed plane by plane, then `verify_seg`. Every turn is a
process of its own.

One JSON line for each turn; at the end, for each way, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from streaming import ROOT  # beside this file; makes the checkout importable

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.results.seg import SegWriter, describe
from medseg.results.verify import verify_seg
from tests.medseg.results.stacks import ANATOMY, LIVER, made, make_stack

WAYS = ("highdicom", "medseg")


def make_labels(shape: tuple[int, int, int], segments: int) -> NDArray[np.uint8]:
    """(k, j, i): a ball for each segment, in a cell of its own."""
    random, labels = np.random.default_rng(0), np.zeros(shape, np.uint8)
    side = int(np.ceil(segments ** (1 / 3)))
    cell = [size // side for size in shape]
    k, j, i = np.ogrid[: cell[0], : cell[1], : cell[2]]
    away = sum(((axis - size / 2) / (size / 2)) ** 2 for axis, size in zip((k, j, i), cell, strict=True))
    for number in range(1, segments + 1):
        at = np.array(np.unravel_index(number - 1, (side,) * 3)) * cell
        place = tuple(slice(begin, begin + size) for begin, size in zip(at, cell, strict=True))
        labels[place][away < random.uniform(0.3, 1.0)] = number
    return labels


def make_segments(count: int) -> tuple[Segment, ...]:
    return tuple(
        Segment(number, f"Part {number}", ANATOMY, LIVER.type, None, None, (number, 128, 255 - number), None)
        for number in range(1, count + 1)
    )


def save_by_highdicom(
    sources: Sequence[Dataset], labels: NDArray[np.uint8], segments: Sequence[Segment], path: Path
) -> None:
    """As a script does it: the object is built, then saved. labels: (k, j, i)."""
    seg = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[describe(segment, made()) for segment in segments],
        series_instance_uid=highdicom.UID(),
        series_number=100,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="bench",
        manufacturer_model_name="bench",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(path)


def by_highdicom(stack: Stack, labels: NDArray[np.uint8], segments: tuple[Segment, ...], path: Path) -> list[float]:
    sources = [one.instance.header for one in stack.slices if one.instance is not None]
    begin = time.perf_counter()
    save_by_highdicom(sources, labels, segments, path)
    written = time.perf_counter()
    uids = [str(source.SOPInstanceUID) for source in sources]
    back = highdicom.seg.segread(path).get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert (back == labels).all()
    return [written - begin, time.perf_counter() - written]


def by_medseg(stack: Stack, labels: NDArray[np.uint8], segments: tuple[Segment, ...], path: Path) -> list[float]:
    begin = time.perf_counter()
    writer = SegWriter(path, made())
    writer.begin(stack, segments, exclusive=True)
    for k, plane in enumerate(labels):
        writer.plane(k, plane)
    writer.end()
    written = time.perf_counter()
    verify_seg(path, stack, segments, labels, exclusive=True)
    return [written - begin, time.perf_counter() - written]


def one_turn(way: str, slices: int, segments: int) -> None:
    """In a process of its own; prints what it took."""
    labels = make_labels((slices, 512, 512), segments)
    stack = make_stack(shape=(slices, 512, 512))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    before_mb = peak_mb()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "seg.dcm"
        write_s, read_s = (by_highdicom if way == "highdicom" else by_medseg)(
            stack, labels, make_segments(segments), path
        )
        size_mb = path.stat().st_size / 1e6
    figures = {"write_s": write_s, "read_s": read_s, "memory_grew_mb": peak_mb() - before_mb, "file_mb": size_mb}
    print(json.dumps({"way": way, **{name: round(value, 2) for name, value in figures.items()}}))


def peak_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--slices", type=int, default=200)
    options.add_argument("--segments", type=int, default=104)
    options.add_argument("--turn", choices=WAYS, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.turn:
        one_turn(chosen.turn, chosen.slices, chosen.segments)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    sizes = ["--slices", str(chosen.slices), "--segments", str(chosen.segments)]
    for _ in range(chosen.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *sizes, "--turn", way]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            found[way].append(json.loads(said))
            print(said, flush=True)
    for way, turns in found.items():
        medians = {
            name: round(statistics.median(turn[name] for turn in turns), 2) for name in turns[0] if name != "way"
        }
        print(json.dumps({"way": way, "median": medians}))
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg(), "root": ROOT.name}))


if __name__ == "__main__":
    main()
