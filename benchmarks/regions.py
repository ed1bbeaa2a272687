"""A small object in a large CT: a first pass says where the network looks, beside the full run, in turns.

    python benchmarks/regions.py [--rounds 3] [--slices 400] [--size 512] [--widths 8,16,32,64,64] [--window 96]
        [--steps 150] [--engine auto] > regions.jsonl
    python benchmarks/regions.py --rounds 1 --widths 32,64,128,256,320,320 --window 128 --steps 0 --engine openvino

The image is a phantom of 410 x 410 x 400 mm with noise (temporary files, deleted): a body, four organs, and a brighter
object of 20 mm. The network is nnU-Net's PlainConvUNet in a MONAI bundle at 1.5 mm (3 with --size 256), whose windows
overlap by one half. It learns to mark such objects in --steps windows of other phantoms, made on the way; with no steps
its weights are random, and smooth (`nnunet.smoothen`), and it has labels everywhere.

full: all windows. windows: those that meet the region, with a margin of 5 mm. box: the region cut out, with 40 mm,
since a box is all of the image that the network sees. The first pass is a threshold at 4 mm. Each turn is one call of
`segment` over all slices, with its own decoding; `rest_s` is all but that, and so holds the first pass; `infer_s` the
network's seconds of the wall, `cpu_s` the whole call's on all cores.

One JSON line a turn, the last with medians, each mode's share of the full run's inference, and how many labels are the
full run's: in the region of the windows, and of all voxels that either calls the object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet import smoothen
from numpy.typing import NDArray
from scipy import ndimage
from streaming import find_engine  # beside this file; makes the checkout importable
from torch import nn
from torch.nn import functional

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.bundle.region import ByThreshold, LookMode, Region, Statistics
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import Ellipsoid, make_affine, volume_to_series, write_series
from medseg.dicom.series import Stack, StackSource
from medseg.dicom.sources import find_instances, to_series
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.networks.plain_conv_unet import PlainConvUNet
from tests.medseg.bundle import zoo

FIELD_MM = (400.0, 410.0, 410.0)
MODEL_MM = 1.5  # where the image has 512 rows; more where it has fewer
PLACE_MM = (52.0, -31.0, 18.0)  # of the object
OBJECT_HU, NOISE = 130.0, 15.0
FIRST = ByThreshold(100.0, None, 4.0)
REGIONS = {
    "full": None,
    "windows": Region(FIRST, LookMode.WINDOWS, (5.0,) * 3, min_volume_ml=1.0, statistics=Statistics.IMAGE),
    "box": Region(FIRST, LookMode.BOX, (40.0,) * 3, min_volume_ml=1.0),
}
HU = (-100.0, 250.0)
LEARNED = 64  # voxels of the windows that the network learns from, at most


def make_bundle(folder: Path, widths: list[int], window: int, steps: int, model_mm: float) -> Bundle:
    stages = len(widths)
    shape: dict[str, Any] = {
        "widths": widths,
        "kernels": [[3] * 3] * stages,
        "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
        "convs": [2] * stages,
        "convs_up": [2] * (stages - 1),
    }
    zoo.spleen_like(folder, window=(window,) * 3)

    def change(config: dict[str, Any]) -> None:
        config["network_def"] = {"_target_": "medseg.networks.plain_conv_unet.PlainConvUNet", "spatial_dims": 3}
        config["network_def"] |= {"in_channels": 1, "out_channels": 2} | shape
        config["inferer"] |= {"mode": "gaussian", "sw_batch_size": 1}
        transforms = config["preprocessing"]["transforms"]
        next(one for one in transforms if one["_target_"] == "Spacingd")["pixdim"] = [model_mm] * 3
        scaling = next(one for one in transforms if one["_target_"] == "ScaleIntensityRanged")
        scaling |= {"a_min": HU[0], "a_max": HU[1]}

    zoo.rewrite(folder, change)
    torch.manual_seed(0)
    network = PlainConvUNet(3, 1, 2, **shape)
    if steps:
        learn(network, min(window, LEARNED), steps, model_mm)
    else:
        smoothen(network)
    torch.save(network.state_dict(), folder / "models/model.pt")
    return load_bundle(folder)


def learn(network: nn.Module, window: int, steps: int, model_mm: float) -> None:
    """To mark bright objects in windows of phantoms."""
    rng, optimizer = np.random.default_rng(1), torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        image, labels = sample(rng, window, model_mm)
        scores = network(image)
        found = scores.softmax(1)[:, 1]
        dice = 1 - (2 * (found * labels).sum() + 1) / (found.sum() + labels.sum() + 1)
        loss = dice + functional.cross_entropy(scores, labels.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", file=sys.stderr)


def sample(rng: np.random.Generator, window: int, model_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A window of a phantom (1, 1, *S), as the network sees it, and where there is an object in it (1, *S)."""
    grid = np.stack(np.meshgrid(*[np.arange(window) * model_mm] * 3, indexing="ij"), axis=-1)
    values = np.full((window,) * 3, -1000.0)
    edge = rng.normal(size=3)
    values[(grid - grid.mean()) @ (edge / np.linalg.norm(edge)) < rng.uniform(-40, 120)] = 40.0
    labels = np.zeros((window,) * 3)
    for hu, count in ((rng.uniform(50, 90), 2), (rng.uniform(115, 150), rng.integers(0, 4))):
        for _ in range(count):
            radii = rng.uniform(25, 60, 3) if hu < 100 else rng.uniform(6, 16, 3)
            inside = (((grid - rng.uniform(0, window * model_mm, 3)) / radii) ** 2).sum(-1) < 1
            values[inside & (values > -500)] = hu
            labels[inside & (values > -500)] = hu > 100
    values = ndimage.gaussian_filter(values, 0.5) + rng.normal(0, NOISE * rng.uniform(0.4, 1), values.shape)
    image = np.clip((values - HU[0]) / (HU[1] - HU[0]), 0, 1)
    return torch.from_numpy(image).float()[None, None], torch.from_numpy(labels).float()[None]


