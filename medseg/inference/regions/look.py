"""Two passes over an image: the first finds where to look, the second looks there.

    slices as they come -> first pass -> pieces -> boxes with a margin          decoded slices stay on disk
    each box            -> the bundle's network, by the ways of any image, or by the image's own windows over it
    labels of the boxes -> planes of the whole image, background elsewhere

Boxes of one view that overlap become one. Where boxes of several views do, a voxel has the label of the view that
stands first in the metadata, of those that give it one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.bundle.bundle import Bundle, Postprocess
from medseg.bundle.region import LookMode, NotFound, Region, Statistics, View
from medseg.bundle.region_rules import most_label
from medseg.dicom.series import SliceSource, Stack, StackSource
from medseg.errors import RegionNotFound, UsageError
from medseg.inference.arriving.decoding import Decoder
from medseg.inference.context import PipelineContext
from medseg.inference.labels import Flag, LookedAt, RegionFound
from medseg.inference.pieces.collect import CleanedLabels, LabelCollector
from medseg.inference.planes import PlaneSpool
from medseg.inference.regions.boxes import RegionBox, about_middle, merged, share_of, with_margin
from medseg.inference.regions.crop import Cut, cut_out
from medseg.inference.regions.first_pass import Open, look_first, pieces_found
from medseg.inference.regions.paste import Looked, Paste
from medseg.inference.regions.settled import settled_recipe
from medseg.inference.regions.windows import Windows, collect_in_box
from medseg.inference.taken import Run, Taken

EVERYWHERE: Final = 0.95  # of the image: then nothing is left out of it
WAITED: Final = "the network looks where a first pass has found something, once that has seen the last slice"


def look_at_regions(context: PipelineContext, source: SliceSource, run: Run, open_: Open) -> Taken:
    """What a bundle finds where its first pass sends it.

    run: a source through a context. open_: the context of another bundle. The context's decoder keeps what it decodes.
    Raises RegionNotFound where the bundle asks for that, UsageError for what cannot be had of parts of an image, and
    what either pass raises.
    """
    region = context.bundle.region
    assert region is not None
    if context.settings.exact and region.mode is LookMode.WINDOWS:
        raise UsageError("exact results are those of all windows: a bundle that runs some of them has none")
    first = look_first(context, source, run, open_)
    stack = source.stack if isinstance(source, StackSource) else first.stack
    boxes = _boxes(stack, first, region)
    if not boxes:
        return _nothing(context, stack, first, region)
    inner = replace(context, bundle=_inner(context.bundle), present=None)
    windows = Windows.of(inner, stack) if region.mode is LookMode.WINDOWS else None
    if windows is not None:
        boxes = merged(boxes, windows.fewer_together)
    share = share_of(boxes, stack.shape)
    everywhere = share >= EVERYWHERE
    if everywhere and not region.views:
        bundle = replace(context.bundle, region=None)
        taken = run(replace(context, bundle=bundle), StackSource(stack))
        found = RegionFound(region.first_pass.words, region.mode, (_told(_all(stack), stack, None),), 1.0, True)
        return replace(taken, waited=first.waited or WAITED, region=found, flags=(_flag_everywhere(found),))
    looks = _in_boxes(inner, stack, boxes, region, run) if windows is None else _in_windows(inner, windows, boxes)
    looked = [_looked(cut, collector, context.bundle) for cut, collector in looks]
    told = tuple(_told(box, stack, region.view(box.label)) for box in boxes)
    found = RegionFound(region.first_pass.words, region.mode, told, share, everywhere)
    paste = Paste(stack, looked, _channels(context.bundle))
    collector = _merged(context.bundle, first.collector, stack, paste)
    flags = (
        *((_flag_everywhere(found),) if everywhere else ()),
        *_flags_lacking(context.bundle, region, {box.label for box in boxes}),
        *paste.flags(context.bundle.segments),
    )
    return Taken(stack, collector, first.waited or WAITED, found, flags)


def _boxes(stack: Stack, first: Taken, region: Region) -> tuple[RegionBox, ...]:
    """What is looked at; boxes have a label of the first pass where each has its view."""
    pieces = pieces_found(first, region)
    boxes = [
        with_margin(piece.box, stack, region.margin_mm)
        if region.size_mm is None
        else about_middle(piece.box, stack, region.size_mm)
        for piece in pieces
    ]
    if not region.views:
        boxes = [replace(box, label=0) for box in boxes]
    return merged(boxes, RegionBox.meets)


def _in_windows(
    inner: PipelineContext, windows: Windows, boxes: Iterable[RegionBox]
) -> Iterator[tuple[Cut, LabelCollector]]:
    """What the image's windows find in each box."""
    for box in boxes:
        cut = cut_out(windows.stack, box, (), inner.decoder.again)
        yield cut, collect_in_box(inner, windows, cut)


def _in_boxes(
    inner: PipelineContext, stack: Stack, boxes: Iterable[RegionBox], region: Region, run: Run
) -> Iterator[tuple[Cut, LabelCollector]]:
    """What is found in each box, as if that were the image."""
    recipe = settled_recipe(inner, stack) if region.statistics is Statistics.IMAGE else inner.recipe
    for box in boxes:
        view = region.view(box.label)
        cut = cut_out(stack, box, view.mirror if view else (), inner.decoder.again)
        with Decoder() as decoder:
            context = replace(inner, recipe=recipe, decoder=decoder, present=len(cut.stack.slices))
            yield cut, run(context, StackSource(cut.stack)).collector


