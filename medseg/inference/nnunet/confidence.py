"""How sure the network is of each label, on its own grid."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.bundle.nnunet.model import Labels
from medseg.inference.grids.restore import Certainty
from medseg.inference.nnunet.resample import Array


def tell_confidence(plane: Tensor, labels: Labels, certainty: Certainty, numbers: Array) -> None:
    """Add what a plane of scores (K, y, x) says. numbers: of each label in the result, 0 for none."""
    if labels.order is None:
        winning, label = plane.float().softmax(0).max(0)
    else:
        winning, label = _painted(plane.float().sigmoid(), labels.order)
    certainty.count(winning, torch.from_numpy(numbers).long().to(label.device)[label])


def _painted(parts: Tensor, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of regions (K, y, x), the label that is painted last, and its probability; that of none where there is none."""
    winning, label = 1 - parts.max(0).values, torch.zeros(parts.shape[1:], dtype=torch.long, device=parts.device)
    for part, number in zip(parts, order, strict=True):
        inside = part > 0.5
        winning, label = torch.where(inside, part, winning), label.masked_fill(inside, number)
    return winning, label
