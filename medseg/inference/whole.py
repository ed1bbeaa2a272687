"""The way through a whole volume, where a recipe or a geometry has no axis: our own, MONAI's, or nnU-Net's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.inference import fallback, memory
from medseg.inference.arriving.decoding import AHEAD
from medseg.inference.channels import channel_slices
from medseg.inference.context import PipelineContext
from medseg.inference.engines.device import CPU
from medseg.inference.grids.prepare import prepare, preprocessing_plan, uniform
from medseg.inference.grids.restore import ToSource, so_far, to_source
from medseg.inference.nnunet.collect import collect_labels
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.scores import restoring, slabs_of_volume
from medseg.inference.windows.layout import lay_out
from medseg.progress import Stage, check


def through_whole(context: PipelineContext, stack: Stack) -> LabelCollector:
    """What is found in a stack that is read before any window runs. Raises OutOfMemory before it is read."""
    if context.bundle.nnunet is not None:
        return collect_labels(context, stack, _planes)
    collector = LabelCollector(context.bundle, context.floor)
    # The volume is handed on, and kept by nobody before: it may be large, and it is changed on the way.
    if fallback.reason_for_fallback(context.recipe) is not None:
        _by_monai(context, stack, read_whole(context, stack, collector), collector)
        return collector
    batch = _fitting(context, stack)
    _by_ourselves(context, stack, read_whole(context, stack, collector), collector, batch)
    return collector


def _fitting(context: PipelineContext, stack: Stack) -> int:
    """Windows at a time. What MONAI's transforms take nobody knows; ours are told before the volume is read."""
    grid = (round(float(stack.coordinates[-1])) + 1, *stack.shape[1:])
    frame = preprocessing_plan(stack.as_read, grid, context.recipe, tilted=stack.tilt_deg != 0).frame
    layout = lay_out(frame.stored_shape, frame.axes, context.recipe.window)
    volumes = (math.prod(grid), math.prod(layout.shape))
    batch, warning = memory.fit(context.engine, layout, stack.shape[1:], context.series_uid, volumes)
    context.warn(warning)
    return batch


def read_whole(context: PipelineContext, stack: Stack, collector: LabelCollector) -> Tensor:
    """(C, k, j, i): all channels on the source's uniform grid."""
    voxels = torch.empty((max(len(stack.channels), 1), *stack.shape))
    with context.clock.time(Stage.READ):
        for k, planes in enumerate(channel_slices(context, stack, _planes(context, stack, collector))):
            for channel, plane in zip(voxels, planes, strict=True):
                channel[k] = torch.from_numpy(plane)
    return uniform(voxels, stack.coordinates)


def _planes(context: PipelineContext, stack: Stack, collector: LabelCollector) -> Iterator[Pixels]:
    """Slice by slice, decoded a little ahead."""
    for k, slice_ in enumerate(stack.slices):
        check(context.cancelled)
        context.decoder.ahead(stack.slices[k : k + AHEAD])
        yield context.seen(collector, context.decoder.take(slice_))


def _by_ourselves(
    context: PipelineContext, stack: Stack, volume: Tensor, collector: LabelCollector, batch: int
) -> None:
    with context.clock.time(Stage.PREPARE):
        context.tell(Stage.PREPARE, 0, 1)
        prepared = prepare(volume, stack.as_read, context.recipe, tilted=stack.tilt_deg != 0)
        del volume
        back = to_source(prepared, stack.coordinates, stack.shape[1:], context.recipe.finish)
        context.tell(Stage.PREPARE, 1, 1)
    count = len(stack.slices)
    with restoring(context, collector, partial(_inverse, back, count)) as beside:
        for slab in slabs_of_volume(context, prepared.voxels, prepared.frame.axes, batch):
            beside.put(slab)
            context.tell(Stage.RESTORE, len(collector), count)
    context.tell(Stage.RESTORE, len(collector), count)


def _by_monai(context: PipelineContext, stack: Stack, volume: Tensor, collector: LabelCollector) -> None:
    bundle = replace(context.bundle, recipe=context.recipe)
    batch = None if context.engine.device == CPU else context.recipe.window.batch  # what MONAI leaves is not known
    scores = partial(slabs_of_volume, context, batch=batch)
    planes = fallback.label_planes(volume, stack.as_read, stack.coordinates, bundle, scores, collector.certainty)
    with collector:
        for plane in context.timed(Stage.RESTORE, planes):
            collector.add(plane)
            context.tell(Stage.RESTORE, len(collector), len(stack.slices))


def _inverse(back: ToSource, count: int, k: int, newest: int) -> tuple[ToSource, int]:
    """See `restore.Inverse`."""
    return back, so_far(back, count, k, newest)
