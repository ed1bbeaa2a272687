"""From class scores on the model's grid back to label planes of the source, one plane at a time.

    scores of model slices   m0   m1   m2   m3      (K, j, i) each
    source slices               s0  s1    s2        s1 lies between m0 and m1: these two are blended, brought to the
                                                    source's rows and columns, and discretised; m0 can go

Only the model slices around the present source slice are held: two on parallel grids, a few more under gantry tilt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.recipe import Activation, Finish, Interpolation, Order, Padding, Resample
from medseg.dicom.instance import Vector
from medseg.inference.gathered import Gathered
from medseg.inference.grids.grid import STILL, between, index_map, parallel
from medseg.inference.grids.prepare import PreparedVolume, PreprocessingPlan, Resampling
from medseg.inference.grids.resample import InPlane, Taps, axis_taps, resample_plane, span_of_plane


class ToSource(Protocol):
    """The way from the model's slices to the source's."""

    def span(self, k: int) -> tuple[int, int]:
        """First and last model slice that source slice k is made of; both grow with k."""
        ...

    def plane(self, k: int, held: Sequence[Tensor], first: int) -> Tensor:
        """Source slice k (C, rows, columns) out of model slices (C, j, i), of which held[0] is number `first`."""
        ...


@dataclass(frozen=True, eq=False)
class Parallel:
    """Model and source grids have parallel axes."""

    slices: Taps
    in_plane: InPlane

    def span(self, k: int) -> tuple[int, int]:
        return int(self.slices.lower[k]), int(self.slices.upper[k])

    def plane(self, k: int, held: Sequence[Tensor], first: int) -> Tensor:
        return self.in_plane(self.slices.mix(lambda old: held[old - first], k))


@dataclass(frozen=True, eq=False)
class Slanted:
    """Source slices lie across the model's (gantry tilt). matrix: source index to model index, stored order."""

    matrix: Vector
    coordinates: Vector
    shape: tuple[int, int]
    depth: int
    interpolation: Interpolation
    padding: Padding

    def span(self, k: int) -> tuple[int, int]:
        return span_of_plane(self.matrix, float(self.coordinates[k]), self.shape, self.depth)

    def plane(self, k: int, held: Sequence[Tensor], first: int) -> Tensor:
        low, high = self.span(k)
        slab = torch.stack(list(held)[low - first : high - first + 1], dim=1)
        at = float(self.coordinates[k])
        return resample_plane(slab, low, self.matrix, at, self.shape, self.depth, self.interpolation, self.padding)


def to_source(
    prepared: PreparedVolume | PreprocessingPlan,
    coordinates: Vector,
    shape: tuple[int, int],
    finish: Finish,
    *,
    still: float = STILL,
) -> Parallel | Slanted:
    """From the model's grid to source slices at `coordinates` (K,) with (rows, columns) = `shape`.

    Interpolation and padding are those of the step that led to the model's grid (Invertd), or nearest if `finish`
    says so. still: see `parallel`.
    """
    how = prepared.resampling or Resampling(Resample(()), prepared.frame, prepared.frame)
    interpolation = Interpolation.NEAREST if finish.nearest else how.step.interpolation
    # The affine that MONAI has kept for the model's grid, to the last bit
    model = replace(how.new, affine=how.old.affine @ between(how.old, how.new))
    if not parallel(model, how.old, still=still):
        matrix, depth = index_map(model, how.old), model.stored_shape[0]
        return Slanted(matrix, coordinates, shape, depth, interpolation, how.step.padding)
    slices, rows, columns = axis_taps(
        model,
        how.old,
        interpolation,
        how.step.padding,
        align_corners=how.step.align_corners and not finish.nearest,
        at=coordinates,
    )
    return Parallel(slices, InPlane.of(rows, columns))


