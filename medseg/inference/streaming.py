"""Windows in rows along the slices: class scores come out slab by slab, while later rows wait for their slices.

    slices -> 0 1 2 3 4 5 6 7 8 9            one row = all windows that begin at one slice
    row 0     [-------]                      row 1 is to begin at 3: slices 0..2 are final, they leave
    row 1           [-------]                row 2 is to begin at 5: slices 3..4 leave
    row 2               [-------]            the last row, pulled back to the edge; done: the rest leaves

Where the number of slices is not known, a row can run as soon as its slices are there: a row of so many slices always
begins there, whatever comes. Only where the row after it begins is known later, when that has its slices or the end
has come; so slices leave one row later than they are computed.

Scores of as many slices as one window is deep exist at a time, and half as many again at an overlap of one half,
whatever the number of slices. In which order windows are added is told by `stitching`: as rows come, within 1e-5 of
MONAI's sliding_window_inference, or in MONAI's own order, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise

import torch
from torch import Tensor

from medseg.inference.stitching import AsMonai, Room, RowSums, Stitch
from medseg.inference.windows import Layout, Triple

Planes = Callable[[int, int], Tensor]
"""planes(first, last): prepared slices first..last-1 as (C, k, j, i), waiting for them if need be. `first` grows."""

Network = Callable[[Tensor], Tensor]
"""(B, C, *roi) -> (B, K, *roi), both in model axis order, float32."""

Tick = Callable[[Layout, int], None]
"""Called with the layout and the number of windows done since the last call; may raise to stop."""

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
    tick: Tick,
    room: Room = torch.zeros,
    exact: bool = False,
    steady: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Tensor]]:
    """Run the network over all windows; yield (first slice, scores (K, k, j, i)) of each slab as it becomes final.

    Slabs follow each other without a gap and cover the volume. weights: of a window, (*roi) in model order.
    room: zeros of a shape, on the device where scores are to be stitched.
    exact: MONAI's bits, given a network whose scores depend on the number of windows in a batch at most.
    steady: whether a window's scores are the same in any batch; then those of blank windows are computed once.
    """
    first_row = next(rows)
    where = first_row[0]
    rows = chain([first_row], rows)
    at = where.in_plane()
    depth = where.extent[0]
    # A 2D network along the slices has rows one slice deep: several share a batch.
    together = max(batch // len(at), 1) if depth == 1 else 1
    deep = depth if together == 1 else min(together, where.shape[0])
    stored = where.uncut(weights)
    stitch: Stitch = AsMonai(where, stored, room) if exact else RowSums(where, stored, deep, room)
    weighted = _Weighted(network, weights, batch, tick, exact=exact, steady=steady)
    while group := list(islice(rows, together)):
        where, begin, end = group[-1][0], group[0][1], group[-1][1] + depth
        yield from stitch.final(begin)
        low = max(begin - where.reach, 0)
        slab = planes(low, min(end + where.reach, where.shape[0]))
        places = [(k, j, i) for _, k in group for j, i in at]
        for place, window in zip(places, weighted(where, slab, low, places), strict=True):
            stitch.add(*place, window)
    yield from stitch.final(None)


class _Weighted:
    """Windows of a slab -> their scores, times their weights."""

    def __init__(
        self, network: Network, weights: Tensor, batch: int, tick: Tick, *, exact: bool, steady: Callable[[], bool]
    ) -> None:
        self._network, self._weights, self._batch, self._tick = network, weights, batch, tick
        self._exact, self._steady = exact, steady
        self._windows = torch.empty(0)
        self._blank: tuple[int, Tensor] | None = None  # the bits of its voxels, and its weighted scores

    def __call__(self, where: Layout, slab: Tensor, first: int, places: Sequence[Triple]) -> Iterator[Tensor]:
        """(K, *extent) of the windows at `places`, in this order. first: slice of the volume that is slab[:, 0]."""
        alone = where.alone(self._batch) if self._exact else None
        blank: dict[Triple, int] = {}
        if self._steady():
            found = ((place, _blank(where, slab, first, place)) for place in places if place != alone)
            blank = {place: bits for place, bits in found if bits is not None}
        others = [place for place in places if place not in blank and place != alone]
        run = self._run(where, slab, first, self._batches(others))
        for place in places:
            if place == alone:
                yield from self._run(where, slab, first, [[place]])
            elif place not in blank:
                yield next(run)
            else:
                if self._blank is None or self._blank[0] != blank[place]:
                    (scores,) = self._run(where, slab, first, self._batches([place]))
                    self._blank = blank[place], scores.clone()
                else:
                    self._tick(where, 1)
                yield self._blank[1]

    def _batches(self, places: list[Triple]) -> Iterator[list[Triple]]:
        """As even as can be, since a batch of one is slow, but in pairs, of which no back-end has one to spare. For
        MONAI's bits as full as can be."""
        count = len(places)
        many = max(-(-count // self._batch), 1)
        if self._exact:
            ends = [self._batch * n for n in range(many + 1)]
        else:
            pair = 1 if self._batch % 2 else 2
            ends = [min((2 * count * n // (many * pair) + 1) // 2 * pair, count) for n in range(many + 1)]
        return (places[begin:end] for begin, end in pairwise(ends))

    def _run(
        self, where: Layout, slab: Tensor, first: int, batches: Iterator[list[Triple]] | list[list[Triple]]
    ) -> Iterator[Tensor]:
        if self._windows.numel() == 0:
            self._windows = torch.zeros((self._batch, slab.shape[0] * where.slices, *where.roi), dtype=slab.dtype)
        for batch in batches:
            for n, (k, j, i) in enumerate(batch):
                self._windows[n] = where.cut(slab, k - first, j, i)
            # MONAI's batches are full but for the last
            full = self._exact and batch != [where.alone(self._batch)]
            scores = self._network(self._windows if full else self._windows[: len(batch)])[: len(batch)]
            self._weights = self._weights.to(scores.device)
            self._tick(where, len(batch))
            yield from (where.uncut(window * self._weights) for window in scores)


def _blank(where: Layout, slab: Tensor, first: int, place: Triple) -> int | None:
    """The bits of a window's voxels where all are the same, else None."""
    k, j, i = place[0] - first, place[1], place[2]
    depth, height, width = where.extent
    under = slab[0, k : k + depth, j : j + height, i : i + width]
    if any(bool(under[0, 0, 0] != other) for other in (under[-1, -1, -1], under[depth // 2, height // 2, width // 2])):
        return None  # most are told by that
    low, high = torch.aminmax(where.cut(slab, k, j, i).view(torch.int32))
    return int(low) if low == high else None
