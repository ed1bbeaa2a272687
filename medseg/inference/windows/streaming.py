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

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, islice
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from medseg.inference.windows.layout import Layout, Triple
from medseg.inference.windows.stitching import AsMonai, Room, RowSums, Stitch

Planes = Callable[[int, int], Tensor]
"""planes(first, last): prepared slices first..last-1 as (C, k, j, i), waiting for them if need be. `first` grows."""

Network = Callable[[Tensor], Tensor]
"""(B, C, *roi) -> (B, K, *roi), both in model axis order, float32."""

Answer = Callable[[], Tensor]
"""What a network gives for the windows that it has begun with: waits for it."""


@runtime_checkable
class Begins(Protocol):
    """A network that can go on by itself with windows while others are cut out and stitched."""

    def __call__(self, windows: Tensor, /) -> Tensor:
        """See `Network`."""
        ...

    @property
    def ahead(self) -> int:
        """How many windows may be on their way while one is waited for; 0 where it cannot, or is not known yet."""
        ...

    def begin(self, window: Tensor, /) -> Answer:
        """(1, C, *roi), to be left as it is until there is the answer, (1, K, *roi)."""
        ...


Tick = Callable[[Layout, int], None]
"""Called with the layout and the number of windows done since the last call; may raise to stop."""

Rows = Iterator[tuple[Layout, int]]
"""Where each row of windows begins, in order, and the layout by which it lies; waiting for either if need be.

Layouts of one volume differ in the number of its slices alone; that of the last row has the true one."""


