"""Windows of the whole image, of which only those run that meet a box: inside the box they give what all of them would.

    windows over the image     [0][1][2][3][4][5][6]
    box                               [-----]
    those that meet it               [2][3][4]           a voxel in the box lies under these alone
    what they hold of it              kkkkkkk            the rest of their scores lacks other windows, and is dropped

Order and size of additions are those of the whole image, so scores have the same bits. Planes of scores keep the size
of the model's grid until they are activated, since how torch rounds depends on where a row of memory ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from medseg.bundle.recipe import Finish, Recipe
from medseg.dicom.instance import Vector
from medseg.dicom.series import Stack
from medseg.inference import memory
from medseg.inference.arriving.axis import SliceAxis, axis_through, plan
from medseg.inference.context import PipelineContext
from medseg.inference.grids.prepare import prepare
from medseg.inference.grids.resample import InPlane, Taps
from medseg.inference.grids.restore import Certainty, Parallel, Slanted, ToSource, so_far, to_source
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.regions.boxes import RegionBox, Triple
from medseg.inference.regions.crop import Cut
from medseg.inference.regions.settled import passing, settled_recipe
from medseg.inference.scores import Slab, restoring, slabs
from medseg.inference.whole import read_whole
from medseg.inference.windows.layout import Layout, lay_out
from medseg.inference.windows.streaming import Planes, rows_of

OUTSIDE = -1e4  # a score of what was not computed: no label of its own


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of an image, to be looked through at parts.

    layout: where they lie. back: from the model's grid to the slices, which are counted from the last one where
    `backwards`. planes: prepared slices from a number on, see `streaming.Planes`.
    """

    stack: Stack
    layout: Layout
    back: ToSource
    backwards: bool
    planes: Callable[[int], Planes]

    @classmethod
    def of(cls, context: PipelineContext, stack: Stack) -> Windows:
        axis = axis_through(stack, context.recipe)
        if isinstance(axis, SliceAxis):
            recipe = settled_recipe(context, stack)
            way = plan(axis, len(stack.slices), recipe)
            backwards = axis.slices[0] is not stack.slices[0]
            return cls(stack, way.layout, way.back, backwards, partial(_along, context, stack, axis, recipe))
        voxels = read_whole(context, stack, LabelCollector(context.bundle, context.floor))
        prepared = prepare(voxels, stack.as_read, context.recipe, tilted=stack.tilt_deg != 0)
        z, y, x = prepared.voxels.shape[1:]
        layout = lay_out((z, y, x), prepared.frame.axes, context.recipe.window)
        back = to_source(prepared, stack.coordinates, stack.shape[1:], context.recipe.finish)
        return cls(stack, layout, back, False, lambda _: lambda first, last: prepared.voxels[:, first:last])

    def _slices(self, box: RegionBox) -> tuple[int, int]:
        """The first slice of a box, and the one after its last, as the windows meet them."""
        count = self.stack.shape[0]
        return (count - box.high[0], count - box.low[0]) if self.backwards else (box.low[0], box.high[0])

    def under(self, box: RegionBox) -> RegionBox:
        """The voxels of the model's grid that labels in a box are made of."""
        (first, last), back = self._slices(box), self.back
        if isinstance(back, Parallel):
            rows, columns = back.in_plane.rows, back.in_plane.columns
            spans = [
                _span(taps, begin, end)
                for taps, begin, end in (
                    (back.slices, first, last),
                    (rows, box.low[1], box.high[1]),
                    (columns, box.low[2], box.high[2]),
                )
            ]
        else:
            assert isinstance(back, Slanted)
            spans = _slanted_spans(back, first, last, box, self.layout.shape)
        (k, z), (j, y), (i, x) = spans
        return RegionBox((k, j, i), (z, y, x))

    def meeting(self, box: RegionBox) -> tuple[Layout, Triple]:
        """The windows that meet a box of the model's grid, as a layout of their own, and where that begins."""
        layout, spans, begins = self.layout, [], []
        sides = layout.axes.order[layout.slice_axis] if layout.slices > 1 else None
        for axis in range(3):
            size, low, high = layout.extent[axis], box.low[axis], box.high[axis]
            met = [begin for begin in layout.begins[axis] if begin < high and begin + size > low]
            around = layout.slices // 2 if axis == sides else 0  # neighbours that a window sees as channels
            first, last = max(min(met) - around, 0), min(max(met) + size + around, layout.shape[axis])
            spans.append((first, last))
            begins.append(tuple(begin - first for begin in met))
        (k, z), (j, y), (i, x) = spans
        part = replace(layout, shape=(z - k, y - j, x - i), begins=(begins[0], begins[1], begins[2]))
        return part, (k, j, i)

    def fewer_together(self, one: RegionBox, other: RegionBox) -> bool:
        """Whether the box around both meets no more windows than they do, each of which would run for both."""
        both = one.with_(other)
        return one.meets(other) or self._count(both) <= self._count(one) + self._count(other)

    def _count(self, box: RegionBox) -> int:
        return self.meeting(self.under(box))[0].count

    def back_to(self, box: RegionBox, under: RegionBox) -> ToSource:
        """From the model's slices under a box, whole, to the box's slices."""
        (first, last), back = self._slices(box), self.back
        if isinstance(back, Parallel):
            slices = _part(back.slices, first, last, under.low[0], under.shape[0])
            in_plane = [
                taps if taps is None and (low, high) == (0, size) else _part(_or_same(taps, size), low, high, 0, size)
                for taps, low, high, size in zip(
                    (back.in_plane.rows, back.in_plane.columns),
                    box.low[1:],
                    box.high[1:],
                    self.layout.shape[1:],
                    strict=True,
                )
            ]
            return Parallel(slices, InPlane(in_plane[0], in_plane[1]))
        assert isinstance(back, Slanted)
        matrix = back.matrix @ _moved(0.0, box.low[1], box.low[2])
        matrix[0, 3] -= under.low[0]
        coordinates = back.coordinates[first:last]
        _, rows, columns = box.shape
        return replace(back, matrix=matrix, coordinates=coordinates, shape=(rows, columns), depth=under.shape[0])