@dataclass
class Certainty:
    """Sum of winning probabilities and number of voxels per channel, on the model's grid, as planes pass.

    The sums of planes are kept, and added exactly: planes in another order give the same bits.
    """

    channels: int
    sums: Gathered[np.float64] = field(init=False)
    voxels: Vector = field(init=False)

    def __post_init__(self) -> None:
        self.sums = Gathered(np.float64, self.channels)
        self.voxels = np.zeros(self.channels)

    def add(self, scores: Tensor, finish: Finish) -> None:
        """scores: (C, j, i) after the activation."""
        if finish.threshold is not None:
            above = scores >= finish.threshold
            self.sums.add((scores * above).sum(dim=(1, 2)).double().cpu().numpy())
            self.voxels += above.sum(dim=(1, 2)).cpu().numpy()
            return
        probabilities = scores.softmax(0) if finish.activation is Activation.NONE else scores
        self.count(*probabilities.max(dim=0))

    def count(self, winning: Tensor, channel: Tensor) -> None:
        """Add voxels of one plane (j, i): which channel won in each, and with what probability."""
        index = channel.reshape(-1).cpu().numpy()
        self.sums.add(np.bincount(index, winning.reshape(-1).cpu().numpy(), self.channels))
        self.voxels += np.bincount(index, minlength=self.channels)

    def mean(self, channel: int) -> float | None:
        """Mean winning probability, 0-1; None where the channel won nowhere."""
        if not self.voxels[channel]:
            return None
        return math.fsum(self.sums.all()[:, channel]) / float(self.voxels[channel])


def activate(scores: Tensor, activation: Activation) -> Tensor:
    """(C, j, i) -> the same; the same bits for a plane by itself and for one of a slab."""
    # torch's exp is another where a row of memory ends, its products where rows are apart; both are the slab's matter.
    scores = scores.contiguous()
    match activation:
        case Activation.SOFTMAX:
            return scores.softmax(dim=0)
        case Activation.SIGMOID:
            return scores.sigmoid()
        case Activation.NONE:
            return scores


def discretise(scores: Tensor, finish: Finish) -> Tensor:
    """Scores (C, j, i) -> channel numbers (1, j, i) by argmax, or (C, j, i) of 0 and 1 by the threshold; uint8."""
    if finish.threshold is None:
        return scores.max(dim=0, keepdim=True).indices.to(torch.uint8)
    return (scores >= finish.threshold).to(torch.uint8)


Inverse: TypeAlias = Callable[[int, int], tuple[ToSource, int]]
"""inverse(k, newest): the way back of source slices k, k + 1, ... and before which of them it ends where the model's
slices are there up to `newest`. What was given is used."""


def so_far(back: ToSource, count: int, k: int, newest: int) -> int:
    """Before which of `count` source slices, from k on, the model's slices up to `newest` end."""
    while k < count and back.span(k)[1] <= newest:
        k += 1
    return k


def restore(
    slabs: Iterable[tuple[int, Tensor]],
    finish: Finish,
    inverse: Inverse,
    certainty: Certainty,
    clean: Callable[[Iterable[Tensor]], Iterable[Tensor]],
) -> Iterator[Tensor]:
    """Label planes of source slices 0, 1, ...: (1, rows, columns) channel numbers, or (C, rows, columns) bits.

    slabs: (first slice, logits (C, k, j, i)) in order. clean: what the recipe does to labels before they are brought
    back (label planes in, label planes out); used with Order.LABELS_FIRST alone.
    """
    planes = _activated(slabs, finish, certainty)
    if finish.order is Order.PROBABILITIES_FIRST:
        # Of two exclusive classes it suffices to bring back by how much the second is above the first.
        two = finish.threshold is None and certainty.channels == 2
        for plane in _brought_back((plane[1:] - plane[:1] for plane in planes) if two else planes, inverse):
            yield (plane > 0).to(torch.uint8) if two else discretise(plane, finish)
    else:
        labels = clean(discretise(plane, finish) for plane in planes)
        for plane in _brought_back((label.float() for label in labels), inverse):
            yield plane.round().to(torch.uint8)


def _activated(slabs: Iterable[tuple[int, Tensor]], finish: Finish, certainty: Certainty) -> Iterator[Tensor]:
    for _, slab in slabs:
        for logits in slab.unbind(dim=1):
            plane = activate(logits, finish.activation)
            certainty.add(plane, finish)
            yield plane


def _brought_back(planes: Iterable[Tensor], inverse: Inverse) -> Iterator[Tensor]:
    held: deque[Tensor] = deque()
    first, k = 0, 0
    for newest, plane in enumerate(planes):
        if held and held[0].device != plane.device:  # the network had to move
            held = deque(old.to(plane.device) for old in held)
        held.append(plane)
        back, end = inverse(k, newest)
        for plane_number in range(k, end):
            while first < back.span(plane_number)[0]:
                held.popleft()
                first += 1
            yield back.plane(plane_number, held, first)
        k = end
