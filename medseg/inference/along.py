"""The way along the slices: windows run as soon as theirs are there, in memory for a row of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import Stack
from medseg.inference import memory
from medseg.inference.arriving.axis import SliceAxis
from medseg.inference.arriving.passage import StreamedVolume
from medseg.inference.channels import ChannelPlanes
from medseg.inference.context import PipelineContext
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.scores import restoring, slabs
from medseg.inference.windows.layout import Layout
from medseg.progress import Stage


def along_axis(
    context: PipelineContext,
    axis: SliceAxis,
    more: Callable[[], Slice | None] = lambda: None,
    end: Callable[[], SliceAxis | None] | None = None,
    stack: Stack | None = None,
) -> LabelCollector:
    """What the windows find along an axis through the slices that are there, as others come.

    more, end: see `StreamedVolume`; without them all are there. stack: whose axis it is, where that is known; its
    channels pass together. Raises StreamInvalid where the axis turns out to be another, OutOfMemory.
    """
    collector = LabelCollector(context.bundle, context.floor, first=axis.slices[0])
    backwards = stack is not None and axis.slices[0] is not stack.slices[0]
    channels = None if stack is None else ChannelPlanes(context, stack, backwards=backwards)

    def seen(n: int, plane: Pixels) -> Sequence[Pixels]:
        own = context.seen(collector, plane)
        return (own,) if channels is None else channels.at(len(axis.slices) - 1 - n if backwards else n, own)

    volume = StreamedVolume(
        axis,
        context.recipe,
        context.decoder,
        end=end or (lambda: axis),
        channels=context.bundle.image_channels,
        seen=seen,
        clock=context.clock,
        exact=context.settings.exact,
        to_device=context.engine.to_device,
        room=context.engine.room_for_voxels,
    )
    _begin(context, volume, axis, 0 if channels is None else channels.held_bytes)

    def planes(first: int, last: int) -> Tensor:
        slab = volume.planes(first, last)
        context.tell(Stage.PREPARE, last, volume.plan.layout.shape[0] if volume.ended else None)
        return slab

    def windows(present: Layout) -> int | None:
        return present.count if volume.ended else None

    def tell_found() -> None:
        context.tell(Stage.RESTORE, len(collector), volume.plan.count if volume.ended else None)

    with restoring(context, collector, volume.inverse, backwards=axis.count is not None) as beside:

        def pull() -> Slice | None:
            slice_ = more()
            if slice_ is None:
                beside.settle()  # what is found is told before anything is waited for
                context.tell(Stage.RESTORE, len(collector), None)
            return slice_

        for slab in slabs(context, planes, volume.rows(pull), volume.plan.layout, windows):
            beside.put(slab)
            tell_found()
    tell_found()
    collector.see_rest(lambda n: context.decoder.take(volume.slices[n]))
    if channels is not None:
        channels.tell()
    return collector


def _begin(context: PipelineContext, volume: StreamedVolume, axis: SliceAxis, held_bytes: int) -> None:
    """Tell the engine of its windows, as many at once as memory has room for. Raises OutOfMemory."""
    layout = volume.plan.layout
    batch, warning = memory.fit(context.engine, layout, axis.shape, context.series_uid, images=held_bytes)
    context.warn(warning)
    # Of a series that arrives, the windows of the first row are all that is known.
    context.engine.begin_job(layout.count if volume.ended else len(layout.in_plane()), batch)
