"""The network families beside each other: what they learn in the same short time, and what a window costs.

    python benchmarks/families.py train --data DIR [--minutes 2] [--work build/families] [--only pspnet-glioma]
    python benchmarks/families.py cost [--rounds 5]

`train`: every family learns two data sets, DIR/msd_hippocampus in 3D and DIR/lgg_flair in 2D, as `medseg train` does,
and is scored on the cases set aside as `medseg evaluate` does. Each is its small network, `SMALL`, with the same
window, batch, loss, optimizer and augmentation; and each has the same seconds of one core: steps are timed, and as many
are planned as there is time for, so that the learning rate of each comes down to zero. As many processes as cores, each
with one thread. No clean-up of the labels, no test-time flips. A run that was killed goes on where it was when the same
command is given again (`--work` keeps its bundles and checkpoints).

`cost`: seconds of process time for one window, all families in turns, fp32, one core: the paper's size in 2D, the small
one in 2D and in 3D.

Both print JSON lines, and put their table (and `train` its picture) into docs/networks.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from medseg import networks  # noqa: E402 - found from the checkout
from medseg.bundle.bundle import Bundle  # noqa: E402
from medseg.bundle.load import INFERENCE, load_bundle  # noqa: E402
from medseg.bundle.network import build_network  # noqa: E402
from medseg.bundle.template import new_bundle  # noqa: E402
from medseg.training.data import LabelledCase, find_cases, split  # noqa: E402
from medseg.training.evaluate import AS_SHIPPED, Masks, evaluate_cases, segment_nifti  # noqa: E402
from medseg.training.fit import TrainingProgress, fit  # noqa: E402
from medseg.training.plan import CONFIG  # noqa: E402
from medseg.training.prepare import intensity  # noqa: E402
from medseg.training.scores import WHOLE, summarise  # noqa: E402
from medseg.training.train import RECORD, load, plan_of, train  # noqa: E402

PAGE = ROOT / "docs" / "networks.md"
PICTURE = ROOT / "docs" / "images" / "families.svg"

FAMILIES = {  # class: name on the page
    "FCN": "FCN-8s",
    "SegNet": "SegNet",
    "UNet2015": "U-Net",
    "PSPNet": "PSPNet",
    "DeepLabV3Plus": "DeepLab v3+",
    "MeshNet": "MeshNet",
}
TIMED_STEPS = 10  # after two that warm up


@dataclass(frozen=True)
class Task:
    """A data set, and what is particular about learning it. Windows hold a whole case, or a whole slice."""

    name: str
    title: str
    folder: str
    dims: int
    segments: tuple[str, ...]
    window: tuple[int, ...]
    plan: Mapping[str, Any]
    augment: Mapping[str, Any]


TASKS = (
    Task(
        "hippocampus",
        "Hippocampus, T1, 3D",
        "msd_hippocampus",
        3,
        ("Anterior hippocampus", "Posterior hippocampus"),
        (48, 64, 48),
        {"batch_size": 2},
        {},
    ),
    Task(
        "glioma",
        "Glioma, FLAIR, 2D",
        "lgg_flair",
        2,
        ("FLAIR abnormality",),
        (256, 256),
        {"batch_size": 4, "held_out": {"modulus": 5, "remainder": 4}, "slices": {"labelled": 0.6}},
        {"flip_axes": [0]},
    ),
)
SAME = {"warmup_steps": 30, "ema_decay": 0.98, "checkpoint_every": 25, "precision": "fp32"}
SAME_AUGMENT = {"foreground": 0.0}  # the window holds everything: nothing to centre it on
LEARNING_RATE = 0.002


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(family: str, task: Task, data: Path, seconds: float, folder: Path) -> dict[str, Any]:
    """Train one family on one data set, or go on with it, and score it. What is finished is read from its file."""
    result = folder / "result.json"
    if result.is_file():
        return dict(json.loads(result.read_text()))
    if not folder.is_dir():
        begin(family, task, data, seconds, folder)
    untrained = load_bundle(folder, trained=False)
    plan = plan_of(untrained)
    if not (folder / RECORD).is_file():
        torch.manual_seed(plan.seed)
        train(untrained, data, build_network(untrained), plan, out=folder, resume=True, overwrite=True)
    record = json.loads((folder / RECORD).read_text())
    found = {
        "data": task.name,
        "network": FAMILIES[family],
        "parameters": sum(p.numel() for p in build_network(untrained).parameters()),
        "steps": plan.steps,
        "training_cpu_s": record["cpu_s"],
        **scored(load_bundle(folder), data),
    }
    result.write_text(json.dumps(found) + "\n")
    return found


def begin(family: str, task: Task, data: Path, seconds: float, folder: Path) -> None:
    """Write the bundle, with as many steps in its plan as there are seconds for."""
    making = folder.with_suffix(".part")
    shutil.rmtree(making, ignore_errors=True)
    new_bundle(making, family, task.dims, segments=task.segments, modality="MR")
    inference, training = making / INFERENCE, making / CONFIG
    config = json.loads(inference.read_text())
    config["network_def"] |= getattr(networks, family).SMALL
    for step in config["preprocessing"]["transforms"]:
        if step["_target_"] == "Spacingd":
            step["pixdim"] = [1.0, 1.0, 1.0 if task.dims == 3 else -1.0]
    config["inferer"] |= {"roi_size": task.window}
    inference.write_text(json.dumps(config, indent=4) + "\n")
    plan = json.loads(training.read_text()) | {"window": task.window, **SAME, **task.plan}
    plan["augment"] |= {**SAME_AUGMENT, **task.augment}
    plan["optimizer"] |= {"lr": LEARNING_RATE}
    plan["loss"] |= {"include_background": False}  # else it is content with little for long
    plan["steps"] = 1000  # until a step is timed
    training.write_text(json.dumps(plan))
    plan["steps"] = max(1, round(seconds / step_s(load_bundle(making, trained=False), data)))
    training.write_text(json.dumps(plan, indent=4) + "\n")
    making.rename(folder)


def step_s(bundle: Bundle, data: Path) -> float:
    """Seconds of process time that a training step takes."""
    plan = replace(plan_of(bundle), steps=2 + TIMED_STEPS)
    cases, _ = split(find_cases(data), plan.held_out)
    samples = load(cases[: plan.batch_size * plan.steps], bundle)
    ends: list[float] = []

    def note(_: TrainingProgress) -> None:
        ends.append(time.process_time())

    fit(build_network(bundle), samples, bundle.out_channels, intensity(bundle.recipe.steps), plan, on_step=note)
    return (ends[-1] - ends[1]) / TIMED_STEPS


def scored(bundle: Bundle, data: Path) -> dict[str, Any]:
    """Dice and distance over the cases set aside, the mean of a case's structures counting once; seconds per study."""
    _, aside = split(find_cases(data), plan_of(bundle).held_out)
    study_s: list[float] = []

    def predict(case: LabelledCase) -> Masks:
        began = time.process_time()
        masks = segment_nifti(case.image, bundle, AS_SHIPPED)
        study_s.append(time.process_time() - began)
        return masks

    evaluation = evaluate_cases(aside, bundle.segments, predict)
    by_case = {
        case: [one for name, one in scores.items() if name != WHOLE] for case, scores in evaluation.cases.items()
    }
    dice = {case: statistics.mean(one.dice for one in scores) for case, scores in by_case.items()}
    distances = [statistics.mean(one.hausdorff95_mm for one in scores) for scores in by_case.values()]
    overlap = summarise(list(dice.values()), higher_is_better=True)
    distance = summarise(distances, higher_is_better=False).mean
    return {
        "dice": round(overlap.mean, 4),
        "dice_ci95": [round(overlap.low, 4), round(overlap.high, 4)],
        "dice_median": round(overlap.median, 4),
        "dice_by_case": {case: round(value, 4) for case, value in dice.items()},
        "hausdorff95_mm": None if math.isnan(distance) else round(distance, 2),
        "cases_with_nothing_found": sum(map(math.isnan, distances)),
        "study_cpu_s": round(statistics.median(study_s), 3),
    }


