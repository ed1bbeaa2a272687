"""Networks that are large for a CPU, on a small CT: MONAI's own run beside medseg's, in turns.

    python benchmarks/classes.py [--rounds 3] [--bundles wholebody,pediatric] [--ways 'plain;torch;auto;first']

wholebody: as wholeBody_ct_segmentation, a SegResNet of 32 filters and 105 classes at 3 mm, windows of 96^3, one at a
time, overlap 0.25, gaussian, statistics of the whole volume, labels inverted; a CT of 256x256x60. pediatric: as
pediatric_abdominal_ct_segmentation, a DynUNet of 4 classes at 1.5 x 1.5 x 3 mm, four windows at a time, overlap 0.75,
cropped to the foreground, probabilities inverted; 128x128x60. Weights are random, of labels that do not flicker.

plain: LoadImage, the bundle's transforms, SlidingWindowInferer, its transforms back. medseg, from the same files to
label planes, cleaned and measured: torch; auto, once engines have raced; first, where auto knows nothing yet. Each turn
is a process of its own; time begins when libraries and the network are loaded; memory (VmHWM) is that of the process.

A JSON line for each turn: seconds, seconds of the cores' time, MB; at the end medians and their share of the plain
way's, and how many voxels have the plain way's label.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import make_bundle as with_classes
from streaming import find_engine, write_mirrored  # beside this file; makes the checkout importable

from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import Ellipsoid, make_series
from medseg.inference.labels import LabelPlane
from tests.medseg.bundle import zoo

WINDOW = 96
WAYS = ("plain", "torch", "auto", "first")


def wholebody(folder: Path) -> None:
    zoo.wholebody_like(folder)
    network = {"init_filters": 32, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}
    grow(folder, network, {"roi_size": [WINDOW] * 3}, {"pixdim": [3.0] * 3})


def pediatric(folder: Path) -> None:
    with_classes(folder, 4, WINDOW, [4, 8], [1.5, 1.5, 3.0], inputs=1)
    strides = [1, 2, 2, 2, 2, [2, 2, 1]]
    network = {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 4,
        "kernel_size": [3] * 6,
        "strides": strides,
        "upsample_kernel_size": strides[1:],
        "norm_name": "instance",
        "deep_supervision": False,
        "res_block": True,
    }

    def crop(config: dict[str, Any]) -> None:
        config["network_def"] = network
        steps = config["preprocessing"]["transforms"]
        at = next(n for n, step in enumerate(steps) if step["_target_"] == "ScaleIntensityRanged")
        steps[at] |= {"a_min": -250, "a_max": 400}
        crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "mode": ["minimum"]}
        steps.insert(at + 1, crop)

    zoo.rewrite(folder, crop)
    grow(folder, {}, {"sw_batch_size": 4, "overlap": 0.75, "mode": "constant"}, {})


def grow(folder: Path, network: dict[str, Any], inferer: dict[str, Any], other: dict[str, Any]) -> None:
    def change(config: dict[str, Any]) -> None:
        config["network_def"] |= network
        config["inferer"] |= inferer
        config.update(other)
        torch.save(zoo.random_state(config["network_def"], 0, smooth=True), folder / "models/model.pt")

    zoo.rewrite(folder, change)


def make_study(folder: Path, size: int, spacing_mm: float) -> None:
    half = 0.48 * size * spacing_mm
    body = Ellipsoid((0, 0, 0), (half, half, 1000), 40)
    organs = [Ellipsoid((half / 3 * side, 0, 40 * side), (half / 4, half / 4, 60), 90) for side in (-1, 1)]
    once = make_series(shape=(60, size, size), spacing_mm=(4.8, spacing_mm, spacing_mm), objects=[body, *organs])
    write_mirrored(folder, once, 60, 4.8)


BUNDLES: dict[str, tuple[Callable[[Path], None], int, float]] = {
    "wholebody": (wholebody, 256, 1.95),
    "pediatric": (pediatric, 128, 1.4),
}


def plain(folder: Path, study: Path) -> tuple[LabelPlane, dict[str, Any]]:
    from monai.transforms import LoadImage

    from tests.acceptance.test_monai_parity import parsed, read_weights

    parser = parsed(folder)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(read_weights(folder))
    prepare, inferer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer")
    finish = parser.get_parsed_content("postprocessing")
    clock = Clock()
    image = LoadImage(reader="PydicomReader", ensure_channel_first=True, image_only=True)(str(study)).float()
    data = prepare({"image": image})
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network)[0]
    labels = finish(data)["pred"].as_tensor()[0].permute(2, 1, 0).numpy().astype(np.uint8)
    return labels, clock.taken()


def medseg_way(engine: str) -> Callable[[Path, Path], tuple[LabelPlane, dict[str, Any]]]:
    def way(folder: Path, study: Path) -> tuple[LabelPlane, dict[str, Any]]:
        from medseg.dicom.geometry import classify
        from medseg.dicom.series import StackSource
        from medseg.dicom.sources import read_series
        from medseg.inference.segment import NETWORKS, segment
        from medseg.inference.settings import Settings
        from tests.medseg.inference.phantoms import Collected

        bundle, sink = load_bundle(folder), Collected()
        NETWORKS.get(bundle, torch.device("cpu"))
        clock = Clock()
        (read,) = read_series(study)
        (stack,) = classify(read).stacks
        result = segment(StackSource(stack), bundle, sink, settings=Settings(device="cpu", engine=engine))
        return sink.labels, clock.taken() | {"engine": result.engine, "timings_s": dict(result.timings_s)}

    return way


class Clock:
    def __init__(self) -> None:
        self._begun, self._cpu = time.perf_counter(), self._used()

    def taken(self) -> dict[str, Any]:
        return {"seconds": round(time.perf_counter() - self._begun, 2), "cpu_s": round(self._used() - self._cpu, 2)}

    @staticmethod
    def _used() -> float:
        """By this process, and by those that it started and has waited for."""
        both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(one.ru_utime + one.ru_stime for one in both)


def one_turn(way: str, bundle: Path, study: Path, out: Path) -> None:
    """In a process of its own; prints what it took."""
    ways = {"plain": plain, "torch": medseg_way("torch"), "auto": medseg_way("auto"), "first": medseg_way("auto")}
    labels, facts = ways[way](bundle, study)
    told = Path("/proc/self/status").read_text("utf-8").splitlines()  # getrusage counts the program before this one too
    peak_mb = next(int(line.split()[1]) for line in told if line.startswith("VmHWM")) / 1024
    np.save(out, labels)
    print(json.dumps({"bundle": bundle.name, "way": way, **facts, "peak_mb": round(peak_mb)}))


def run(*turn: str | Path, cache: Path) -> dict[str, Any]:
    command, env = [sys.executable, __file__, "--turn", *turn], os.environ | {"MEDSEG_CACHE": str(cache)}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return dict(json.loads(said.splitlines()[-1]))


def compare(name: str, ways: list[str], rounds: int, work: Path) -> None:
    make, size, spacing_mm = BUNDLES[name]
    make(work / name)
    make_study(work / f"study {name}", size, spacing_mm)
    if "auto" in ways:
        find_engine(load_bundle(work / name), work / "cache")
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways:
            cache = work / (f"cache {name} {turn}" if way == "first" else "cache")
            found = run(way, work / name, work / f"study {name}", work / f"{way}.npy", cache=cache)
            turns[way].append(found)
            print(json.dumps(found), flush=True)
    keys = ("seconds", "cpu_s", "peak_mb")
    medians = {way: {key: statistics.median(turn[key] for turn in turns[way]) for key in keys} for way in ways}
    for way in ways:
        of_plain = {f"{key} of plain": round(medians[way][key] / medians[ways[0]][key], 3) for key in keys}
        same = float((np.load(work / f"{way}.npy") == np.load(work / f"{ways[0]}.npy")).mean())
        print(json.dumps({"bundle": name, "way": way, **medians[way], **of_plain, "same_labels": same}), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--bundles", default=",".join(BUNDLES))
    options.add_argument("--ways", default=";".join(WAYS), help="the first is what others are compared with")
    options.add_argument("--turn", nargs=4, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.turn:
        way, *paths = chosen.turn
        one_turn(way, *map(Path, paths))
        return
    with tempfile.TemporaryDirectory() as work:
        for name in chosen.bundles.split(","):
            compare(name, chosen.ways.split(";"), chosen.rounds, Path(work))
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