def rows_of(layout: Layout) -> Rows:
    """The rows of a volume whose slices are all there."""
    return ((layout, begin) for begin, _ in layout.rows())


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
    layout = first_row[0]
    rows = chain([first_row], rows)
    at = layout.in_plane()
    depth = layout.extent[0]
    # A 2D network along the slices has rows one slice deep: several share a batch.
    together = max(batch // len(at), 1) if depth == 1 else 1
    deep = depth if together == 1 else min(together, layout.shape[0])
    stored = layout.uncut(weights)
    stitch: Stitch = AsMonai(layout, stored, room) if exact else RowSums(layout, stored, deep, room)
    groups = iter(lambda: list(islice(rows, together)), [])
    for place, window in _Weighted(planes, network, weights, batch, tick, exact=exact, steady=steady)(groups, at):
        if window is None:
            yield from stitch.final(place[0])
        else:
            stitch.add(*place, window)
    yield from stitch.final(None)


class _Due(NamedTuple):
    """A window whose turn comes; or, without an answer, a group of rows that begins. more: windows done with it."""

    layout: Layout
    place: Triple
    answer: Answer | None = None
    more: int = 1


class _Weighted:
    """Windows -> their scores, times their weights."""

    def __init__(
        self,
        planes: Planes,
        network: Network,
        weights: Tensor,
        batch: int,
        tick: Tick,
        *,
        exact: bool,
        steady: Callable[[], bool],
    ) -> None:
        self._planes, self._network, self._weights, self._batch, self._tick = planes, network, weights, batch, tick
        self._exact, self._steady = exact, steady
        self._begins = network if isinstance(network, Begins) else None
        self._windows = torch.empty(0)
        self._begun = 0
        self._blank: tuple[int, Answer] | None = None  # the bits of its voxels, and its weighted scores

    def __call__(
        self, groups: Iterator[list[tuple[Layout, int]]], at: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[Triple, Tensor | None]]:
        """Where each group of rows begins, without scores; then its windows, (K, *extent), in order."""
        due: deque[_Due] = deque()
        try:
            for one in chain.from_iterable(self._group(group, at) for group in groups):
                due.append(one)
                while len(due) > self._ahead:
                    yield self._done(due.popleft())
            while due:
                yield self._done(due.popleft())
        finally:
            for one in due:  # what they were begun with may go then
                if one.answer is not None:
                    one.answer()

    @property
    def _ahead(self) -> int:
        return 0 if self._begins is None else min(self._begins.ahead, self._batch - 1)

    def _done(self, one: _Due) -> tuple[Triple, Tensor | None]:
        if one.answer is None:
            return one.place, None
        window = one.answer()
        if one.more:
            self._tick(one.layout, one.more)
        return one.place, window

    def _group(self, group: list[tuple[Layout, int]], at: Sequence[tuple[int, int]]) -> Iterator[_Due]:
        layout, begin, end = group[-1][0], group[0][1], group[-1][1] + group[-1][0].extent[0]
        yield _Due(layout, (begin, 0, 0))
        low = max(begin - layout.reach, 0)
        slab = self._planes(low, min(end + layout.reach, layout.shape[0]))
        places = [(k, j, i) for _, k in group for j, i in at]
        alone = layout.alone(self._batch) if self._exact else None
        blank: dict[Triple, int] = {}
        if self._steady():
            found = ((place, _blank(layout, slab, low, place)) for place in places if place != alone)
            blank = {place: bits for place, bits in found if bits is not None}
        others = deque(place for place in places if place not in blank and place != alone)
        batch: deque[_Due] = deque()
        for place in places:
            if place == alone:
                yield from self._begin(layout, slab, low, [place], full=False)
            elif place in blank:
                if self._blank is None or self._blank[0] != blank[place]:
                    (one,) = self._begin(layout, slab, low, [place], full=self._exact)
                    assert one.answer is not None
                    self._blank = blank[place], cache(one.answer)
                yield _Due(layout, place, self._blank[1])
            else:
                if not batch:
                    wanted = [others.popleft() for _ in range(self._size(len(others)))]
                    batch.extend(self._begin(layout, slab, low, wanted, full=self._exact))
                yield batch.popleft()

    def _size(self, left: int) -> int:
        """Windows of the next batch. As even as can be, since a batch of one is slow, but in pairs, of which no
        back-end has one to spare. For MONAI's bits as full as can be."""
        if self._ahead:
            return 1
        many = -(-left // self._batch)
        if self._exact or many == 1:
            return min(self._batch, left)
        pair = 1 if self._batch % 2 else 2
        return round(left / many / pair) * pair

    def _begin(self, layout: Layout, slab: Tensor, first: int, places: list[Triple], *, full: bool) -> list[_Due]:
        """full: MONAI's batches are, but for the last."""
        if self._windows.numel() == 0:
            self._windows = torch.zeros((self._batch, slab.shape[0] * layout.slices, *layout.roi), dtype=slab.dtype)
        begins, windows = self._begins if self._ahead else None, self._windows
        if begins is not None:
            windows = windows[self._begun % self._batch][None]  # none that is on its way
            self._begun += 1
        for n, (k, j, i) in enumerate(places):
            windows[n] = layout.cut(slab, k - first, j, i)
        if begins is not None:
            answer = begins.begin(windows)
            return [_Due(layout, place, lambda: self._weighted(layout, answer()[0])) for place in places]
        scores = self._network(windows if full else windows[: len(places)])[: len(places)]
        each = zip(places, scores, [len(places)] + [0] * (len(places) - 1), strict=True)  # done with the first
        return [_Due(layout, place, partial(self._weighted, layout, window), n) for place, window, n in each]

    def _weighted(self, layout: Layout, scores: Tensor) -> Tensor:
        self._weights = self._weights.to(scores.device)
        return layout.uncut(scores * self._weights)


def _blank(layout: Layout, slab: Tensor, first: int, place: Triple) -> int | None:
    """The bits of a window's voxels where all are the same, else None."""
    k, j, i = place[0] - first, place[1], place[2]
    depth, height, width = layout.extent
    under = slab[0, k : k + depth, j : j + height, i : i + width]
    if any(bool(under[0, 0, 0] != other) for other in (under[-1, -1, -1], under[depth // 2, height // 2, width // 2])):
        return None  # most are told by that
    low, high = torch.aminmax(layout.cut(slab, k, j, i).view(torch.int32))
    return int(low) if low == high else None
