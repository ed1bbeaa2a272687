"""Labels of boxes on the planes of the whole image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.inference.grids.restore import Certainty
from medseg.inference.labels import Flag, LabelPlane
from medseg.inference.planes import PlaneSpool
from medseg.inference.regions.crop import Cut

_MOST: Final = 256


@dataclass(frozen=True, eq=False)
class Looked:
    """A box that was looked at.

    planes: labels of what was cut out. numbers: of the network's labels, in the result. order: where boxes overlap, the
    lowest comes first.
    """

    cut: Cut
    planes: PlaneSpool
    certainty: Certainty
    numbers: Mapping[int, int]
    order: int = 0


class Paste:
    """Planes of the image: what the boxes hold, by its number in the result, and 0 elsewhere.

    channels: bits of a plane where labels overlap, None where each voxel has one.
    """

    def __init__(self, stack: Stack, looked: Sequence[Looked], channels: int | None) -> None:
        self._looked = sorted(looked, key=lambda one: one.order)
        self._stack, self._channels = stack, channels
        self._at_edge: set[int] = set()

    def plane(self, k: int) -> LabelPlane:
        """Slice k of the image: (rows, columns) of numbers, or (channels, rows, columns) of 0 and 1."""
        size = self._stack.shape[1:]
        made = np.zeros(size if self._channels is None else (self._channels, *size), np.uint8)
        for one in self._looked:
            box = one.cut.box
            if not box.low[0] <= k < box.high[0]:
                continue
            labels = one.cut.back(k - box.low[0], one.planes.__getitem__)
            labels = _numbered(labels, one.numbers, self._channels)
            under = made[..., box.low[1] : box.high[1], box.low[2] : box.high[2]]
            np.copyto(under, labels, where=(under == 0) & (labels != 0))
            self._at_edge.update(self._touching(one.cut, k, labels))
        return made

    def _touching(self, cut: Cut, k: int, labels: LabelPlane) -> Iterator[int]:
        """Labels that reach a side of the box beyond which the image goes on."""
        low, high, shape = cut.box.low, cut.box.high, self._stack.shape
        sides = [
            labels if (k == low[0] > 0) or (k == high[0] - 1 < shape[0] - 1) else labels[..., :0],
            labels[..., :1, :] if low[1] > 0 else labels[..., :0],
            labels[..., -1:, :] if high[1] < shape[1] else labels[..., :0],
            labels[..., :1] if low[2] > 0 else labels[..., :0],
            labels[..., -1:] if high[2] < shape[2] else labels[..., :0],
        ]
        for side in sides:
            if self._channels is None:
                yield from (int(number) for number in np.unique(side) if number)
            elif side.size:
                yield from (int(channel) + 1 for channel in np.flatnonzero(side.any(axis=(1, 2))))

    def flags(self, segments: Sequence[Segment]) -> tuple[Flag, ...]:
        """A doubt for each segment that reaches the edge of what was looked at, once all planes have been made."""
        return tuple(
            Flag(
                "touches_region_edge",
                f"{segment.label}: reaches the edge of the region that was looked at and may go on beyond",
                segment.number,
            )
            for segment in segments
            if segment.number in self._at_edge
        )

    def tell_certainty(self, certainty: Certainty) -> None:
        """Add what the network was sure of in each box."""
        shift = 0 if self._channels is None else 1
        for one in self._looked:
            sums, voxels = one.certainty.sums.all(), one.certainty.voxels
            moved, counted = np.zeros((len(sums), certainty.channels)), np.zeros(certainty.channels)
            for label, number in one.numbers.items():
                moved[:, number - shift], counted[number - shift] = sums[:, label - shift], voxels[label - shift]
            certainty.sums.add(moved)
            certainty.voxels += counted


def _numbered(labels: LabelPlane, numbers: Mapping[int, int], channels: int | None) -> NDArray[np.uint8]:
    """The network's labels by their numbers in the result."""
    if channels is None:
        table = np.zeros(_MOST, np.uint8)
        table[list(numbers)] = list(numbers.values())
        return table[labels]
    made = np.zeros((channels, *labels.shape[1:]), np.uint8)
    for label, number in numbers.items():
        made[number - 1] = labels[label - 1]
    return made
