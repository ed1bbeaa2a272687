"""From scores on the plans' grid back to labels of the volume, plane by plane: scores of the volume never exist.

planes of heads x model voxels in half -> heads x one plane of the volume in double, half again -> its labels

The result is in half, as nnU-Net's is: ties are common then, and the lowest label wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.nnunet.model import Labels, NnUNet
from medseg.errors import InputError
from medseg.inference.nnunet.along import Held
from medseg.inference.nnunet.mix import Mix
from medseg.inference.nnunet.prepare import Grids
from medseg.inference.nnunet.resample import Array, resample_image, separate_axis
from medseg.inference.nnunet.settled import OPEN, agreed, settled

_ROOM: Final = 16 << 20  # bytes of heads that are brought back at a time


class Winner:
    """The label of each voxel, of heads that come one after the other, on their device."""

    def __init__(self, labels: Labels, shape: tuple[int, ...], device: torch.device) -> None:
        self._order = labels.order
        self._label = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._best: Tensor | None = None
        self._head = 0

    @property
    def label(self) -> Array:
        return self._label.cpu().numpy()

    def add(self, scores: Tensor) -> None:
        """The next heads (n, *shape), in the type in which they are compared."""
        for head in scores:
            if self._order is not None:
                self._label.masked_fill_(head.float().sigmoid() > 0.5, self._order[self._head])
            elif self._best is None:
                self._best = head.clone()
            else:
                better = head > self._best
                self._label.masked_fill_(better, self._head)
                self._best = torch.where(better, head, self._best)
            self._head += 1


def label_planes(scores: Iterable[Tensor], grids: Grids, model: NnUNet, *, all_heads: bool = False) -> Iterator[Array]:
    """Labels (y, x) of the planes of the whole volume, in the plans' axes; background outside the box.

    scores: (K, y, x) of the planes of the network's grid, in order. all_heads: each is brought to every voxel, as a GPU
    does sooner than it finds where it need not; labels are the same.
    """
    z, *inside = grids.box
    nothing = np.zeros(grids.whole[1:], np.uint8)
    planes = iter(_in_box(scores, grids, model, all_heads))
    for n in range(grids.whole[0]):
        made = nothing.copy()
        if z.start <= n < z.stop:
            made[tuple(inside)] = next(planes)
        yield made


def _in_box(scores: Iterable[Tensor], grids: Grids, model: NnUNet, all_heads: bool) -> Iterable[Array]:
    if not model.scores.by_planes:
        return _head_by_head(torch.stack([plane.cpu() for plane in scores], dim=1), grids, model)
    if grids.shape == grids.cropped:
        return (_labels_of(plane, model.labels) for plane in scores)
    return _planes(scores, grids, model, all_heads)


def _labels_of(plane: Tensor, labels: Labels) -> Array:
    winner = Winner(labels, tuple(plane.shape[1:]), plane.device)
    winner.add(plane)
    return winner.label


def _head_by_head(scores: Tensor, grids: Grids, model: NnUNet) -> Array:
    """By whatever the plans name, a head (K, z, y, x) at a time."""
    winner = Winner(model.labels, grids.cropped, scores.device)
    for head in scores.numpy():
        back = resample_image(head, grids.cropped, model.scores, grids.model_mm, grids.spacing_mm)
        if back.shape != grids.cropped:
            raise InputError(f"scores of {head.shape} voxels stay so, and the volume has {grids.cropped}")
        winner.add(torch.from_numpy(back)[None])
    return winner.label


def _planes(scores: Iterable[Tensor], grids: Grids, model: NnUNet, all_heads: bool) -> Iterator[Array]:
    """By splines of order 1 or 0."""
    along, rows, columns = _mixes(grids, model)
    if model.labels.order is None and not all_heads:
        return _highest(scores, along, rows, columns)
    return _of_all(scores, along, rows, columns, model.labels)


def _mixes(grids: Grids, model: NnUNet) -> tuple[Mix, Mix, Mix]:
    """Along planes, rows and columns."""
    axis = separate_axis(model.scores, grids.model_mm, grids.spacing_mm)
    z, y, x = (
        Mix.of(old, new, is_nearest=model.scores.order == 0 or n == axis)
        for n, (old, new) in enumerate(zip(grids.shape, grids.cropped, strict=True))
    )
    return z, y, x


def _of_all(scores: Iterable[Tensor], along: Mix, rows: Mix, columns: Mix, labels: Labels) -> Iterator[Array]:
    """Every head is brought to every voxel."""
    for heads in _heads(scores, along, rows, columns):
        winner: Winner | None = None
        for some in heads:
            winner = winner or Winner(labels, tuple(some.shape[1:]), some.device)
            winner.add(some)
        assert winner is not None
        yield winner.label


def _heads(scores: Iterable[Tensor], along: Mix, rows: Mix, columns: Mix) -> Iterator[Iterator[Tensor]]:
    """Of each plane its heads in half, some at a time; to be taken before the next plane's."""
    held = Held(scores)
    at_once = max(_ROOM // (8 * len(rows) * len(columns)), 1)

    def of_plane(low: Tensor, high: Tensor, n: int) -> Iterator[Tensor]:
        for first in range(0, len(low), at_once):
            some = slice(first, first + at_once)
            plane = along.mixed(low[some], high[some], n)
            yield columns.along(rows.along(plane, 1), 2).half()

    for n in range(len(along)):
        yield of_plane(*held.ends(*along.pair(n)), n)


def probability_planes(scores: Iterable[Tensor], grids: Grids, model: NnUNet) -> Iterator[Tensor]:
    """Probabilities (K, y, x) of the planes of the whole volume, in single, in the plans' axes; outside the box those
    of background.

    scores: as for `label_planes`, of a model whose scores are brought back by planes.
    """
    z, *inside = grids.box
    regions = model.labels.order is not None
    planes = iter(scores)
    if grids.shape != grids.cropped:
        planes = (torch.cat(list(heads)) for heads in _heads(scores, *_mixes(grids, model)))
    for n in range(grids.whole[0]):
        plane = next(planes).float() if z.start <= n < z.stop else None
        made = torch.zeros((model.labels.heads, *grids.whole[1:]), device=None if plane is None else plane.device)
        if not regions:
            made[0] = 1
        if plane is not None:
            made[(slice(None), *inside)] = plane.sigmoid() if regions else plane.softmax(0)
        yield made


def _highest(scores: Iterable[Tensor], along: Mix, rows: Mix, columns: Mix) -> Iterator[Array]:
    """Where the highest head is the label: it is looked for only where that is not settled on the network's grid."""
    held = Held((plane, settled(plane)) for plane in scores)
    for n in range(len(along)):
        (low, here), (high, there) = held.ends(*along.pair(n))
        label = columns.agreed(rows.agreed(agreed(here, there), 0), 1)
        for some in _blocks(len(low), rows, columns):
            at = np.flatnonzero(label[some] == OPEN)
            if at.size:
                first, last = rows.span(some)
                plane = along.mixed(low[:, first:last], high[:, first:last], n)
                row, column = np.divmod(at, len(columns))
                label[some].reshape(-1)[at] = _highest_at(plane, rows, columns, row + some.start, column, first)
        yield label.astype(np.uint8)


def _blocks(heads: int, rows: Mix, columns: Mix) -> Iterator[slice]:
    """Some rows at a time, for whose scores there is room."""
    at_once = max(_ROOM // (8 * heads * len(columns)), 1)
    return (slice(first, first + at_once) for first in range(0, len(rows), at_once))


def _highest_at(plane: Tensor, rows: Mix, columns: Mix, row: Array, column: Array, first: int) -> Array:
    """The highest head at some voxels. plane: (K, y, x) in double, from row `first` of the network's grid on."""
    width = plane.shape[2]
    voxels = plane.flatten(1).t().contiguous()

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return voxels.index_select(0, (y - first) * width + x)

    made = columns.at(column, lambda x: rows.at(row, lambda y: corner(y, x)))
    return made.half().float().argmax(1).numpy()
