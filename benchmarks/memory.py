"""Peak memory of a whole job against the number of slices, and within a limit.

    python benchmarks/memory.py [--slices 200,400,800,1600] [--size 512] [--classes 2] [--spacing 1.5,1.5,2]
        [--window 96] [--channels 16,32,64,128,256] [--inputs 1] [--engine auto] [--limit GIB] [--plain SLICES]
        > memory.jsonl
    python benchmarks/memory.py --plot memory.jsonl docs/images/memory.svg docs/images/time.svg

The study is a phantom CT, there and back again until it has so many slices (temporary files, deleted), the network a
UNet with random weights whose labels do not flicker; engines have raced before. Each turn is a process of its own,
`medseg infer` with its default formats; its peak resident memory (VmHWM) is what it read of itself at its end. With
--plain the way of MONAI's tutorials runs beside it (`whole_job.plain`), up to so many slices: it takes 18 MB a slice.
With --limit the job is told that it has so much memory, its own process included: it then runs fewer windows at a time,
or refuses with its estimate (exit code 5). With --inputs the network has so many channels, each a series of the study:
every other one on the same grid as the first, those between on one of 0.7 times as many rows and columns; each has its
own mean and deviation.

One JSON line for each turn; the last gives how much the most slices take over the fewest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plots
import torch
from streaming import ROOT, find_engine, write_mirrored  # beside this file; makes the checkout importable

from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import Ellipsoid, make_series
from tests.medseg.bundle import zoo

STEP_MM = 1.5
# The peak that the system tells of a child counts its parent's pages too, from before it became another program.
TELL = """
import atexit, sys
def peak(path):
    with open("/proc/self/status") as told, open(path, "w") as out:
        out.write(next(line.split()[1] for line in told if line.startswith("VmHWM")))
atexit.register(peak, sys.argv.pop(1))
"""
INFER = f"""{TELL}
import resource
from medseg.inference import memory
limit = int(sys.argv.pop(1))
if limit:
    def left(device):
        pages = int(open("/proc/self/statm").read().split()[1])
        return limit - pages * resource.getpagesize()
    memory.free_bytes = left
