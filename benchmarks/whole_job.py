"""A whole job on a CT of 512x512x119, from files to results: MONAI and highdicom beside medseg, in turns.

    python benchmarks/whole_job.py [--rounds 5] [--ways 'plain;medseg fp32;...'] [--data PATIENT_DICOM.zip] > job.jsonl

The image is the IRCADb CT (a phantom of its size without --data), the network that of MONAI's spleen bundle with random
weights whose labels do not flicker: window 96^3, overlap 0.5, gaussian, at 1.5 x 1.5 x 2 mm.

plain: what a script does that is written after MONAI's tutorials: LoadImage (pydicom), the bundle's transforms,
SlidingWindowInferer, Invertd, argmax, highdicom's Segmentation, saved. medseg: `medseg.job.run`, which writes a SEG and
an SR and reads the SEG back to verify it; with the engine that was found for this bundle before, as by `medseg bench
engines` or by jobs before this one, or with torch. Every turn is a process of its own; time begins when its libraries,
highdicom's tables among them, and the network are loaded and have seen one window; memory is that of the whole process
at its highest.

One JSON line for each turn; at the end, for each way, medians and their share of the plain way's.
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from streaming import ROOT, make_bundle, make_study  # beside this file; makes the checkout importable

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.inference.engines.engine import Engine
from medseg.inference.segment import NETWORKS
from medseg.results.seg import read_tables

SLICES = 119
CHANNELS = [16, 32, 64, 128, 256]
NOISE = torch.rand(1, 1, 96, 96, 96, generator=torch.Generator().manual_seed(0))
RACE = "race"
WAYS = ("plain", "medseg fp32", "medseg fp32 torch", "medseg bf16", "medseg bf16 torch")


def plain(bundle: Path, study: Path, out: Path) -> dict[str, float]:
    import numpy as np
    import pydicom
    from monai.transforms import LoadImage
    from seg_object import save_by_highdicom

    from tests.acceptance.test_monai_parity import parsed, read_weights
    from tests.medseg.results.stacks import LIVER

    parser = parsed(bundle)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(read_weights(bundle))
    prepare, inferer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer")
    finish = parser.get_parsed_content("postprocessing")
    with torch.no_grad():
        network(NOISE)
    read_tables()
    clock = Clock()
    image = LoadImage(reader="PydicomReader", ensure_channel_first=True, image_only=True)(str(study)).float()
    sources = [pydicom.dcmread(path) for path in sorted(study.iterdir())]
    clock.mark("read")
    data = prepare({"image": image})
    clock.mark("prepare")
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network)[0]
    clock.mark("infer")
    labels = finish(data)["pred"].as_tensor()[0].permute(2, 1, 0).numpy().astype(np.uint8)
    clock.mark("restore")
    save_by_highdicom(sources, labels, [LIVER], out / "seg.dcm")
    clock.mark("encode")
    return clock.times


def medseg_way(precision: str, engine: str) -> Callable[[Path, Path, Path], dict[str, float]]:
    def way(folder: Path, study: Path, out: Path) -> dict[str, float]:
        from medseg.dicom.sources import find_instances, to_series
        from medseg.inference.settings import Settings
        from medseg.job.folder import Format
        from medseg.job.plan import plan
        from medseg.job.run import run

        bundle = replace(load_bundle(folder), precisions=("fp32", "bf16"))
        settings = Settings(device="cpu", precision=precision, engine=engine)
        make_engine(bundle, precision, engine)(NOISE)
        read_tables()
        clock = Clock()
        (job,) = plan([to_series(find_instances(study).instances)], [bundle], explicit=True).jobs
        outcome = run(job, out, frozenset({Format.SEG, Format.SR}), settings=settings)
        clock.mark("whole")
        return {**outcome.record["timings_s"], "engine": outcome.record["engine"], **clock.times}

    return way


def make_engine(bundle: Bundle, precision: str, engine: str) -> Engine:
    device = torch.device("cpu")
    return Engine(NETWORKS.get(bundle, device), bundle, device, precision, bundle.recipe.window.batch, engine=engine)


class Clock:
    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self.begun = self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.times[stage], self._last = round(now - self._last, 2), now
        self.times["total"] = round(now - self.begun, 2)


def one_turn(way: str, bundle: Path, study: Path, out: Path) -> None:
    """In a process of its own; prints what it took."""
    out.mkdir(parents=True)
    _, precision, engine = (*way.split(), "auto")[:3] if way != "plain" else ("", "", "")
    times = plain(bundle, study, out) if way == "plain" else medseg_way(precision, engine)(bundle, study, out)
    told = Path("/proc/self/status").read_text("utf-8").splitlines()  # getrusage counts the program before this one too
    peak_mb = next(int(line.split()[1]) for line in told if line.startswith("VmHWM")) / 1024
    print(json.dumps({"way": way, **times, "peak_rss_mb": round(peak_mb)}))


def races(bundle: Path) -> None:
    """Find the engines that jobs will take."""
    for precision in ("fp32", "bf16"):
        make_engine(replace(load_bundle(bundle), precisions=("fp32", "bf16")), precision, "auto").race(NOISE)


def run(*turn: str | Path) -> str:
    command = [sys.executable, __file__, "--turn", *turn]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--ways", default=";".join(WAYS))
    options.add_argument("--data", type=Path)
    options.add_argument("--turn", nargs=4, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.turn:
        way, *paths = chosen.turn
        if way == RACE:
            races(*map(Path, paths[:1]))
        else:
            one_turn(way, *map(Path, paths))
        return
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_bundle(work / "spleen", CHANNELS)
        make_study(work / "study", chosen.data, SLICES)
        os.environ["MEDSEG_CACHE"] = str(work / "cache")
        run(RACE, work / "spleen", work / "study", work)
        for turn in range(chosen.rounds):
            for way in chosen.ways.split(";"):
                said = run(way, work / "spleen", work / "study", work / f"{way} {turn}")
                facts: dict[str, Any] = json.loads(said.splitlines()[-1])
                seconds.setdefault(way, []).append(facts["total"])
                memory.setdefault(way, []).append(facts["peak_rss_mb"])
                print(json.dumps(facts), flush=True)
    base_s, base_mb = (statistics.median(found.get("plain", [float("nan")])) for found in (seconds, memory))
    for way in seconds:
        median_s, median_mb = statistics.median(seconds[way]), statistics.median(memory[way])
        shares = {"of_plain_time": round(median_s / base_s, 3), "of_plain_memory": round(median_mb / base_mb, 3)}
        print(json.dumps({"way": way, "median_s": median_s, "median_mb": median_mb, **shares}))
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg(), "root": ROOT.name}))


if __name__ == "__main__":
    main()