def _looked(cut: Cut, collector: LabelCollector, bundle: Bundle) -> Looked:
    planes = PlaneSpool()
    for plane in CleanedLabels(collector, cut.stack):
        planes.put(plane)
    views = bundle.region.views if bundle.region else ()
    order, view = next(((n, view) for n, view in enumerate(views) if view.label == cut.box.label), (0, None))
    numbers = view.labels if view else {number: number for number in range(1, _labels(bundle) + 1)}
    return Looked(cut, planes, collector.certainty, numbers, order)


def _inner(bundle: Bundle) -> Bundle:
    """The bundle as it looks at one box: labels are the network's, and nothing is cleaned up yet."""
    labels = range(1, _labels(bundle) + 1)
    segments = tuple(replace(bundle.segments[0], number=number, volume_ml=None) for number in labels)
    return replace(bundle, segments=segments, postprocess=Postprocess(), region=None)


def _labels(bundle: Bundle) -> int:
    """The highest label that the network gives."""
    if bundle.parts:
        return max(number for part in bundle.parts for number in part.numbers.values())
    if bundle.nnunet is not None:
        return max(number for number, _ in bundle.nnunet.labels.names)
    return bundle.out_channels - 1 if bundle.recipe.exclusive else bundle.out_channels


def _channels(bundle: Bundle) -> int | None:
    """Bits of a voxel of the result where labels overlap; None where each has one label."""
    return None if bundle.recipe.exclusive else most_label(bundle.region, _labels(bundle))


def _as_collected(bundle: Bundle) -> Bundle:
    """The bundle as the collector of its result must see it, whose labels may be more than the network's."""
    most = max(most_label(bundle.region, _labels(bundle)), *(segment.number for segment in bundle.segments))
    return replace(bundle, out_channels=most + 1 if bundle.recipe.exclusive else most)


def _merged(bundle: Bundle, first: LabelCollector, stack: Stack, paste: Paste) -> LabelCollector:
    """The planes of the image, with what the boxes hold; in the order in which the first pass saw them."""
    collector = _empty(bundle, first)
    backwards = first.first is not None and first.first is not stack.slices[0]
    count = len(stack.slices)
    with collector:
        for n in range(count):
            plane = paste.plane(count - 1 - n if backwards else n)
            collector.add(torch.from_numpy(plane if plane.ndim == 3 else plane[None]))
    paste.tell_certainty(collector.certainty)
    return collector


def _empty(bundle: Bundle, first: LabelCollector) -> LabelCollector:
    """A collector of a result that knows of the image's values what the first pass has seen."""
    floor = float(first.valueless.floor)
    collector = LabelCollector(_as_collected(bundle), floor, first=first.first)
    collector.valueless, collector.samples = first.valueless, first.samples
    return collector


def _nothing(context: PipelineContext, stack: Stack, first: Taken, region: Region) -> Taken:
    """A result without labels that says why. Raises RegionNotFound where the bundle asks for that."""
    words = region.first_pass.words
    if region.not_found is NotFound.REFUSE:
        raise RegionNotFound(stack.series.series_uid, context.bundle.name, words)
    found = RegionFound(words, region.mode, (), 0.0)
    paste = Paste(stack, (), _channels(context.bundle))
    message = f"region not found: the first pass ({words}) found nothing, so {context.bundle.name} looked at nothing"
    flag = Flag("region_not_found", message)
    return Taken(stack, _merged(context.bundle, first.collector, stack, paste), first.waited or WAITED, found, (flag,))


def _flag_everywhere(found: RegionFound) -> Flag:
    whole = f"{found.share:.0%} of the image" if found.share < 1 else "all of the image"
    message = f"the first pass ({found.first_pass}) found {whole} to be looked at: it may not have found what is meant"
    return Flag("region_everywhere", message)


def _flags_lacking(bundle: Bundle, region: Region, labels: Container[int]) -> Iterator[Flag]:
    """A doubt for each view of which the first pass found nothing, while it found something of another."""
    names = {segment.number: segment.label for segment in bundle.first_pass.segments} if bundle.first_pass else {}
    for view in region.views:
        if view.label not in labels:
            what = names.get(view.label, f"label {view.label}")
            missed = [segment.label for segment in bundle.segments if segment.number in view.labels.values()]
            found = f"the first pass ({region.first_pass.words}) found no {what}"
            message = f"region not found: {found}, so {bundle.name} did not look for {', '.join(missed)}"
            yield Flag("region_not_found", message)


def _all(stack: Stack) -> RegionBox:
    return RegionBox((0, 0, 0), stack.shape)


def _told(box: RegionBox, stack: Stack, view: View | None) -> LookedAt:
    """A box in the patient's millimetres."""
    places = stack.coordinates[[box.low[0], box.high[0] - 1]]
    edges = [
        (places[0] - 0.5, places[1] + 0.5),
        *((box.low[axis] - 0.5, box.high[axis] - 0.5) for axis in (1, 2)),
    ]
    corners = np.array([[k, j, i, 1.0] for k in edges[0] for j in edges[1] for i in edges[2]]) @ stack.affine[:3].T
    return LookedAt(
        label=box.label,
        slices=(box.low[0], box.high[0] - 1),
        rows=(box.low[1], box.high[1] - 1),
        columns=(box.low[2], box.high[2] - 1),
        low_mm=_point(corners.min(axis=0)),
        high_mm=_point(corners.max(axis=0)),
        mirrored=tuple(str(axis) for axis in view.mirror) if view else (),
    )


def _point(numbers: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(number), 3) for number in numbers)
    return x, y, z
