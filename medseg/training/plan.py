"""`configs/train.json`: everything particular about the training of one bundle, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, TverskyLoss
from torch import nn

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

    labelled: float = 0.0
    step: tuple[float, float] = (1.0, 1.0)
    alone: float = 0.0


@dataclass(frozen=True)
class TrainingPlan:
    """One training. window: voxels per axis of the model; loss, optimizer: a `_target_` and its arguments.

    slices: for 2D networks alone.
    """

    seed: int
    steps: int
    batch_size: int
    window: tuple[int, ...]
    loss: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    held_out: HeldOut = field(default_factory=HeldOut)
    augment: Augmentation = field(default_factory=Augmentation)
    checkpoint_every: int = 250
    precision: Precision = Precision.AUTO
    ema_decay: float = 0.999
    warmup_steps: int = 0
    clip_gradient: float = 5.0
    slices: SliceDraw | None = None

    def generator(self, purpose: str, number: int) -> torch.Generator:
        """Random numbers for one purpose: the same whatever was drawn before."""
        seed = hashlib.sha256(f"{self.seed}/{purpose}/{number}".encode()).digest()[:8]
        return torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)

    def make_loss(self) -> nn.Module:
        return LOSSES[self.loss["_target_"]](**_arguments(self.loss))

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

    def known(kind: type[Any], given: Any, key: str) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise InvalidBundle(bundle, key, f"expected an object, found {type(given).__name__}")
        names = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
        for name in [*(set(given) - set(names)), *(n for n, needed in names.items() if needed and n not in given)]:
            why = "is unknown" if name in given else "is missing"
            raise InvalidBundle(bundle, f"{key}.{name}", why)
        return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}

    parts = known(TrainingPlan, config, CONFIG)
    for key, table in (("loss", LOSSES), ("optimizer", OPTIMIZERS)):
        target = parts[key].get("_target_")
        if target not in table:
            raise InvalidBundle(bundle, f"{CONFIG}.{key}._target_", f"{target!r} is not one of {', '.join(table)}")
    if "lr" not in parts["optimizer"]:
        raise InvalidBundle(bundle, f"{CONFIG}.optimizer.lr", "is missing")
    parts["held_out"] = HeldOut(**known(HeldOut, parts.get("held_out", {}), f"{CONFIG}.held_out"))
    if "slices" in parts:
        parts["slices"] = SliceDraw(**known(SliceDraw, parts["slices"], f"{CONFIG}.slices"))
    parts["augment"] = Augmentation(**known(Augmentation, parts.get("augment", {}), f"{CONFIG}.augment"))
    try:
        parts["precision"] = Precision(parts.get("precision", Precision.AUTO))
    except ValueError as error:
        raise InvalidBundle(bundle, f"{CONFIG}.precision", str(error)) from None
    return TrainingPlan(**parts)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_target_"}
