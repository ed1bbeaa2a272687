"""The sliding window: where windows lie and what they weigh, as MONAI's sliding_window_inference.

one axis, 10 voxels, window 5, step 3
  0 1 2 3 4 . . . . .
  . . . 3 4 5 6 7 . .
  . . . . . 5 6 7 8 9      the last window is pulled back to the edge

an axis of 3 voxels, window 6: padded on both sides, less before than after
  p 0 1 2 p p
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional

from medseg.bundle.recipe import Blend, Window
from medseg.inference.grids.grid import Axes

Triple = tuple[int, int, int]


def starts(length: int, size: int, overlap: float) -> tuple[int, ...]:
    """First voxels of the windows of `size` on an axis of `length` >= size voxels."""
    last = length - size
    step = max(int(size * (1 - overlap)), 1)
    return (*range(0, last, step), last)


def padding(length: int, size: int) -> tuple[int, int]:
    """Voxels to add before and after an axis that is shorter than its window."""
    missing = max(size - length, 0)
    return missing // 2, missing - missing // 2


def importance(roi: Sequence[int], blend: Blend, sigma_scale: float) -> Tensor:
    """Weight of each voxel of a window, float32, at least 1e-3 (MONAI compute_importance_map)."""
    weights = torch.ones(tuple(roi))
    if blend is Blend.GAUSSIAN:
        weights = torch.ones(())
        for size in roi:
            away = torch.arange(-(size - 1) / 2.0, (size - 1) / 2.0 + 1, dtype=torch.float)
            weights = weights.unsqueeze(-1) * torch.exp(away**2 / (-2 * (sigma_scale * size) ** 2))
    return weights.clamp_(min=max(float(weights.min()), 1e-3))


@dataclass(frozen=True)
class Layout:
    """All windows over one prepared volume.

    shape: of the volume, stored order (k, j, i). roi, pads, padding_mode, cval: in model axis order.
    extent: voxels of the volume under one window, stored order: min(shape, roi).
    begins: first voxels under the windows per stored axis; k ascending, j and i as MONAI visits them.
    slices: how many neighbours along the model's `slice_axis` a window holds as channels, itself in the middle.
    """

    axes: Axes
    shape: Triple
    roi: Triple
    pads: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    padding_mode: str
    cval: float
    extent: Triple
    begins: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    slices: int = 1
    slice_axis: int = 2

    def rows(self) -> Iterator[tuple[int, int]]:
        """(k, done): a row of windows that begins at plane k, after which the planes below `done` are final."""
        yield from pairwise([*self.begins[0], self.shape[0]])

    def in_plane(self) -> list[tuple[int, int]]:
        """(j, i) of the windows of a row, in MONAI's order."""
        if self.axes.model_axis(1) < self.axes.model_axis(2):
            return list(product(self.begins[1], self.begins[2]))
        return [(j, i) for i, j in product(self.begins[2], self.begins[1])]

    def number(self, k: int, j: int, i: int) -> tuple[int, ...]:
        """What orders the windows that begin at (k, j, i) as MONAI visits them: where they begin along model axes."""
        begins = (k, j, i)
        return tuple(
            -begins[axis] if flipped else begins[axis]
            for axis, flipped in zip(self.axes.order, self.axes.flipped, strict=True)
        )

    @property
    def backwards(self) -> bool:
        """Whether the model counts slices from the last one."""
        return self.axes.flipped[self.axes.model_axis(0)]

    def alone(self, batch: int) -> Triple | None:
        """Where the window begins that MONAI runs by itself, though others go `batch` at a time; None for none."""
        if batch == 1 or self.count % batch != 1:
            return None
        return self.begins[0][0 if self.backwards else -1], self.begins[1][-1], self.begins[2][-1]

    def mirrored(self) -> Layout:
        """The same windows, with slices counted from the other end."""
        m, last = self.axes.model_axis(0), self.shape[0] - self.extent[0]
        flipped = [not flip if axis == m else flip for axis, flip in enumerate(self.axes.flipped)]
        axes = replace(self.axes, flipped=(flipped[0], flipped[1], flipped[2]))
        begins = tuple(last - begin for begin in reversed(self.begins[0]))
        return replace(self, axes=axes, begins=(begins, *self.begins[1:]))

    @property
    def count(self) -> int:
        return len(self.begins[0]) * len(self.begins[1]) * len(self.begins[2])

    @property
    def reach(self) -> int:
        """How many stored slices before and after its own a window needs."""
        return self.slices // 2 if self.axes.order[self.slice_axis] == 0 else 0

    def cut(self, slab: Tensor, k: int, j: int, i: int) -> Tensor:
        """The window that begins at voxel (k, j, i) of a slab (C, k, j, i), as the network wants it.

        (C, *roi), or (slices * C, *roi): neighbour after neighbour along the slice axis, the slab's edge repeated.
        """
        if self.slices == 1:
            return self._cut(slab, k, j, i)
        axis, toward = self.axes.order[self.slice_axis], -1 if self.axes.flipped[self.slice_axis] else 1
        seen = []
        for away in range(-(self.slices // 2), self.slices // 2 + 1):
            begin = [k, j, i]
            begin[axis] = min(max(begin[axis] + toward * away, 0), slab.shape[1 + axis] - 1)
            seen.append(self._cut(slab, *begin))
        return torch.cat(seen)

    def _cut(self, slab: Tensor, k: int, j: int, i: int) -> Tensor:
        depth, rows, columns = self.extent
        window = self.axes.to_model(slab[:, k : k + depth, j : j + rows, i : i + columns])
        if not any(before or after for before, after in self.pads):
            return window
        reverse = [amount for pair in reversed(self.pads) for amount in pair]  # torch pads the last axis first
        if self.padding_mode == "constant":
            return functional.pad(window, reverse, value=self.cval)
        return functional.pad(window[None], reverse, mode=self.padding_mode)[0]

    def uncut(self, window: Tensor) -> Tensor:
        """(..., *roi) in model order -> the voxels under it, (..., *extent) in stored order, without the padding."""
        return self.axes.to_source(self.inside(window))

    def inside(self, window: Tensor) -> Tensor:
        """(..., *roi) in model order -> the same without the padding."""
        x, y, z = (slice(before, size - after) for size, (before, after) in zip(self.roi, self.pads, strict=True))
        return window[..., x, y, z]


def lay_out(shape: Triple, axes: Axes, window: Window) -> Layout:
    """Where `window` lies over a volume of `shape` (stored order).

    A roi of two entries is one slice thick along the window's `slice_axis` (MONAI SliceInferer); an entry that is
    not positive takes the whole axis.
    """
    model_shape = [shape[axes.order[m]] for m in range(3)]
    roi, overlap = list(window.roi), list(window.overlap)
    if len(roi) == 2:
        roi.insert(window.slice_axis, 1)
        overlap.insert(window.slice_axis, 0.0)
    roi = [size if size > 0 else length for size, length in zip(roi, model_shape, strict=True)]
    pads = [padding(length, size) for length, size in zip(model_shape, roi, strict=True)]
    begins: list[tuple[int, ...]] = [(), (), ()]
    extent = [0, 0, 0]
    for m, stored in enumerate(axes.order):
        length = model_shape[m]
        extent[stored] = min(length, roi[m])
        at = starts(max(length, roi[m]), roi[m], overlap[m])
        if axes.flipped[m]:
            at = tuple(length - extent[stored] - first for first in at)
        begins[stored] = tuple(sorted(at)) if stored == 0 else at
    return Layout(
        axes,
        shape,
        (roi[0], roi[1], roi[2]),
        (pads[0], pads[1], pads[2]),
        window.padding_mode,
        window.cval,
        (extent[0], extent[1], extent[2]),
        (begins[0], begins[1], begins[2]),
        window.slices,
        window.slice_axis,
    )
