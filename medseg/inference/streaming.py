"""Windows in rows along the slices: class scores come out slab by slab, while later rows wait for their slices.

    slices -> 0 1 2 3 4 5 6 7 8 9            one row = all windows that begin at one slice
    row 0     [-------]                      done: slices 0..2 are final, they leave
    row 1           [-------]                done: slices 3..4 leave
    row 2               [-------]            the last row, pulled back to the edge: the rest leaves

Scores of as many slices as one window is deep exist at a time, whatever the number of slices. A voxel's score is
sum(weight * score) / sum(weight) over its windows, as in MONAI's sliding_window_inference; only the order of the
additions differs, hence agreement to about 1e-6 rather than to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from medseg.inference.windows import Layout

Planes = Callable[[int, int], Tensor]
"""planes(first, last): prepared slices first..last-1 as (C, k, j, i), waiting for them if need be. `first` grows."""

Network = Callable[[Tensor], Tensor]
"""(B, C, *roi) -> (B, K, *roi), both in model axis order, float32."""


def stream(
    planes: Planes, where: Layout, weights: Tensor, network: Network, *, batch: int, tick: Callable[[int], None]
) -> Iterator[tuple[int, Tensor]]:
    """Run the network over all windows; yield (first slice, scores (K, k, j, i)) of each slab as it becomes final.

    Slabs follow each other without a gap and cover the volume. weights: of a window, (*roi) in model order.
    tick: called with the number of windows done since its last call; may raise to stop.
    """
    at = where.in_plane()
    depth, height, width = where.extent
    rows = list(where.rows())
    # A 2D network along the slices has rows one slice deep: several share a batch.
    together = max(batch // len(at), 1) if depth == 1 else 1
    stored_weights = where.uncut(weights)
    windows = scores = weight_sum = torch.empty(0)
    room = 0
    for first in range(0, len(rows), together):
        group = rows[first : first + together]
        base, done = group[0][0], group[-1][1]
        slab = planes(base, group[-1][0] + depth)
        if first == 0:
            windows = torch.empty((batch, slab.shape[0], *where.roi), dtype=slab.dtype)
        todo = [(k - base, j, i) for k, _ in group for j, i in at]
        for chunk in (todo[n : n + batch] for n in range(0, len(todo), batch)):
            for n, begin in enumerate(chunk):
                windows[n] = where.cut(slab, *begin)
            out = network(windows[: len(chunk)])
            if room == 0:
                room = depth if together == 1 else min(together, len(rows))
                scores = torch.zeros((out.shape[1], room, *where.shape[1:]), device=out.device)
                weight_sum = torch.zeros((room, *where.shape[1:]), device=out.device)
            if out.device != scores.device:  # the network had to move
                scores, weight_sum = scores.to(out.device), weight_sum.to(out.device)
            weights, stored_weights = weights.to(out.device), stored_weights.to(out.device)
            for (k, j, i), window in zip(chunk, out * weights, strict=True):
                under = (slice(k, k + depth), slice(j, j + height), slice(i, i + width))
                scores[(slice(None), *under)] += where.uncut(window)
                weight_sum[under] += stored_weights
            tick(len(chunk))
        final = done - base
        yield base, scores[:, :final] / weight_sum[:final]
        _shift(scores, final)
        _shift(weight_sum[None], final)


def _shift(buffer: Tensor, by: int) -> None:
    """Move (C, k, j, i) down by `by` slices, zeros behind; plane by plane, so that nothing is copied whole."""
    kept = max(buffer.shape[1] - by, 0)
    for k in range(kept):
        buffer[:, k] = buffer[:, k + by]
    buffer[:, kept:] = 0