def learn_all(data: Path, seconds: float, work: Path, only: str) -> None:
    jobs = [
        (family, task, data / task.folder, seconds, work / f"{family.lower()}-{task.name}")
        for family, task in itertools.product(FAMILIES, TASKS)
        if only in f"{family.lower()}-{task.name}"
    ]
    work.mkdir(parents=True, exist_ok=True)
    fresh = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores, mp_context=fresh, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = []
        for job in [pool.submit(learn, *arguments) for arguments in jobs]:
            results.append(job.result())
            print(json.dumps(results[-1]), flush=True)
    if not only:
        PICTURE.write_text(picture(results), "utf-8")
        write_between("train", learned_table(results))


def learned_table(results: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for task in TASKS:
        parts.append(
            f"**{task.title}**\n\n"
            "| network | Dice, mean | 95 % interval | median | 95 % Hausdorff, mean (mm) | parameters | steps "
            "| s per study |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- |"
        )
        for one in (one for one in results if one["data"] == task.name):
            low, high = one["dice_ci95"]
            nothing = one["cases_with_nothing_found"]
            distance = "-" if one["hausdorff95_mm"] is None else f"{one['hausdorff95_mm']:.1f}"
            distance += f" (nothing found in {nothing})" if nothing else ""
            parts.append(
                f"| {one['network']} | {one['dice']:.3f} | {low:.3f} - {high:.3f} | {one['dice_median']:.3f} | "
                f"{distance} | {one['parameters']:,} | {one['steps']:,} | {one['study_cpu_s']:.2f} |"
            )
        parts.append("")
    return "\n".join(parts).rstrip()


def picture(results: Sequence[Mapping[str, Any]]) -> str:
    """Mean Dice with its interval, and every case as a faint dot: SVG, a panel a data set."""
    left, width, top, row, gap = 110, 300, 50, 30, 60
    names = list(dict.fromkeys(one["network"] for one in results))
    height = top + row * len(names) + 40
    total = left + len(TASKS) * (width + gap)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" font-family="sans-serif" '
        'font-size="13" fill="#222">',
        f'<rect width="{total}" height="{height}" fill="#fff"/>',
    ]
    for column, task in enumerate(TASKS):
        start = left + column * (width + gap)

        def at(dice: float, start: int = start) -> float:
            return round(start + width * dice, 1)

        lines.append(f'<text x="{start}" y="24" font-weight="bold">{task.title}: Dice</text>')
        for tick in np.linspace(0, 1, 6):
            x, bottom = at(float(tick)), height - 34
            lines.append(f'<line x1="{x}" y1="{top - 12}" x2="{x}" y2="{bottom}" stroke="#ddd"/>')
            lines.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle" fill="#666">{tick:.1f}</text>')
        of_task = {one["network"]: one for one in results if one["data"] == task.name}
        for line, name in enumerate(names):
            one, y = of_task[name], top + row * line + 6
            if column == 0:
                lines.append(f'<text x="{left - 12}" y="{y + 5}" text-anchor="end">{name}</text>')
            dots = "".join(
                f'<circle cx="{at(dice)}" cy="{y}" r="3.5" fill="#4878a8" fill-opacity="0.25"/>'
                for dice in one["dice_by_case"].values()
            )
            low, high = one["dice_ci95"]
            lines.append(dots)
            lines.append(
                f'<line x1="{at(low)}" y1="{y}" x2="{at(high)}" y2="{y}" stroke="#b03a2e" stroke-width="2.5"/>'
            )
            lines.append(f'<circle cx="{at(one["dice"])}" cy="{y}" r="5" fill="#b03a2e"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


# --- what a window costs ----------------------------------------------------------------------------------------------

WINDOWS = {  # column: dimensions, small, window
    "paper's size, 256²": (2, False, (256, 256)),
    "`SMALL`, 256²": (2, True, (256, 256)),
    "`SMALL`, 96³": (3, True, (96, 96, 96)),
}
OTHERS = {"DeepLabV3": "DeepLab v3"}
REFERENCE = "U-Net"


def cost_all(rounds: int) -> None:
    names = dict(sorted((FAMILIES | OTHERS).items(), key=lambda item: list(networks.__all__).index(item[0])))
    medians: dict[str, dict[str, float]] = {}
    for column, (dims, small, window) in WINDOWS.items():
        medians[column] = cost(names, dims, small, window, rounds)
        for name, seconds in medians[column].items():
            ratio = seconds / medians[column][REFERENCE]
            print(json.dumps({"window": column, "network": name, "s": round(seconds, 4), "to_unet": round(ratio, 2)}))
    head = "| network | " + " | ".join(f"{column}: ms | to U-Net" for column in WINDOWS) + " |"
    rows = [head, "| --- |" + " --- |" * (2 * len(WINDOWS))]
    for name in names.values():
        cells = [f"{1000 * of[name]:.0f} | {of[name] / of[REFERENCE]:.2f}" for of in medians.values()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    write_between("cost", "\n".join(rows))


def cost(names: Mapping[str, str], dims: int, small: bool, window: Sequence[int], rounds: int) -> dict[str, float]:
    """Median seconds of process time of a window (1, 1, *window) by network, one after the other in every round."""
    torch.set_num_threads(1)
    image = torch.randn((1, 1, *window))
    taken: dict[str, list[float]] = {name: [] for name in names.values()}
    made: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for family, name in names.items():
        network = getattr(networks, family)
        made[name] = network(dims, 1, 2, **(network.SMALL if small else {})).eval()
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, network in made.items():
                began = time.process_time()
                network(image)
                if turn:  # the first warms up
                    taken[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def write_between(marker: str, text: str) -> None:
    """Replace what stands between <!-- families MARKER --> and <!-- end --> on the page."""
    begin, end = f"<!-- families {marker} -->", "<!-- end -->"
    before, _, rest = PAGE.read_text("utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE}: no {begin} ... {end}")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=2.0, help="of one core, for each family and data set")
    training.add_argument("--work", type=Path, default=Path("build/families"))
    training.add_argument("--only", default="", help="those whose FAMILY-DATA contains it; the page stays as it is")
    costing = commands.add_parser("cost")
    costing.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.command == "train":
        learn_all(given.data, 60 * given.minutes, given.work, given.only)
    else:
        cost_all(given.rounds)


if __name__ == "__main__":
    main()
