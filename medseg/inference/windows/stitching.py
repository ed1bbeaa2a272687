"""Windows put together again: a voxel's score is sum(weight * score) / sum(weight) over its windows.

Additions of floating-point numbers do not commute when there are three of them, so each way of stitching has one order
of its own, whichever end the slices come from:

    RowSums     windows of one row in MONAI's order, then rows in that of the model's axis. Of what is still to come,
                a slice holds one sum of rows; three only where the rows come backwards and more than two overlap
    AsMonai     all windows over a voxel in MONAI's order, to the bit. The windows of all rows over a slice are held

    rows         [--0--]                    after row 1, with row 2 to begin at 6: slices below 6 are final
    of windows      [--1--]                 and leave; the others are held
                       [--2--]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import torch
from torch import Tensor

from medseg.inference.grids.grid import Axes
from medseg.inference.windows.layout import Layout

Room = Callable[..., Tensor]
"""Zeros of a shape, on the device where scores are to be stitched."""

_TOGETHER: Final = 8  # slices whose weights are added up at once
_WEIGHTED: Final = 1 << 20  # scores that a CPU weights at once, or those of one class


class Stitch(Protocol):
    """Takes windows row by row, from slice 0 up; within a row in the order of `Layout.in_plane`."""

    def add(self, k: int, j: int, i: int, window: Tensor) -> None:
        """window: scores (K, *roi) in model order; it begins at (k, j, i)."""
        ...

    def final(self, begin: int | None) -> Iterator[tuple[int, Tensor]]:
        """(first slice, scores (K, k, j, i)) of what no row that begins at `begin` or later lies over.

        None: there are no more rows. To be iterated to its end before the next window is added.
        """
        ...


class RowSums:
    """weights: of a window, (*roi) in model order. deep: slices of one row, or of the rows that are added together
    where they do not overlap."""

    def __init__(self, layout: Layout, weights: Tensor, deep: int, room: Room) -> None:
        self._layout, self._deep, self._room = layout, deep, room
        self._row = torch.empty(0)
        self._begin: int | None = None
        self._held: dict[int, list[Tensor]] = {}  # slice: sums of rows, in the order in which they came
        self._begins: list[int] = []
        self._weights = layout.uncut(weights).contiguous()
        self._of_window = layout.inside(weights).contiguous()  # the same, in model order
        self._weighted = torch.empty(0)  # scores of a few classes

    def add(self, k: int, j: int, i: int, window: Tensor) -> None:
        depth, height, width = self._layout.extent
        if self._row.numel() == 0:
            self._move(self._room(window.shape[0], self._deep, *self._layout.shape[1:]))
        if window.device.type == "cpu" and self._row.device != window.device:  # the network had to move
            self._move(self._row.to(window.device))
        if self._begin is None:
            self._begin = k
        if k not in self._begins[-1:]:
            self._begins.append(k)
        at = k - self._begin
        under = self._row[:, at : at + depth, j : j + height, i : i + width]
        few = len(self._weighted)
        for sums, scores in zip(torch.split(under, few), torch.split(self._layout.inside(window), few), strict=True):
            # Turned round a few classes at a time: all at once are as much again as the network gave.
            weighted = torch.mul(scores.to(sums.device), self._of_window, out=self._weighted[: len(scores)])
            sums += as_stored(weighted, self._layout.axes)

    def final(self, begin: int | None) -> Iterator[tuple[int, Tensor]]:
        if self._begin is None:
            return
        last = self._begins[-1] + self._layout.extent[0]
        done = last if begin is None else min(begin, last)
        weights = self._weights
        for k in range(self._begin, last):
            sums = [*self._held.pop(k, ()), self._row[:, k - self._begin]]
            at = (k - self._begin) % _TOGETHER
            if k < done and at == 0:
                weights = self._weight(k, min(k + _TOGETHER, done))
            if k < done:
                yield k, (self._sum(sums) / weights[at])[:, None]
            elif self._layout.backwards:
                self._held[k] = [*sums[:-1], sums[-1].clone()]
            else:
                self._held[k] = [sums[0].clone() if len(sums) == 1 else self._sum(sums)]
        depth = self._layout.extent[0]
        self._begins = [row for row in self._begins if begin is not None and row + depth > begin]
        self._begin = None
        self._row.zero_()

    def _weight(self, first: int, last: int) -> Tensor:
        """Of slices first..last-1 (k, j, i), over all rows."""
        depth, height, width = self._layout.extent
        shape = last - first, *self._layout.shape[1:]
        rows = []
        for begin in self._begins:
            low, high = max(first, begin), min(last, begin + depth)
            row = torch.zeros(shape, device=self._weights.device)
            for j, i in self._layout.in_plane() if low < high else ():
                under = row[low - first : high - first, j : j + height, i : i + width]
                under += self._weights[low - begin : high - begin]
            rows.append(row)
        return self._sum(rows)

    def _sum(self, rows: list[Tensor]) -> Tensor:
        first, *others = reversed(rows) if self._layout.backwards else rows
        for other in others:
            first = first + other
        return first

    def _move(self, row: Tensor) -> None:
        self._row = row
        self._weights, self._of_window = self._weights.to(row.device), self._of_window.to(row.device)
        classes = max(_WEIGHTED // self._weights.numel(), 1) if row.device.type == "cpu" else len(row)
        self._weighted = row.new_empty((min(classes, len(row)), *self._of_window.shape))
        self._held = {k: [old.to(row.device) for old in sums] for k, sums in self._held.items()}


class AsMonai:
    """In the order of MONAI's sliding_window_inference, its map of weights too. weights: as of `RowSums`."""

    def __init__(self, layout: Layout, weights: Tensor, room: Room) -> None:
        self._layout, self._weights, self._room = layout, layout.uncut(weights), room
        self._windows: list[tuple[int, int, int, Tensor]] = []
        self._first = 0

    def add(self, k: int, j: int, i: int, window: Tensor) -> None:
        window = self._layout.uncut(window)
        self._windows.append((k, j, i, window * self._weights.to(window.device)))

    def final(self, begin: int | None) -> Iterator[tuple[int, Tensor]]:
        depth, height, width = self._layout.extent
        if not self._windows:
            return
        first, last = self._first, max(k for k, *_ in self._windows) + depth if begin is None else begin
        scores = self._room(self._windows[0][3].shape[0], last - first, *self._layout.shape[1:])
        weights = self._room(last - first, *self._layout.shape[1:])
        for k, j, i, window in sorted(self._windows, key=lambda held: self._layout.number(*held[:3])):
            low, high = max(k, first), min(k + depth, last)
            under = slice(low - first, high - first), slice(j, j + height), slice(i, i + width)
            if low < high:
                scores[(slice(None), *under)] += window[:, low - k : high - k].to(scores.device)
                weights[under] += self._weights[low - k : high - k].to(scores.device)
        yield first, scores.div_(weights)
        self._first = last
        self._windows = [held for held in self._windows if held[0] + depth > last]


def as_stored(scores: Tensor, axes: Axes) -> Tensor:
    """As `Axes.to_source`, of scores that lie side by side in memory.

    Where the model has x first and rows run along x, as in an axial image, a CPU takes three times as long to add them
    up as they lie: there columns are brought side by side.
    """
    if scores.device.type != "cpu" or axes.model_axis(2) != 0:
        return axes.to_source(scores)
    dims = [1 + m for m in range(3) if axes.flipped[m]]
    scores = scores.flip(dims) if dims else scores
    count, x, y, z = scores.shape
    turned = scores.new_empty(count, y * z, x)
    for columns, planes in zip(turned, scores, strict=True):  # torch is quick with one matrix at a time
        columns.copy_(planes.view(x, y * z).t())
    return turned.view(count, y, z, x).permute(0, axes.model_axis(0), axes.model_axis(1), 3)
