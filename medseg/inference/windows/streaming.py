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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from itertools import chain, islice
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from medseg.inference.windows.batches import Batch, batches, next_size
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
    depth = layout.extent[0]
    # A 2D network along the slices has rows one slice deep: several share a batch.
    together = max(batch // len(layout.in_plane()), 1) if depth == 1 else 1
    deep = depth if together == 1 else min(together, layout.shape[0])
    stitch: Stitch = AsMonai(layout, weights, room) if exact else RowSums(layout, weights, deep, room)
    groups = iter(lambda: list(islice(rows, together)), [])
    scorer = _Scorer(network, batch, exact=exact)
    due = chain.from_iterable(_windows_of(group, planes, scorer, steady) for group in groups)
    with closing(_in_turn(due, scorer)) as scored:
        for window, scores in scored:
            if scores is None:
                yield from stitch.final(window.place[0])
                continue
            if window.done:
                tick(window.layout, window.done)
            stitch.add(*window.place, scores)
            del window, scores  # before the next ones come
    yield from stitch.final(None)


class _Due(NamedTuple):
    """A window whose turn comes; or, without an answer, a group of rows that begins. done: windows done with it."""

    layout: Layout
    place: Triple
    answer: Answer | None = None
    done: int = 1


class _Slab(NamedTuple):
    """Prepared slices (C, k, j, i) from `first` on, and where windows lie over them."""

    layout: Layout
    voxels: Tensor
    first: int

    def cut(self, place: Triple) -> Tensor:
        return self.layout.cut(self.voxels, place[0] - self.first, place[1], place[2])


def _in_turn(due: Iterator[_Due], scorer: _Scorer) -> Generator[tuple[_Due, Tensor | None]]:
    """Each of them, and its answer, in order; others have begun meanwhile, as many as may be ahead."""
    begun: deque[_Due] = deque()
    try:
        for window in due:
            begun.append(window)
            del window  # and its scores, once they were handed on
            while len(begun) > scorer.ahead:
                yield _answered(begun.popleft())
        while begun:
            yield _answered(begun.popleft())
    finally:
        for window in begun:  # what they were begun with may go then
            _answered(window)


def _answered(window: _Due) -> tuple[_Due, Tensor | None]:
    return window, None if window.answer is None else window.answer()


def _windows_of(
    group: list[tuple[Layout, int]], planes: Planes, scorer: _Scorer, steady: Callable[[], bool]
) -> Iterator[_Due]:
    """The windows of a group of rows, in order, once it was said that it begins."""
    layout, begin, end = group[-1][0], group[0][1], group[-1][1] + group[-1][0].extent[0]
    yield _Due(layout, (begin, 0, 0))
    low = max(begin - layout.reach, 0)
    slab = _Slab(layout, planes(low, min(end + layout.reach, layout.shape[0])), low)
    places = [(k, j, i) for _, k in group for j, i in layout.in_plane()]
    waiting = scorer.batches(layout, places, _blank(slab, places) if steady() else {})
    answers: dict[Triple, _Due] = {}
    for place in places:
        if place not in answers:
            batch = next(waiting)
            answers.update(zip(batch.places, scorer.begin(slab, batch), strict=True))
        yield answers.pop(place)


class _Scorer:
    """Windows -> their scores (K, *roi); has room for the windows that run at a time."""

    def __init__(self, network: Network, batch: int, *, exact: bool) -> None:
        self._network, self._batch, self._exact = network, batch, exact
        self._goes_on = network if isinstance(network, Begins) else None
        self._windows = torch.empty(0)
        self._begun = 0
        self._blank: tuple[int, Answer] | None = None  # the bits of its voxels, and its scores

    @property
    def ahead(self) -> int:
        """How many windows may have begun before one is waited for."""
        return 0 if self._goes_on is None else min(self._goes_on.ahead, self._batch - 1)

    def batches(self, layout: Layout, places: Sequence[Triple], blank: Mapping[Triple, int]) -> Iterator[Batch]:
        def size(left: int) -> int:
            return 1 if self.ahead else next_size(left, self._batch, exact=self._exact)

        alone = layout.alone(self._batch) if self._exact else None
        return batches(places, blank, size, exact=self._exact, alone=alone)

    def begin(self, slab: _Slab, batch: Batch) -> list[_Due]:
        """The windows of a batch, computed or begun with."""
        if batch.bits is not None:
            if self._blank is None or self._blank[0] != batch.bits:
                self._blank = batch.bits, cache(self._answers(slab, Batch(batch.places[:1], batch.filled))[0])
            answer = self._blank[1]
            return [_Due(slab.layout, place, answer) for place in batch.places]
        answers = self._answers(slab, batch)
        done = [len(answers)] + [0] * (len(answers) - 1)  # a batch is done with its first
        return [_Due(slab.layout, *window) for window in zip(batch.places, answers, done, strict=True)]

    def _answers(self, slab: _Slab, batch: Batch) -> list[Answer]:
        if self._windows.numel() == 0:
            channels = slab.voxels.shape[0] * slab.layout.slices
            self._windows = slab.voxels.new_zeros((self._batch, channels, *slab.layout.roi))
        if self._goes_on is not None and self.ahead:
            return [self._on_its_way(self._goes_on, slab, place) for place in batch.places]
        return self._together(slab, batch)

    def _together(self, slab: _Slab, batch: Batch) -> list[Answer]:
        count = len(batch.places)
        for n, place in enumerate(batch.places):
            self._windows[n] = slab.cut(place)
        scores = self._network(self._windows if batch.filled else self._windows[:count])[:count]
        return [partial(_itself, window) for window in scores]

    def _on_its_way(self, network: Begins, slab: _Slab, place: Triple) -> Answer:
        window = self._windows[self._begun % self._batch][None]  # of none that is on its way
        self._begun += 1
        window[0] = slab.cut(place)
        answer = network.begin(window)
        return lambda: answer()[0]


def _itself(scores: Tensor) -> Tensor:
    return scores


def _blank(slab: _Slab, places: Iterable[Triple]) -> dict[Triple, int]:
    """Those of the windows whose voxels all have the same bits, and these."""
    bits = ((place, _bits(slab, place)) for place in places)
    return {place: same for place, same in bits if same is not None}


def _bits(slab: _Slab, place: Triple) -> int | None:
    """The bits of a window's voxels where all are the same, else None."""
    k, j, i = place[0] - slab.first, place[1], place[2]
    depth, height, width = slab.layout.extent
    under = slab.voxels[0, k : k + depth, j : j + height, i : i + width]
    if any(bool(under[0, 0, 0] != other) for other in (under[-1, -1, -1], under[depth // 2, height // 2, width // 2])):
        return None  # most are told by that
    low, high = torch.aminmax(slab.cut(place).view(torch.int32))
    return int(low) if low == high else None
