"""How sure the network is of each label, on its own grid."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.bundle.nnunet.model import Labels
from medseg.inference.grids.restore import Certainty
from medseg.inference.nnunet.resample import Array


def tell_confidence(plane: Tensor, labels: Labels, certainty: Certainty, numbers: Array) -> None:
    """Add what a plane of scores (K, y, x) says. numbers: of each label in the result, 0 for none."""
    probabilities = plane.float().softmax(0) if labels.order is None else plane.float().sigmoid()
    winning, label = winners(probabilities, labels)
    certainty.count(winning, torch.from_numpy(numbers).long().to(label.device)[label])


def winners(probabilities: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
    """Of probabilities (K, y, x), that of the label that wins at each voxel, and the label."""
    if labels.order is None:
        winning, label = probabilities.max(0)
        return winning, label
    return _painted(probabilities, labels.order)


def _painted(parts: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of regions (K, y, x), the label that is painted last, and its probability; that of none where there is none."""
    winning, label = 1 - parts.max(0).values, torch.zeros(parts.shape[1:], dtype=torch.long, device=parts.device)
    for part, number in zip(parts, order, strict=True):
        inside = part > 0.5
        winning, label = torch.where(inside, part, winning), label.masked_fill(inside, number)
    return winning, label