def make_stack(folder: Path, slices: int, size: int) -> Stack:
    shape = slices, size, size
    deep, high, wide = (field / count for field, count in zip(FIELD_MM, shape, strict=True))
    affine = make_affine("axial", (deep, high, wide), shape)
    body = Ellipsoid((0, 0, 0), (180, 130, 10_000), 40)
    organs = [
        Ellipsoid((70 * side, 30 * up, 90 * up), (45, 40, 60), 60 + 20 * up) for side in (-1, 1) for up in (-1, 1)
    ]
    small = Ellipsoid(PLACE_MM, (10, 10, 10), OBJECT_HU)
    rng, values = np.random.default_rng(0), np.empty(shape, np.int16)
    j, i = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    for k in range(slices):
        points = np.stack([np.full_like(j, k), j, i, np.ones_like(j)], axis=-1) @ affine[:3].T
        plane = np.full((size, size), -1000.0)
        for one in (body, *organs, small):
            plane[one.contains(points)] = one.value
        values[k] = np.rint(plane + rng.normal(0, NOISE, plane.shape)).clip(-1024, 3000)
    write_series(volume_to_series(values, affine, "CT", "Phantom"), folder)
    series = to_series(find_instances(folder).instances)
    (stack,) = classify(series).stacks
    return stack


def turn(stack: Stack, bundle: Bundle, name: str, engine: str) -> tuple[dict[str, Any], NDArray[np.uint8], Any]:
    windows = 0

    def count(event: Any) -> None:
        nonlocal windows
        if event.stage == "infer" and event.total is not None:
            windows = event.total  # at the end those of the second pass

    labels = LabelSpool()
    asked = replace(bundle, region=REGIONS[name])
    begin, cpu = time.perf_counter(), time.process_time()
    result = segment(
        StackSource(stack), asked, labels, settings=Settings(device="cpu", engine=engine), on_progress=count
    )
    total, cpu = time.perf_counter() - begin, time.process_time() - cpu
    facts = {
        "mode": name,
        "engine": result.engine,
        "total_s": round(total, 1),
        "read_s": round(result.timings_s["read"], 1),
        "infer_s": round(result.timings_s["infer"], 1),
        "rest_s": round(total - result.timings_s["read"], 1),
        "cpu_s": round(cpu, 1),
        "windows": windows,
        "share": 1.0 if result.region is None else round(result.region.share, 5),
        "peak_mb": peak_mb(),
    }
    return facts, np.stack(list(labels)), result.region


def peak_mb() -> int:
    """The process's highest so far: turns that come later have at least that of those before."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=400)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--widths", default="8,16,32,64,64")
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--engine", default="auto")
    asked = parser.parse_args()
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in REGIONS}
    found: dict[str, tuple[NDArray[np.uint8], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        widths = [int(width) for width in asked.widths.split(",")]
        bundle = make_bundle(Path(folder) / "phantom", widths, asked.window, asked.steps, MODEL_MM * 512 / asked.size)
        if asked.engine == "auto":
            find_engine(bundle, Path(folder) / "cache")
        stack = make_stack(Path(folder) / "study", asked.slices, asked.size)
        for _ in range(asked.rounds):
            for name in REGIONS:
                facts, labels, region = turn(stack, bundle, name, asked.engine)
                turns[name].append(facts)
                found[name] = labels, region
                print(json.dumps(facts), flush=True)
    print(json.dumps(summary(turns, found)))


def summary(turns: dict[str, list[dict[str, Any]]], found: dict[str, tuple[NDArray[np.uint8], Any]]) -> dict[str, Any]:
    def median(name: str, key: str) -> float:
        return statistics.median(facts[key] for facts in turns[name])

    (box,) = found["windows"][1].boxes
    place = tuple(slice(low, high + 1) for low, high in (box.slices, box.rows, box.columns))
    full = found["full"][0]
    made: dict[str, Any] = {"full_infer_s": median("full", "infer_s"), "object_voxels": int((full[place] == 1).sum())}
    for name in ("windows", "box"):
        labels = found[name][0]
        either = (labels[place] == 1) | (full[place] == 1)
        made[name] = {
            "rest_of_full_infer": round(median(name, "rest_s") / median("full", "infer_s"), 3),
            "infer_of_full_infer": round(median(name, "infer_s") / median("full", "infer_s"), 3),
            "cpu_of_full_cpu": round(median(name, "cpu_s") / median("full", "cpu_s"), 3),
            "same_in_region": round(float((labels[place] == full[place]).mean()), 6),
            "same_of_object": round(float((labels[place] == full[place])[either].mean()), 6) if either.any() else None,
            "same_in_image": round(float((labels == full).mean()), 6),
        }
    return made


if __name__ == "__main__":
    main()
