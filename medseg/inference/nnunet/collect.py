"""A stack through a bundle of nnU-Net, to the labels of its slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.inference.context import PipelineContext
from medseg.inference.nnunet.case import label_source
from medseg.inference.nnunet.need import check_volume
from medseg.inference.nnunet.source import Source
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.valueless import Valueless
from medseg.progress import Stage


def collect_labels(
    context: PipelineContext, stack: Stack, read: Callable[[PipelineContext, Stack, LabelCollector], Tensor]
) -> LabelCollector:
    """What nnU-Net's models find. read: the first channel (1, k, j, i) on the stack's uniform grid.

    Raises OutOfMemory before it is read.
    """
    check_volume(stack, context.bundle)
    collector = LabelCollector(_numbered(context.bundle), context.floor)
    _notice(context, stack)
    volume = read(context, stack, collector).numpy()
    if stack.channels:
        with context.clock.time(Stage.READ):
            volume = np.stack([volume[0], *(_channel(context, stack, channel) for channel in stack.channels)])
    with torch.inference_mode():
        labels = label_source(context, Source(volume, stack), collector.certainty)
    with collector:
        for place in np.rint(stack.coordinates).astype(int):
            collector.add(torch.from_numpy(np.array(labels[place], np.uint8))[None])
    return collector


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


def _channel(context: PipelineContext, stack: Stack, channel: Stack) -> Sequence[Pixels]:
    """Planes of a further channel, as they are stored beside the first one's; 0 where there is no value."""
    turned = [one.stored is not None and one.stored.turned for one in (stack, channel)]
    slices = channel.slices if turned[0] == turned[1] else channel.slices[::-1]
    gaps = Valueless()
    planes = [gaps.see(one.read())[0] for one in slices]
    if gaps.voxels:
        context.warn(f"{gaps.voxels} voxels of a further channel have no finite value: taken as 0")
    return planes
