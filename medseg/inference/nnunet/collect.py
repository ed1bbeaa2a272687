"""A stack through a bundle of nnU-Net, to the labels of its slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from medseg.bundle.bundle import Bundle
from medseg.bundle.nnunet.model import NnUNet
from medseg.bundle.nnunet.whole import why_whole
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.inference.channels import channel_slices
from medseg.inference.context import PipelineContext
from medseg.inference.grids.grid import Axes
from medseg.inference.nnunet.case import ModelRun, jobs_of, label_passed, label_whole, models_of
from medseg.inference.nnunet.need import check_volume
from medseg.inference.nnunet.passing import PassedStack
from medseg.inference.nnunet.prepare import wanted_mm
from medseg.inference.nnunet.resample import Array, separate_axis
from medseg.inference.nnunet.source import Source, plans_axes, reader_axes, spacing_of
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.planes import PlaneSpool
from medseg.progress import Stage


def collect_labels(
    context: PipelineContext, stack: Stack, planes: Callable[[PipelineContext, Stack, LabelCollector], Iterator[Pixels]]
) -> LabelCollector:
    """What nnU-Net's models find. planes: of the stack itself, in its order.

    Raises OutOfMemory, before the stack is read where it must be in memory as a whole.
    """
    collector = LabelCollector(_numbered(context.bundle), context.floor)
    jobs = jobs_of(context, stack, collector.certainty)
    slices = channel_slices(context, stack, planes(context, stack, collector))
    _notice(context, stack)
    with torch.inference_mode(), collector:
        if needs_whole_volume(context, stack) is None:
            _passing(context, jobs, collector, slices)
            return collector
        check_volume(stack, context.bundle)
        with context.clock.time(Stage.READ):
            source = Source.of(stack, slices)
        merged = np.zeros(source.voxels.shape[1:], np.uint8)
        for job in jobs:
            labels = label_whole(context, source, job)
            np.copyto(merged, labels, where=labels != 0)
        for place in np.rint(stack.coordinates).astype(int):
            collector.add(_tensor(merged[place].copy()))
    return collector


def needs_whole_volume(context: PipelineContext, stack: Stack) -> str | None:
    """Why a stack must be in memory as a whole; None where its planes can pass one by one."""
    jobs = jobs_of(context, stack)
    models = (one.model for job in jobs for one in (job, *models_of(context, job)))
    reasons = (_why_whole(stack, model) for model in models)
    return next((why for why in reasons if why is not None), None)


def _passing(
    context: PipelineContext, jobs: Sequence[ModelRun], collector: LabelCollector, slices: Iterable[tuple[Pixels, ...]]
) -> None:
    """slices: their planes in each channel, in the order of the stack."""
    stack = jobs[0].stack
    passed = PassedStack(stack)
    with context.clock.time(Stage.READ):
        passed.add(enumerate(slices))
    if len(jobs) == 1 and not _axes(stack, jobs[0].model).flipped[0]:
        label_passed(context, passed, jobs[0], lambda _, labels: collector.add(_tensor(labels)))
        return
    merged = _Merged(None)
    for job in jobs:
        merged = _Merged(merged)
        label_passed(context, passed, job, merged.put)
    for k in range(len(stack.slices)):
        collector.add(_tensor(merged.plane(k)))


class _Merged:
    """Labels of slices as they come, compressed, over those of the models before."""

    def __init__(self, earlier: _Merged | None) -> None:
        self._earlier, self._planes = earlier, PlaneSpool()
        self._at: dict[int, int] = {}

    def put(self, k: int, labels: Array) -> None:
        if self._earlier is not None and self._earlier._at:
            labels = np.where(labels != 0, labels, self._earlier.plane(k))
        self._at[k] = len(self._planes)
        self._planes.put(labels)

    def plane(self, k: int) -> Array:
        return self._planes[self._at[k]]


def _tensor(labels: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(labels))[None]


def _axes(stack: Stack, model: NnUNet) -> Axes:
    return plans_axes(reader_axes(stack, stack.shape, model), model)


def _why_whole(stack: Stack, model: NnUNet) -> str | None:
    axes = _axes(stack, model)
    spacing = spacing_of(stack, axes, model)
    why = why_whole(model)
    if why is None and not stack.uniform:
        why = "slices that are unevenly spaced, or lack one, are resampled as a whole"
    if why is None and axes.order[0] != 0:
        why = "the plans' first axis lies in the slices"
    if why is None and separate_axis(model.image, spacing, wanted_mm(spacing, model)) in (1, 2):
        why = "voxels are longest in the slices: planes across them are resampled one by one"
    return why


def _numbered(bundle: Bundle) -> Bundle:
    """The bundle as a collector must see it: with as many channels as its result has labels, whatever its heads."""
    return replace(bundle, out_channels=max(segment.number for segment in bundle.segments) + 1)


def _notice(context: PipelineContext, stack: Stack) -> None:
    """Say what a reader must know of a result beforehand."""
    if stack.tilt_deg:
        tilt = f"{stack.tilt_deg:.1f} degrees"
        context.warn(f"the gantry was tilted by {tilt}: nnU-Net sees the slices as they lie")
    model = context.bundle.nnunet
    if model is not None and model.cleanup_unread:
        context.warn("the model's post-processing is a pickle, or not for these folds: it was not done")
