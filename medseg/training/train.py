"""Training a bundle: its network, on its own preparation, as its `configs/train.json` says.

    cases -> volumes in memory -> fit -> models/model.safetensors, models/training.json, models/curves.svg

What comes out is a bundle again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

import medseg
from medseg.bundle.bundle import Bundle
from medseg.bundle.safe_config import TWINS
from medseg.errors import InvalidBundle, OutputExists, OutputNotWritable
from medseg.progress import Cancelled, check, never
from medseg.training.curves import curves
from medseg.training.data import HeldOut, LabelledCase, NoCases, digest, find_cases, split
from medseg.training.fit import CPU, OnStep, fit, rate_at
from medseg.training.plan import CONFIG, TrainingPlan, read_plan
from medseg.training.prepare import InMemory, has_units, intensity, load_sample, prepared_sample, slice_stack

RECORD = "models/training.json"
CHECKPOINT = "models/checkpoint.pt"
CURVES = "models/curves.svg"


@dataclass(frozen=True)
class TrainingRecord:
    """How weights came about; kept beside them."""

    bundle: str
    seed: int
    steps: int
    cases: int
    held_out: HeldOut
    data_sha256: str
    plan_sha256: str
    weights_sha256: str
    final_loss: float
    wall_s: float
    cpu_s: float
    device: str
    precision: str
    threads: int
    versions: dict[str, str]


def plan_of(bundle: Bundle, *, seed: int | None = None, steps: int | None = None) -> TrainingPlan:
    """The bundle's plan, with another seed or number of steps where given. Raises InvalidBundle."""
    plan = read_plan(bundle.path)
    if len(plan.window) != bundle.spatial_dims:
        why = f"expected {bundle.spatial_dims} axes, found {list(plan.window)}"
        raise InvalidBundle(bundle.name, f"{CONFIG}.window", why)
    if bundle.recipe.fallback is not None:
        raise InvalidBundle(bundle.name, "preprocessing", f"cannot be trained with: {bundle.recipe.fallback}")
    return replace(plan, seed=plan.seed if seed is None else seed, steps=plan.steps if steps is None else steps)


def train(
    bundle: Bundle,
    data: Path,
    network: nn.Module,
    plan: TrainingPlan,
    *,
    out: Path,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device = CPU,
    on_step: OnStep | None = None,
    cancelled: Cancelled = never,
) -> TrainingRecord:
    """Train `network`, the bundle's, newly made under `plan.seed`, on the cases of `data` that are not set aside.

    out: becomes a bundle with the new weights. A training that was stopped leaves models/checkpoint.pt there, from
    which `resume` goes on. overwrite: replace weights that are there already.
    Raises NoCases, UnusableCase, OutputExists, OutputNotWritable, ForeignCheckpoint, TrainingStopped.
    """
    cases, _ = split(find_cases(data, bundle.channels), plan.held_out)
    if not cases:
        raise NoCases(data, "to train with")
    weights = out / bundle.weights.relative_to(bundle.path).with_suffix(".safetensors")
    twins = [weights.with_suffix(suffix) for suffix in TWINS if weights.with_suffix(suffix) != out / CHECKPOINT]
    if any(file.exists() for file in (weights, *twins)) and not overwrite:
        raise OutputExists(out)
    checkpoint = prepare_folder(bundle.path, out)
    if not resume:
        checkpoint.unlink(missing_ok=True)
    data_sha256, plan_sha256 = digest(cases), plan.digest()
    trained = fit(
        network,
        load(cases, bundle, cancelled),
        bundle.out_channels,
        intensity(bundle.recipe.steps),
        plan,
        device=device,
        checkpoint=checkpoint,
        fingerprint=f"{plan_sha256}/{data_sha256}",
        on_step=on_step,
        cancelled=cancelled,
    )
    write_weights(trained.network, weights)
    for twin in twins:  # of the weights that were there before
        twin.unlink(missing_ok=True)
    record = TrainingRecord(
        bundle=f"{bundle.name} {bundle.version}",
        seed=plan.seed,
        steps=plan.steps,
        cases=len(cases),
        held_out=plan.held_out,
        data_sha256=data_sha256,
        plan_sha256=plan_sha256,
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        final_loss=round(trained.loss, 6),
        wall_s=round(trained.wall_s, 1),
        cpu_s=round(trained.cpu_s, 1),
        device=str(device),
        precision=str(trained.precision),
        threads=torch.get_num_threads(),
        versions={"medseg": medseg.__version__} | {name: version(name) for name in ("monai", "numpy", "torch")},
    )
    (out / RECORD).write_text(json.dumps(asdict(record), indent=4) + "\n")
    (out / CURVES).write_text(curves(trained.losses, [rate_at(plan, step) for step in range(plan.steps)]))
    checkpoint.unlink(missing_ok=True)
    return record


def load(cases: Sequence[LabelledCase], bundle: Bundle, cancelled: Cancelled = never) -> list[InMemory]:
    """The cases in memory, on the model's grid: volumes, or slices for a 2D network."""
    recipe, prepare = bundle.recipe, intensity(bundle.recipe.steps)
    samples: list[InMemory] = []
    for case in cases:
        check(cancelled)
        sample = load_sample(case, recipe.steps, bundle.out_channels, bundle.channels)
        if bundle.spatial_dims == 2:
            samples.append(slice_stack(sample, prepare, recipe.window.slice_axis, recipe.window.slices))
        else:
            samples.append(prepared_sample(sample, prepare) if has_units(recipe.steps) else sample)
    return samples


def prepare_folder(bundle: Path, out: Path) -> Path:
    """Give `out` the bundle's configuration and licence; returns where its checkpoint goes.

    The model card stays behind: its scores are not those of other weights.
    """
    try:
        (out / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
        if not out.samefile(bundle):
            shutil.copytree(bundle / "configs", out / "configs", dirs_exist_ok=True)
            if (bundle / "LICENSE").is_file():
                shutil.copyfile(bundle / "LICENSE", out / "LICENSE")
    except OSError as error:
        raise OutputNotWritable(out, str(error.strerror)) from error
    return out / CHECKPOINT


def write_weights(network: nn.Module, path: Path) -> None:
    """The state dict as safetensors, beside its place and then moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_bytes(save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}))
    beside.replace(path)
