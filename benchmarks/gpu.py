"""Jobs on a GPU: MONAI's plain way beside medseg, nnU-Net's results, and two studies at once.

    python benchmarks/gpu.py [--device cuda] [--checks monai,vectors,nnunet,two] [--rounds 1] [--slices 120]
        [--size 512] [--narrow 1] [--vectors FOLDER] > gpu.jsonl

monai     a phantom CT of 1.6 x 0.75 x 0.75 mm through bundles as MONAI's zoo has them, with random weights whose labels
          are smooth: spleen_ct_segmentation (UNet, 2 classes) and wholeBody_ct_segmentation (SegResNet, 105 classes).
          plain: MONAI's transforms, SlidingWindowInferer on the device, Invertd, argmax. medseg: `segment`, in fp32
          and as precision fp16 has it.
vectors   folders of nnU-Net with labels that nnUNetPredictor made of them on a CPU (--vectors, as `nnunet_tiny` lays
          them out; left out where that is not there), in fp32 and in fp16, in which nnU-Net runs on a GPU.
nnunet    nnU-Net's default network, mirrored along three axes: mirror images as one batch beside one after the other.
two       two processes with a study each, at the same time, beside one alone.

Each way runs once before it is measured, and then --rounds times; --narrow divides the networks' widths. One JSON line
for each turn: seconds, the device's memory at its highest, and how far labels are the same (`same`, and the least Dice
over labels of 50 voxels or more, `dice`). At the end medians and what each comparison comes to; ends with 1 where a bar
is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nnunet import make_folder  # beside this file
from numpy.typing import NDArray
from streaming import ROOT, make_bundle  # makes the checkout importable

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.dicom.series import Stack, StackSource
from medseg.inference.engines.ladder import MemoryLadder
from medseg.inference.segment import NETWORKS, segment
from medseg.inference.settings import Settings
from medseg.job.plan import plan_nifti
from tests.medseg.bundle import zoo
from tests.medseg.inference.phantoms import Collected, blobs, make_stack, monai_labels

Labels = NDArray[np.uint8]
SPACING_MM = (1.6, 0.75, 0.75)
SAME = {"fp32": 0.9999, "fp16": 0.99}  # share of voxels with the same label
MANY = 105
WIDTHS = (16, 32, 64, 128, 256)
SETTINGS = ("ct_aniso default", "mr_regions default", "cascade 3d_cascade_fullres")


@dataclass(frozen=True)
class Turn:
    """What a way found, and what that took. peak_mb: of the device; warnings: of the result."""

    labels: Labels
    seconds: float
    peak_mb: int | None
    warnings: tuple[str, ...] = ()


def measured(device: torch.device, way: Callable[[], tuple[Labels, tuple[str, ...]]]) -> Turn:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    labels, warnings = way()
    if on_gpu:
        torch.cuda.synchronize(device)
    peak = round(torch.cuda.max_memory_reserved(device) / 2**20) if on_gpu else None
    return Turn(labels, round(time.perf_counter() - begin, 3), peak, warnings)


def by_medseg(stack: Stack, bundle: Bundle, device: torch.device, precision: str) -> tuple[Labels, tuple[str, ...]]:
    sink = Collected()
    settings = Settings(device=str(device), precision=precision, engine="torch")
    result = segment(StackSource(stack), replace(bundle, precisions=("fp32", "fp16")), sink, settings=settings)
    return sink.labels, result.warnings


def alike(found: Labels, expected: Labels) -> dict[str, float]:
    dice = [1.0]
    for label in np.unique(expected)[1:]:
        mine, its = found == label, expected == label
        if its.sum() >= 50:
            dice.append(2 * float((mine & its).sum()) / float(mine.sum() + its.sum()))
    return {"same": round(float(np.mean(found == expected)), 6), "dice": round(min(dice), 5)}


class Report:
    """Lines as they come, medians at the end, and bars that were missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self._turns: dict[tuple[str, str], list[Turn]] = {}

    def turn(self, check: str, way: str, turn: Turn, **facts: Any) -> None:
        self._turns.setdefault((check, way), []).append(turn)
        line = {"check": check, "way": way, "seconds": turn.seconds, "peak_mb": turn.peak_mb, **facts}
        print(json.dumps(line | ({"warnings": turn.warnings} if turn.warnings else {})), flush=True)

    def bar(self, held: bool, what: str) -> None:
        if not held:
            self.missed.append(what)

    def end(self, device: torch.device) -> None:
        medians = {
            which: (statistics.median(turn.seconds for turn in turns), turns[-1].peak_mb)
            for which, turns in self._turns.items()
        }
        for (check, way), (seconds, peak_mb) in medians.items():
            base_s, base_mb = next(found for which, found in medians.items() if which[0] == check)
            share = {"time": round(seconds / base_s, 3), "memory": peak_mb and base_mb and round(peak_mb / base_mb, 3)}
            print(json.dumps({"check": check, "way": way, "median_s": seconds, "share_of_first": share}))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
        print(json.dumps({"device": name, "torch": torch.__version__, "missed": self.missed, "root": ROOT.name}))


