"""The training loop: batches -> network -> loss -> optimizer -> moving average of the weights.

Step n is a function of (plan, data, n, state after step n - 1), so a training taken up from a checkpoint ends in the
same bits as one never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medseg.errors import Interrupted, UsageError
from medseg.progress import Cancelled, never
from medseg.training.batches import make_batch
from medseg.training.curves import blend, running_means
from medseg.training.plan import Precision, TrainingPlan
from medseg.training.prepare import InMemory, Prepare

CPU = torch.device("cpu")


class ForeignCheckpoint(UsageError):
    """A checkpoint of another plan, seed or data."""

    code = "foreign_checkpoint"

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: a checkpoint of another plan, seed or data")
        self.path = path


class TrainingStopped(Interrupted):
    """Stopped on request; a checkpoint keeps what was done."""

    code = "training_stopped"

    def __init__(self, step: int, steps: int) -> None:
        super().__init__()
        self.args = (f"stopped after step {step} of {steps}",)
        self.step, self.steps = step, steps


class Stateful(Protocol):
    """What a checkpoint holds: the network, its average, the optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Clock:
    """Wall and process time of a training, over all its sittings."""

    def __init__(self, wall_s: float = 0.0, cpu_s: float = 0.0) -> None:
        self._wall_began, self._cpu_began = time.perf_counter() - wall_s, time.process_time() - cpu_s

    def wall_s(self) -> float:
        return time.perf_counter() - self._wall_began

    def cpu_s(self) -> float:
        return time.process_time() - self._cpu_began


@dataclass(frozen=True)
class TrainingProgress:
    """`step` of `steps` done; `loss` is a running mean."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    wall_s: float


OnStep = Callable[[TrainingProgress], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """The network with averaged weights, and what it took."""

    network: nn.Module
    loss: float
    losses: tuple[float, ...]  # of every step, before averaging
    wall_s: float
    cpu_s: float
    precision: Precision


def fit(
    network: nn.Module,
    samples: Sequence[InMemory],
    classes: int,
    prepare: Prepare,
    plan: TrainingPlan,
    *,
    device: torch.device = CPU,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    on_step: OnStep | None = None,
    cancelled: Cancelled = never,
) -> Trained:
    """Train `network` (B, C, *window) -> (B, classes, *window) in place; returns the moving average of its weights.

    checkpoint: taken up where it exists and carries `fingerprint`; written every `plan.checkpoint_every` steps and,
    when cancelled, before `TrainingStopped` is raised.
    """
    precision = choose_precision(plan.precision, device)
    layout = torch.channels_last_3d if len(plan.window) == 3 else torch.channels_last
    network = network.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay))  # type: ignore[no-untyped-call]
    loss_of, optimizer = plan.make_loss().to(device), plan.make_optimizer(network.parameters())
    parts: Mapping[str, Stateful] = {"network": network, "average": average, "optimizer": optimizer}
    losses: list[float] = []
    clock = Clock()
    if checkpoint is not None and checkpoint.is_file():
        losses, clock = load_checkpoint(checkpoint, fingerprint, parts, device)
    mean_loss = running_means(losses)[-1] if losses else math.nan

    for step in range(len(losses), plan.steps):
        if cancelled():
            if checkpoint is None:
                raise Interrupted
            save_checkpoint(checkpoint, fingerprint, parts, losses, clock)
            raise TrainingStopped(step, plan.steps)
        torch.manual_seed(plan.generator("step", step).initial_seed())  # what dropout draws from
        images, labels = make_batch(samples, classes, prepare, plan, step)
        rate = rate_at(plan, step)
        set_rate(optimizer, rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.BF16):
            logits = network(images.to(device).to(memory_format=layout))
        loss = loss_of(logits.float(), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), plan.clip_gradient)
        optimizer.step()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
        mean_loss = blend(mean_loss, losses[-1])
        if checkpoint is not None and (step + 1) % plan.checkpoint_every == 0:
            save_checkpoint(checkpoint, fingerprint, parts, losses, clock)
        if on_step:
            on_step(TrainingProgress(step + 1, plan.steps, mean_loss, rate, clock.wall_s()))
    return Trained(average.module, mean_loss, tuple(losses), clock.wall_s(), clock.cpu_s(), precision)


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """bf16 where the hardware multiplies matrices in it: AMX, CUDA.

    AVX-512 BF16 alone loses: with it these convolutions take a third longer than in fp32 (channels last, measured).
    """
    if wanted is not Precision.AUTO:
        return wanted
    if device.type == "cuda":
        return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP32
    return Precision.BF16 if torch.cpu._is_amx_tile_supported() else Precision.FP32


def rate_at(plan: TrainingPlan, step: int) -> float:
    """The step's learning rate: up to the optimizer's own in a straight line, then down to zero along half a cosine."""
    rise = min(1.0, (step + 1) / max(1, plan.warmup_steps))
    return float(plan.optimizer["lr"]) * rise * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_checkpoint(
    checkpoint: Path, fingerprint: str, parts: Mapping[str, Stateful], losses: Sequence[float], clock: Clock
) -> None:
    """Write a checkpoint beside its place, then move it there: there is always a whole one."""
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    state |= {"fingerprint": fingerprint, "losses": list(losses)}
    state |= {"wall_s": clock.wall_s(), "cpu_s": clock.cpu_s()}
    beside = checkpoint.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(checkpoint)


def load_checkpoint(
    checkpoint: Path, fingerprint: str, parts: Mapping[str, Stateful], device: torch.device
) -> tuple[list[float], Clock]:
    """Put a checkpoint's state into `parts`; returns the loss of every step done, and the clock."""
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ForeignCheckpoint(checkpoint)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["losses"], Clock(state["wall_s"], state["cpu_s"])
