"""From scores on the plans' grid back to labels of the volume, plane by plane: scores of the volume never exist.

    heads x model voxels in half -> heads x one plane of the volume in double, half again -> labels of the plane

The result is in half, as nnU-Net's is: ties are common then, and the lowest label wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.nnunet.model import Labels, Method, NnUNet
from medseg.errors import InputError
from medseg.inference.nnunet.prepare import Prepared
from medseg.inference.nnunet.resample import Array, Shape, nearest, resample_image, separate_axis

_ROOM: Final = 16 << 20  # bytes of heads that are brought back at a time


class Winner:
    """The label of each voxel, of heads that come one after the other; `part` is the place of the heads' voxels."""

    def __init__(self, labels: Labels, shape: tuple[int, ...]) -> None:
        self._order = labels.order
        self.label = np.zeros(shape, np.uint8)
        self._best: Tensor | None = None
        self._head = 0

    def add(self, scores: Tensor) -> None:
        """The next heads (n, *shape), in the type in which they are compared."""
        for one in scores:
            if self._order is not None:
                self.label[(one.float().sigmoid() > 0.5).numpy()] = self._order[self._head]
            elif self._best is None:
                self._best = one.clone()
            else:
                better = one > self._best
                self.label[better.numpy()] = self._head
                self._best = torch.where(better, one, self._best)
            self._head += 1


def label_volume(scores: Tensor, prepared: Prepared, model: NnUNet) -> Array:
    """Labels (z, y, x) of the whole volume, in the plans' axes; background outside the box. scores: (K, z, y, x)."""
    made = np.zeros(prepared.whole, np.uint8)
    inside = made[prepared.box]
    if model.scores.method is not Method.SPLINE or model.scores.order > 1 or model.scores.order_z > 0:
        inside[...] = _head_by_head(scores, prepared, model)
        return made
    axis = separate_axis(model.scores, prepared.model_mm, prepared.spacing_mm)
    for number, plane in enumerate(_planes(scores, prepared.cropped, axis, model)):
        inside[number] = plane
    return made


def _head_by_head(scores: Tensor, prepared: Prepared, model: NnUNet) -> Array:
    """By whatever the plans name, a head at a time."""
    winner = Winner(model.labels, prepared.cropped)
    for head in scores.numpy():
        back = resample_image(head, prepared.cropped, model.scores, prepared.model_mm, prepared.spacing_mm)
        if back.shape != prepared.cropped:
            raise InputError(f"scores of {head.shape} voxels stay so, and the volume has {prepared.cropped}")
        winner.add(torch.from_numpy(back)[None])
    return winner.label


def _planes(scores: Tensor, shape: Shape, axis: int | None, model: NnUNet) -> Iterator[Array]:
    """Labels of one plane of the volume after the other."""
    heads = scores.shape[0]
    if tuple(scores.shape[1:]) == shape:
        for n in range(shape[0]):
            winner = Winner(model.labels, shape[1:])
            winner.add(scores[:, n])
            yield winner.label
        return
    order = model.scores.order
    along, rows, columns = (
        Mix.of(old, new, is_nearest=order == 0 or n == axis)
        for n, (old, new) in enumerate(zip(scores.shape[1:], shape, strict=True))
    )
    at_once = max(_ROOM // (8 * shape[1] * shape[2]), 1)
    for n in range(shape[0]):
        winner = Winner(model.labels, shape[1:])
        for first in range(0, heads, at_once):
            some = scores[first : first + at_once]
            plane = along.mixed_at(some, 1, n)
            winner.add(columns.mixed(rows.mixed(plane, 1), 2).half())
        yield winner.label


class Mix:
    """Samples of an axis at other places, edges of voxels on each other: each of two old ones, or the nearest.

    lower, upper: the old samples. share: of the upper one, in double.
    """

    def __init__(self, lower: Array, upper: Array, share: Array) -> None:
        self._lower, self._upper = torch.from_numpy(lower), torch.from_numpy(upper)
        self._share = torch.from_numpy(share)
        self._plain = bool((share == 0).all())

    @classmethod
    def of(cls, old: int, new: int, *, is_nearest: bool) -> Mix:
        place = (np.arange(new) + 0.5) * (old / new) - 0.5
        if is_nearest or old == new:
            lower = nearest(place, old)
            return cls(lower, lower, np.zeros(new))
        place = np.clip(place, 0, old - 1)
        lower = np.floor(place).astype(np.intp)
        return cls(lower, np.minimum(lower + 1, old - 1), place - lower)

    def mixed_at(self, image: Tensor, axis: int, n: int) -> Tensor:
        """One new sample along an axis, which goes."""
        low = image.select(axis, int(self._lower[n])).double()
        share = float(self._share[n])
        if share == 0:
            return low
        return low * (1 - share) + image.select(axis, int(self._upper[n])).double() * share

    def mixed(self, image: Tensor, axis: int) -> Tensor:
        low = image.index_select(axis, self._lower)
        if self._plain:
            return low
        share = self._share.reshape([-1 if n == axis else 1 for n in range(image.ndim)])
        return low * (1 - share) + image.index_select(axis, self._upper) * share