def collect_in_box(context: PipelineContext, windows: Windows, cut: Cut) -> LabelCollector:
    """What the windows find in a box. context: of a bundle whose labels are the network's. Raises OutOfMemory."""
    box, finish = cut.box, context.recipe.finish
    under = windows.under(box)
    layout, at = windows.meeting(under)
    slices = cut.stack.slices[::-1] if windows.backwards else cut.stack.slices
    collector = LabelCollector(context.bundle, context.floor, first=slices[0])
    collector.certainty = PartCertainty(collector.certainty.channels, under)
    for slice_ in slices:
        collector.valueless.see(slice_.read())
    batch, warning = memory.fit(context.engine, layout, windows.stack.shape[1:], context.series_uid)
    context.warn(warning)
    context.engine.begin_job(layout.count, batch)
    planes = _within(windows.planes(at[0]), at, layout)
    back = windows.back_to(box, under)

    def inverse(k: int, newest: int) -> tuple[ToSource, int]:
        return back, so_far(back, len(slices), k, newest)

    with restoring(context, collector, inverse, backwards=windows.backwards) as beside:
        scored = slabs(context, planes, rows_of(layout), layout, lambda _: layout.count)
        for slab in _on_whole_planes(scored, at, under, windows.layout.shape, finish):
            beside.put(slab)
    return collector


class PartCertainty(Certainty):
    """Of the voxels in a box of the model's grid, whose planes pass whole."""

    def __init__(self, channels: int, under: RegionBox) -> None:
        super().__init__(channels)
        self._rows, self._columns = (slice(under.low[axis], under.high[axis]) for axis in (1, 2))

    def add(self, scores: Tensor, finish: Finish) -> None:
        super().add(scores[:, self._rows, self._columns].contiguous(), finish)


def _along(context: PipelineContext, stack: Stack, axis: SliceAxis, recipe: Recipe, first: int) -> Planes:
    """Prepared slices of a stack from one of the model's grid on."""
    volume = passing(context, stack, axis, recipe)
    volume.begin_at(first)
    return volume.planes


def _within(planes: Planes, at: Triple, layout: Layout) -> Planes:
    """The part of prepared slices that lies under a layout, which begins `at`."""
    k, j, i = at
    _, rows, columns = layout.shape
    return lambda first, last: planes(first + k, last + k)[:, :, j : j + rows, i : i + columns]


def _on_whole_planes(
    scored: Iterator[Slab], at: Triple, under: RegionBox, shape: Triple, finish: Finish
) -> Iterator[Slab]:
    """Of scores (K, k, j, i) the voxels in a box, on planes as large as the model's."""
    fill = 0.0 if finish.threshold is None else OUTSIDE
    rows, columns = (slice(under.low[axis], under.high[axis]) for axis in (1, 2))
    own_rows, own_columns = (slice(under.low[axis] - at[axis], under.high[axis] - at[axis]) for axis in (1, 2))
    for first, slab in scored:
        for n in range(slab.shape[1]):
            k = at[0] + first + n
            if under.low[0] <= k < under.high[0]:
                whole = slab.new_full((slab.shape[0], 1, *shape[1:]), fill)
                whole[:, 0, rows, columns] = slab[:, n, own_rows, own_columns]
                yield k - under.low[0], whole


def _span(taps: Taps | None, begin: int, end: int) -> tuple[int, int]:
    if taps is None:
        return begin, end
    return int(taps.lower[begin:end].min()), int(taps.upper[begin:end].max()) + 1


def _part(taps: Taps, begin: int, end: int, moved: int, old: int) -> Taps:
    """The operator of some of the new samples; old ones are counted from `moved` on."""
    lower, upper, weights = taps.lower[begin:end] - moved, taps.upper[begin:end] - moved, taps.weights[begin:end]
    return replace(taps, lower=lower, upper=upper, weights=weights, old=old)


def _or_same(taps: Taps | None, size: int) -> Taps:
    if taps is not None:
        return taps
    numbers = np.arange(size)
    return Taps(numbers, numbers, np.stack([np.ones(size), np.zeros(size)], axis=1), size)


def _moved(k: float, j: float, i: float) -> Vector:
    matrix = np.eye(4)
    matrix[:3, 3] = k, j, i
    return matrix


def _slanted_spans(back: Slanted, first: int, last: int, box: RegionBox, shape: Triple) -> list[tuple[int, int]]:
    ends = (back.coordinates[first], back.coordinates[last - 1])
    corners = np.array(
        [[k, j, i, 1.0] for k in ends for j in (box.low[1], box.high[1] - 1) for i in (box.low[2], box.high[2] - 1)]
    )
    places = corners @ back.matrix[:3].T
    lows, highs = np.floor(places.min(axis=0)) - 1, np.ceil(places.max(axis=0)) + 2
    spans = []
    for low, high, size in zip(lows, highs, shape, strict=True):
        first_voxel = int(min(max(low, 0), size - 1))
        spans.append((first_voxel, int(max(min(high, size), first_voxel + 1))))
    return spans