def zoo_bundles(work: Path, narrow: int) -> Iterator[tuple[str, Bundle]]:
    yield "spleen", make_bundle(work / "spleen", [max(width // narrow, 2) for width in WIDTHS])
    folder = zoo.wholebody_like(work / "wholebody", classes=MANY)

    def grow(config: dict[str, Any]) -> None:
        network = config["network_def"]
        network |= {"init_filters": max(32 // narrow, 8), "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}
        torch.save(zoo.random_state(network, 0, smooth=True), folder / "models/model.pt")

    zoo.rewrite(folder, grow)
    yield "wholebody", load_bundle(folder)


def compare_with_monai(report: Report, chosen: argparse.Namespace, device: torch.device, work: Path) -> None:
    voxels = blobs((chosen.slices, chosen.size, chosen.size), smooth=6.0)
    stack = make_stack(voxels, spacing_mm=SPACING_MM)
    for name, bundle in zoo_bundles(work, chosen.narrow):

        def plain(bundle: Bundle = bundle) -> tuple[Labels, tuple[str, ...]]:
            try:
                return monai_labels(voxels, stack, bundle.recipe, NETWORKS.get(bundle, device), str(device))[0], ()
            except torch.cuda.OutOfMemoryError:
                return np.zeros(0, np.uint8), ("out of memory",)

        for number in range(chosen.rounds + 1):
            base = measured(device, plain)
            if number:
                report.turn(f"monai {name}", "plain", base)
            for precision, least in SAME.items():
                if device.type == "cpu" and precision != "fp32":
                    continue
                turn = measured(device, lambda: by_medseg(stack, bundle, device, precision))  # noqa: B023 - at once
                facts = alike(turn.labels, base.labels) if base.labels.size else {}
                if number:
                    report.turn(f"monai {name}", f"medseg {precision}", turn, **facts)
                    report.bar(facts.get("same", 1) >= least, f"monai {name} {precision}: {facts}")


def compare_with_vectors(report: Report, vectors: Path, device: torch.device, work: Path) -> None:
    sets = json.loads((vectors / "settings.json").read_text())["sets"]
    for which in SETTINGS:
        name, setting = which.split()
        how = sets[name][setting]
        options = {"folds": how["folds"], "step": how["tile_step_size"], "gaussian": how["use_gaussian"]}
        options |= {} if how["use_mirroring"] else {"mirroring": False}
        models = sorted((vectors / name).glob("model*"))
        for model in models:
            shutil.copytree(model, work / name / model.name, copy_function=shutil.copyfile)
        folder = work / name / next(one.name for one in models if one.name in ("model", f"model_{setting}"))
        (folder / "configs").mkdir()
        (folder / "configs/metadata.json").write_text(json.dumps({"medseg": {"nnunet": options}}))
        bundle = load_bundle(folder)
        for case in ("a", "b"):
            stack = plan_nifti(vectors / name / "inputs" / f"{case}_0000.nii.gz", [bundle], explicit=True).jobs[0].stack
            expected = np.asarray(nibabel.load(vectors / name / "expected" / setting / f"{case}.nii.gz").dataobj)
            for precision, least in SAME.items():
                if device.type == "cpu" and precision != "fp32":
                    continue
                turn = measured(device, lambda: by_medseg(stack, bundle, device, precision))  # noqa: B023 - at once
                facts = alike(turn.labels, expected.transpose().astype(np.uint8))
                report.turn(f"vectors {which} {case}", f"medseg {precision}", turn, **facts)
                report.bar(facts["same"] >= least, f"vectors {which} {case} {precision}: {facts}")


def nnunet_bundle(work: Path, chosen: argparse.Namespace) -> Bundle:
    widths = [max(width // chosen.narrow, 2) for width in (32, 64, 128, 256, 320, 320)]
    window = 128 if chosen.narrow == 1 else 64
    return replace(load_bundle(make_folder(work / "nnunet", widths, window, 25)), flips=(0, 1, 2))


def compare_mirrored(report: Report, chosen: argparse.Namespace, device: torch.device, work: Path) -> None:
    """Mirror images as one batch, and one after the other."""
    bundle = nnunet_bundle(work, chosen)
    stack = make_stack(blobs((chosen.slices, chosen.size, chosen.size), smooth=6.0), spacing_mm=SPACING_MM)
    at_most = MemoryLadder.at_most
    for number in range(chosen.rounds + 1):
        turns: dict[str, Turn] = {}
        for way, most in (("one by one", 1), ("together", 8)):
            MemoryLadder.at_most = lambda ladder, batch, mirrored=1: at_most(  # type: ignore[method-assign]
                ladder,
                batch,
                min(mirrored, most),  # noqa: B023 - at once
            )
            turns[way] = measured(device, lambda: by_medseg(stack, bundle, device, "fp32"))
            if number:
                report.turn("nnunet mirrored", way, turns[way])
        facts = alike(turns["together"].labels, turns["one by one"].labels)
        report.bar(facts["same"] >= SAME["fp32"], f"nnunet mirrored together: {facts}")
    MemoryLadder.at_most = at_most  # type: ignore[method-assign]


def one_study(folder: Path, slices: int, size: int, device: str) -> Turn:
    """In a process of its own."""
    stack = make_stack(blobs((slices, size, size), smooth=6.0), spacing_mm=SPACING_MM)
    where = torch.device(device)
    return measured(where, lambda: by_medseg(stack, load_bundle(folder), where, "fp32"))


def run_two(report: Report, chosen: argparse.Namespace, folder: Path) -> None:
    make_bundle(folder, [max(width // chosen.narrow, 2) for width in WIDTHS])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        study = folder, chosen.slices, chosen.size, chosen.device
        alone = pool.submit(one_study, *study).result()
        both = [job.result() for job in [pool.submit(one_study, *study) for _ in range(2)]]
    report.turn("two", "alone", alone)
    for turn in both:
        facts = alike(turn.labels, alone.labels)
        report.turn("two", "at once", turn, **facts)
        report.bar(facts["same"] >= SAME["fp32"], f"two at once: {facts}")
        report.bar(not any("out of memory" in warning for warning in turn.warnings), f"two at once: {turn.warnings}")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--device", default="cuda:0")
    options.add_argument("--checks", default="monai,vectors,nnunet,two")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--slices", type=int, default=120)
    options.add_argument("--size", type=int, default=512, help="rows and columns")
    options.add_argument("--narrow", type=int, default=1, help="divides the widths of networks")
    shared = os.environ.get("MEDSEG_SHARED_DATA", ROOT.parent / "shared" / "data")
    options.add_argument("--vectors", type=Path, default=Path(shared) / "nnunet_tiny")
    chosen = options.parse_args()
    device, report = torch.device(chosen.device), Report()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        checks = chosen.checks.split(",")
        if "monai" in checks:
            compare_with_monai(report, chosen, device, work / "monai")
        if "vectors" in checks and chosen.vectors.is_dir():
            compare_with_vectors(report, chosen.vectors, device, work / "vectors")
        if "nnunet" in checks:
            compare_mirrored(report, chosen, device, work)
        if "two" in checks:
            run_two(report, chosen, work / "two")
    report.end(device)
    sys.exit(bool(report.missed))


if __name__ == "__main__":
    main()
