"""`configs/train.json`: everything particular about the training of one bundle, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, TverskyLoss
from torch import nn

from medseg.allowed import INTEGER, INTEGERS, NUMBER, PAIR, TABLE, TEXT, one_of, read_fields, shown
from medseg.errors import InvalidBundle
from medseg.training.augment import Augmentation
from medseg.training.data import HeldOut

CONFIG = "configs/train.json"
LOSSES: Mapping[str, type[nn.Module]] = {
    "DiceCELoss": DiceCELoss,
    "DiceFocalLoss": DiceFocalLoss,
    "DiceLoss": DiceLoss,
    "TverskyLoss": TverskyLoss,
}
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
}


class Precision(StrEnum):
    """What the network computes in while it learns; weights and loss are always fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


@dataclass(frozen=True)
class SliceDraw:
    """Which slices of a volume a 2D network learns from.

    labelled: share drawn from those that hold a label; the others are drawn from all.
    step: least and greatest distance of the neighbours it sees beside a slice, in slices: other spacings.
    alone: share that sees the slice itself in place of its neighbours.
    """

    labelled: Annotated[float, NUMBER] = 0.0
    step: Annotated[tuple[float, float], PAIR] = (1.0, 1.0)
    alone: Annotated[float, NUMBER] = 0.0


@dataclass(frozen=True)
class TrainingPlan:
    """One training. window: voxels per axis of the model; loss, optimizer: a `_target_` and its arguments.

    slices: for 2D networks alone. start: SHA-256 of the weights that it goes on from; None for chance.
    drop: share of the samples in which an optional channel is given zeros, each for itself.
    """

    seed: Annotated[int, INTEGER]
    steps: Annotated[int, INTEGER]
    batch_size: Annotated[int, INTEGER]
    window: Annotated[tuple[int, ...], INTEGERS]
    loss: Annotated[Mapping[str, Any], TABLE]
    optimizer: Annotated[Mapping[str, Any], TABLE]
    held_out: Annotated[HeldOut, TABLE] = field(default_factory=HeldOut)
    augment: Annotated[Augmentation, TABLE] = field(default_factory=Augmentation)
    checkpoint_every: Annotated[int, INTEGER] = 250
    precision: Annotated[Precision, one_of(Precision)] = Precision.AUTO
    ema_decay: Annotated[float, NUMBER] = 0.999
    warmup_steps: Annotated[int, INTEGER] = 0
    clip_gradient: Annotated[float, NUMBER] = 5.0
    slices: Annotated[SliceDraw | None, TABLE] = None
    start: Annotated[str | None, TEXT] = None
    drop: Annotated[float | None, NUMBER] = None

    def generator(self, purpose: str, number: int) -> torch.Generator:
        """Random numbers for one purpose: the same whatever was drawn before."""
        seed = hashlib.sha256(f"{self.seed}/{purpose}/{number}".encode()).digest()[:8]
        return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)

    def make_loss(self) -> nn.Module:
        """Lists among its arguments are weights of classes."""
        given = {
            name: torch.tensor(one) if isinstance(one, list) else one for name, one in _arguments(self.loss).items()
        }
        return LOSSES[self.loss["_target_"]](**given)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer["_target_"]](parameters, **_arguments(self.optimizer))

    def digest(self) -> str:
        """SHA-256 of everything that decides the weights; what is None is left out."""
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def read_plan(bundle: Path) -> TrainingPlan:
    """The plan in a bundle's `configs/train.json`."""
    path = bundle / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidBundle(bundle.name, CONFIG, "is missing, so the bundle cannot be trained") from None
    except ValueError as error:
        raise InvalidBundle(bundle.name, CONFIG, f"is not JSON: {error}") from None
    return make_plan(config, bundle.name)


def make_plan(config: Mapping[str, Any], bundle: str = "") -> TrainingPlan:
    """A checked plan from the contents of a train.json."""

    def read(kind: type[Any], table: Any, key: str) -> dict[str, Any]:
        def refuse(name: str, why: str) -> NoReturn:
            raise InvalidBundle(bundle, f"{key}.{name}", why)

        if not isinstance(table, Mapping):
            raise InvalidBundle(bundle, key, f"expected an object of keys, found {shown(table)}")
        return read_fields(kind, table, refuse)

    parts = read(TrainingPlan, config, CONFIG)
    for key, choices in (("loss", LOSSES), ("optimizer", OPTIMIZERS)):
        target = parts[key].get("_target_")
        if target not in choices:
            raise InvalidBundle(bundle, f"{CONFIG}.{key}._target_", f"{target!r} is not one of {', '.join(choices)}")
    if "lr" not in parts["optimizer"]:
        raise InvalidBundle(bundle, f"{CONFIG}.optimizer.lr", "is missing")
    for key, kind in (("held_out", HeldOut), ("slices", SliceDraw), ("augment", Augmentation)):
        if key in parts:
            parts[key] = kind(**read(kind, parts[key], f"{CONFIG}.{key}"))
    return TrainingPlan(**parts)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_target_"}
