"""One window of 96^3 voxels through each engine, in turns, and what `--engine auto` takes.

    python benchmarks/windows.py [--rounds 5] [--networks unet,segresnet,dynunet] [--engines torch,openvino,...]
                                 [--precisions fp32,bf16] [--device cpu] > windows.jsonl

The networks are those that bundles of MONAI's model zoo name: the UNet of spleen_ct_segmentation (16 to 256 channels),
SegResNet with 32 filters, and DynUNet with 32 to 320 channels; weights are random. Every engine in every precision is
made first; then all take turns, so that what else the machine does falls on all alike.

A JSON line for each: `window_s` (median), `prepare_s`, `times_torch_fp32` and how far its scores are from torch's in
fp32. Then one for each network and precision: what the race of `medseg bench engines` takes, and its time over that of
the best (`auto_over_best`, which is to stay below 1.1). At the end the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.inference.engines.backends import BACKENDS, made
from medseg.inference.engines.case import FAILURES, Case, Run
from medseg.inference.engines.device import choose_device, runs_in

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from monai.networks.nets import DynUNet, SegResNet, UNet  # noqa: E402

from medseg.inference.engines.selection import AUTO, CLOSE, SAME_LABELS, choose  # noqa: E402

SIDE = 96


def unet() -> nn.Module:
    return UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")


def segresnet() -> nn.Module:
    return SegResNet(3, init_filters=32, in_channels=1, out_channels=2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))


def dynunet() -> nn.Module:
    strides = [1, 2, 2, 2, 2]
    return DynUNet(3, 1, 2, [3] * 5, strides, strides[1:], filters=[32, 64, 128, 256, 320], res_block=True)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"unet": unet, "segresnet": segresnet, "dynunet": dynunet}


def labels(scores: Tensor) -> Tensor:
    return scores.argmax(1)


def timed(run: Run, window: Tensor, device: torch.device) -> float:
    begin = time.perf_counter()
    run(window)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def measure(name: str, precisions: list[str], engines: list[str], device: torch.device, rounds: int) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(device).eval()
    window = torch.rand(1, 1, SIDE, SIDE, SIDE).to(device)
    runs: dict[tuple[str, str], Run] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            case = Case(network, device, precision, tuple(window.shape[1:]), 1, f"benchmark of {name}")
            for engine in engines:
                why = BACKENDS[engine].missing(device, precision)
                if why is None:
                    begin = time.perf_counter()
                    room = Path(folder) / f"{precision} {engine}"
                    room.mkdir()
                    try:
                        run = made(case, BACKENDS[engine], room)
                        scores = run(window).float()
                    except FAILURES as error:
                        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                if why is not None:
                    print(json.dumps({"network": name, "precision": precision, "engine": engine, "why": why}))
                    continue
                if not runs:
                    reference = scores
                runs[precision, engine] = run
                facts[precision, engine] = {
                    "prepare_s": round(time.perf_counter() - begin, 2),
                    "difference": float((scores - reference).abs().max() / reference.abs().max()),
                    "same_labels": float((labels(scores) == labels(reference)).double().mean()),
                }
        times: dict[tuple[str, str], list[float]] = {which: [] for which in runs}
        for _ in range(rounds):
            for which, run in runs.items():
                times[which].append(timed(run, window, device))
    medians = {which: statistics.median(taken) for which, taken in times.items()}
    base = medians["fp32", "torch"]
    for (precision, engine), seconds in medians.items():
        which = {"network": name, "precision": precision, "engine": engine, "window_s": round(seconds, 4)}
        ratio = {"times_torch_fp32": round(base / seconds, 2)}
        print(json.dumps(which | ratio | facts[precision, engine]), flush=True)
    for precision in precisions:
        case = Case(network, device, precision, tuple(window.shape[1:]), 1, f"benchmark of {name}")
        best = min(
            seconds for which, seconds in medians.items() if which[0] == precision and allowed(facts[which], precision)
        )
        # A job so long that all that were measured are worth a race.
        expected = 10**9 if "compile" in engines or "tensorrt" in engines else max(round(80 / base), 12)
        taken = choose(AUTO, case, window, labels, expected=expected, warn=print, waiting=lambda: None).engine
        over = round(medians[precision, taken] / best, 3)
        print(json.dumps({"network": name, "precision": precision, "auto": taken, "auto_over_best": over}), flush=True)


def allowed(facts: dict[str, float], precision: str) -> bool:
    """Whether `auto` may take it."""
    return facts["difference"] <= CLOSE if precision == "fp32" else facts["same_labels"] >= SAME_LABELS


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--networks", default=",".join(NETWORKS))
    options.add_argument(
        "--engines", default="torch,torch-channels-last,openvino", help="torch first; compile, tensorrt"
    )
    options.add_argument("--precisions", default="fp32,bf16", help="fp32 first")
    options.add_argument("--device", default="cpu")
    chosen = options.parse_args()
    device = choose_device(chosen.device)
    precisions = [one for one in chosen.precisions.split(",") if runs_in(one, device)]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MEDSEG_CACHE"] = cache
        for name in chosen.networks.split(","):
            measure(name, precisions, chosen.engines.split(","), device, chosen.rounds)
    print(json.dumps({"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
