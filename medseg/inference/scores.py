"""Class scores of windows, slab by slab, and their way back to label planes: what is the same along an axis and over a
whole volume.

windows -> slabs of scores (`slabs`) -> [thread beside] restored planes (`restoring`) -> what is found
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import torch
from torch import Tensor

from medseg.inference import malloc, memory
from medseg.inference.background import BackgroundConsumer
from medseg.inference.context import PipelineContext
from medseg.inference.grids.grid import Axes
from medseg.inference.grids.restore import Inverse, restore
from medseg.inference.pieces.cleanup import largest_pieces
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.windows.layout import Layout, importance, lay_out
from medseg.inference.windows.streaming import Planes, Rows, rows_of, stream
from medseg.progress import Stage

Slab: TypeAlias = tuple[int, Tensor]
_TIDY: Final = 64  # planes


def slabs(
    context: PipelineContext, planes: Planes, rows: Rows, layout: Layout, total: Callable[[Layout], int | None]
) -> Iterator[Slab]:
    """Slabs of class scores, by an engine whose job has begun.

    layout: of the first row. total: of how many windows they are, as far as that is known.
    """
    window, engine, done = context.recipe.window, context.engine, 0

    def tick(present: Layout, windows: int) -> None:
        nonlocal done
        done += windows
        context.tell(Stage.INFER, done, total(present))

    scored = stream(
        planes,
        rows,
        importance(layout.roi, window.blend, window.sigma_scale),
        engine,
        batch=engine.batch,
        tick=tick,
        room=engine.room,
        exact=context.settings.exact,
        steady=lambda: engine.steady,
    )
    return context.timed(Stage.INFER, scored)


def slabs_of_volume(context: PipelineContext, voxels: Tensor, axes: Axes, batch: int | None = None) -> Iterator[Slab]:
    """Slabs of class scores over a prepared volume (C, k, j, i). batch: windows at a time; None: all that gain."""
    layout = lay_out((voxels.shape[1], voxels.shape[2], voxels.shape[3]), axes, context.recipe.window)
    context.engine.begin_job(layout.count, batch or context.engine.worth(layout))
    return slabs(context, lambda first, last: voxels[:, first:last], rows_of(layout), layout, lambda _: layout.count)


@contextmanager
def restoring(
    context: PipelineContext, collector: LabelCollector, inverse: Inverse, *, backwards: bool = False
) -> Iterator[BackgroundConsumer[Slab]]:
    """A thread beside that of the network, which brings back the slabs that it is given, and puts what is in their
    planes into `collector`. backwards: slices come from the last to the first."""

    def clean(planes: Iterable[Tensor]) -> Iterable[Tensor]:
        """The recipe's KeepLargestConnectedComponentd, where it stands before the inversion."""
        wanted = context.recipe.finish.keep_largest
        if not wanted:
            return planes
        kept = largest_pieces((plane[0].cpu().numpy() for plane in planes), wanted, backwards=backwards)
        return (torch.tensor(plane)[None] for plane in kept)

    def consume(given: Iterator[Slab]) -> None:
        with collector:
            for plane in restore(given, context.recipe.finish, inverse, collector.certainty, clean):
                collector.add(plane)
                if len(collector) % _TIDY == 0:
                    malloc.give_back()

    with (
        context.engine.at_work(),
        BackgroundConsumer(consume, lambda slab: slab[1].nbytes, memory.WAITING) as consumer,
    ):
        yield consumer
    context.clock.add(Stage.RESTORE, consumer.busy_s)
