"""Windows in rows along the slices: class scores come out slab by slab, while later rows wait for their slices.

    slices -> 0 1 2 3 4 5 6 7 8 9            one row = all windows that begin at one slice
    row 0     [-------]                      row 1 is to begin at 3: slices 0..2 are final, they leave
    row 1           [-------]                row 2 is to begin at 5: slices 3..4 leave
    row 2               [-------]            the last row, pulled back to the edge; done: the rest leaves

Where the number of slices is not known, a row can run as soon as its slices are there: a row of so many slices always
begins there, whatever comes. Only where the row after it begins is known later, when that has its slices or the end
has come; so slices leave one row later than they are computed.

Scores of as many slices as one window is deep exist at a time, whatever the number of slices. A voxel's score is
sum(weight * score) / sum(weight) over its windows, as in MONAI's sliding_window_inference; only the order of the
additions differs, hence agreement to about 1e-6 rather than to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor

from medseg.inference.windows import Layout

Planes = Callable[[int, int], Tensor]
"""planes(first, last): prepared slices first..last-1 as (C, k, j, i), waiting for them if need be. `first` grows."""

Network = Callable[[Tensor], Tensor]
"""(B, C, *roi) -> (B, K, *roi), both in model axis order, float32."""


Rows = Iterator[tuple[Layout, int]]
"""Where each row of windows begins, in order, and the layout by which it lies; waiting for either if need be.

Layouts of one volume differ in the number of its slices alone; that of the last row has the true one."""


def rows_of(where: Layout) -> Rows:
    """The rows of a volume whose slices are all there."""
    return ((where, begin) for begin, _ in where.rows())


def stream(
    planes: Planes,
    rows: Rows,
    weights: Tensor,
    network: Network,
    *,
    batch: int,
    tick: Callable[[Layout, int], None],
    room: Callable[..., Tensor] = torch.zeros,
) -> Iterator[tuple[int, Tensor]]:
    """Run the network over all windows; yield (first slice, scores (K, k, j, i)) of each slab as it becomes final.

    Slabs follow each other without a gap and cover the volume. weights: of a window, (*roi) in model order.
    tick: called with the layout and the number of windows done since its last call; may raise to stop.
    room: zeros of a shape, on the device where scores are to be stitched.
    """
    first_row = next(rows)
    where, base = first_row
    rows = chain([first_row], rows)
    at = where.in_plane()
    depth, height, width = where.extent
    # A 2D network along the slices has rows one slice deep: several share a batch.
    together = max(batch // len(at), 1) if depth == 1 else 1
    deep = depth if together == 1 else min(together, where.shape[0])
    stored_weights = where.uncut(weights)
    windows = scores = weight_sum = torch.empty(0)
    while group := list(islice(rows, together)):
        where, begin = group[-1][0], group[0][1]
        if begin > base:
            yield base, scores[:, : begin - base] / weight_sum[: begin - base]
            _shift(scores, begin - base)
            _shift(weight_sum[None], begin - base)
            base = begin
        low = max(base - where.reach, 0)
        slab = planes(low, min(group[-1][1] + depth + where.reach, where.shape[0]))
        if windows.numel() == 0:
            windows = torch.empty((batch, slab.shape[0] * where.slices, *where.roi), dtype=slab.dtype)
        todo = [(k - base, j, i) for _, k in group for j, i in at]
        for chunk in (todo[n : n + batch] for n in range(0, len(todo), batch)):
            for n, (k, j, i) in enumerate(chunk):
                windows[n] = where.cut(slab, base + k - low, j, i)
            out = network(windows[: len(chunk)])
            if scores.numel() == 0:
                scores, weight_sum = room(out.shape[1], deep, *where.shape[1:]), room(deep, *where.shape[1:])
            if out.device.type == "cpu" and scores.device != out.device:  # the network had to move
                scores, weight_sum = scores.to(out.device), weight_sum.to(out.device)
            weights, stored_weights = weights.to(out.device), stored_weights.to(scores.device)
            weight_sum = weight_sum.to(scores.device)
            for (k, j, i), window in zip(chunk, (out * weights).to(scores.device), strict=True):
                under = (slice(k, k + depth), slice(j, j + height), slice(i, i + width))
                scores[(slice(None), *under)] += where.uncut(window)
                weight_sum[under] += stored_weights
            tick(where, len(chunk))
    rest = where.shape[0] - base
    yield base, scores[:, :rest] / weight_sum[:rest]


def _shift(buffer: Tensor, by: int) -> None:
    """Move (C, k, j, i) down by `by` slices, zeros behind; plane by plane, so that nothing is copied whole."""
    kept = max(buffer.shape[1] - by, 0)
    for k in range(kept):
        buffer[:, k] = buffer[:, k + by]
    buffer[:, kept:] = 0