from medseg.cli.app import make_app
make_app()()
"""
PLAIN = f"""{TELL}
from pathlib import Path
from whole_job import plain
plain(*map(Path, sys.argv[1:]))
"""


def make_bundle(
    folder: Path, classes: int, window: int, channels: list[int], spacing_mm: list[float], inputs: int
) -> Path:
    zoo.spleen_like(folder, window=(window,) * 3)

    def grow(config: dict[str, Any]) -> None:
        network = config["network_def"]
        network |= {"channels": channels, "strides": [2] * (len(channels) - 1)}
        network |= {"out_channels": classes, "in_channels": inputs}
        config["inferer"] |= {"mode": "gaussian", "sw_batch_size": 1}
        steps = config["preprocessing"]["transforms"]
        next(one for one in steps if one["_target_"] == "Spacingd")["pixdim"] = spacing_mm
        if inputs > 1:
            steps.append({"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True})
        torch.save(zoo.random_state(network, 0, smooth=True), folder / "models/model.pt")

    zoo.rewrite(folder, grow)
    path = folder / "configs/metadata.json"
    metadata = json.loads(path.read_text("utf-8"))
    names = {str(n): f"organ {n}" if n else "background" for n in range(classes)}
    metadata["network_data_format"]["outputs"]["pred"] |= {"channel_def": names, "num_channels": classes}
    if inputs > 1:
        names = {str(n): name_of(n) for n in range(inputs)}
        metadata["network_data_format"]["inputs"]["image"] |= {"channel_def": names, "num_channels": inputs}
    path.write_text(json.dumps(metadata), "utf-8")
    return folder


def make_study(folder: Path, slices: int, size: int, inputs: int) -> Path:
    folder.mkdir()
    body = Ellipsoid((0, 0, 0), (150, 110, 10_000), 40)
    organs = [Ellipsoid((60 * side, 0, 90 * side), (45, 45, 60), 90) for side in (-1, 1)]
    for n in range(inputs):
        across = size if n % 2 == 0 else round(0.7 * size)
        once = make_series(
            shape=(200, across, across),
            spacing_mm=(STEP_MM, 380 / across, 380 / across),
            objects=[body, *organs],
            description=name_of(n),
            number=n + 1,
        )
        write_mirrored(folder / name_of(n), once, slices, STEP_MM, number=n)
    return folder


def name_of(channel: int) -> str:
    return f"input {channel + 1}"


def run(program: str, *arguments: str) -> dict[str, Any]:
    """A Python program, its peak resident memory, and what it said."""
    begin = time.monotonic()
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    with tempfile.NamedTemporaryFile("r") as peak:
        command = [sys.executable, "-c", program, peak.name, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
        )
        peak_mb = round(int(peak.read()) / 1024)
    lines = (done.stdout + done.stderr).splitlines()
    told = [line for line in lines if "windows at a time" in line or "of memory needed" in line]
    return {
        "peak_mb": peak_mb,
        "seconds": round(time.monotonic() - begin, 1),
        "exit": done.returncode,
        "said": told or (lines[-3:] if done.returncode else []),
    }


def plot(measured: Path, memory: Path, time_s: Path) -> None:
    rows = [json.loads(line) for line in measured.read_text("utf-8").splitlines()]
    turns = [row for row in rows if row.get("exit") == 0]
    for path, key, title, unit in ((memory, "peak_mb", "Peak memory", "MB"), (time_s, "seconds", "Time", "s")):
        ways = {way: [(row["slices"], row[key]) for row in turns if row["way"] == way] for way in ("medseg", "plain")}
        path.write_text(plots.lines(f"{title} of a whole job, 512x512", "slices", unit, ways))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--slices", default="200,400,800,1600")
    options.add_argument("--size", type=int, default=512, help="rows and columns")
    options.add_argument("--classes", type=int, default=2, help="the background among them")
    options.add_argument("--spacing", default="1.5,1.5,2", help="mm, of the model's grid")
    options.add_argument("--window", type=int, default=96)
    options.add_argument("--channels", default="16,32,64,128,256", help="of the UNet, level by level")
    options.add_argument("--inputs", type=int, default=1, help="series that the network looks at together")
    options.add_argument("--engine", default="auto")
    options.add_argument("--limit", type=float, default=0, help="GiB")
    options.add_argument("--plain", type=int, default=0, metavar="SLICES")
    options.add_argument(
        "--plot", nargs=3, type=Path, metavar=("LINES", "MEMORY", "TIME"), help="draw what was measured"
    )
    chosen = options.parse_args()
    if chosen.plot:
        plot(*chosen.plot)
        return
    peaks: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        channels = [int(width) for width in chosen.channels.split(",")]
        spacing_mm = [float(mm) for mm in chosen.spacing.split(",")]
        bundle = make_bundle(work / "organs", chosen.classes, chosen.window, channels, spacing_mm, chosen.inputs)
        if chosen.engine == "auto":
            find_engine(load_bundle(bundle), work / "cache")
        for slices in map(int, chosen.slices.split(",")):
            study = make_study(work / f"study {slices}", slices, chosen.size, chosen.inputs)
            out = str(work / f"out {slices}")
            limit = str(int(chosen.limit * 2**30))
            how = ["--bundle", str(bundle), "--device", "cpu", "--engine", chosen.engine]
            asked = ["infer", str(study), "-o", out, *how]
            ways = {"medseg": (INFER, limit, *asked)}
            if slices <= chosen.plain:
                ways["plain"] = (PLAIN, str(bundle), str(study), out)
            for way, command in ways.items():
                found = run(*command)
                if found["exit"] == 0:
                    peaks.setdefault(way, []).append(found["peak_mb"])
                print(
                    json.dumps(
                        {"way": way, "slices": slices, "classes": chosen.classes, "inputs": chosen.inputs} | found
                    ),
                    flush=True,
                )
    for way, megabytes in peaks.items():
        print(json.dumps({"way": way, "grows": round(max(megabytes) / megabytes[0], 3)}))


if __name__ == "__main__":
    main()
