"""The pipeline: slices come in, label planes go out.

    slices as they come -> decode -> prepare -> windows -> restore, plane by plane -> clean -> measure -> sink

The command line, a cohort and the gateway's worker all call `segment`. There are three ways through it, with the same
result to the bit, where they apply:

    while slices come     along an axis laid through the first of them (`along`); when the last has come, the whole must
                          lie on that very axis, or all is done again
    when all are there    along the axis through all of them; memory as above, for any number of slices
    as a whole volume     where a recipe or a geometry has no axis (`axis_through` says why; `whole`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Final

from medseg.bundle.bundle import Bundle
from medseg.bundle.pixel_check import Values, differences
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Slice
from medseg.dicom.reason import Reason
from medseg.dicom.series import Level, Series, SliceSource, Stack, StackSource
from medseg.dicom.stored import floor_of
from medseg.errors import DoesNotFit, GeometryRefused, InputError, InvalidBundle
from medseg.inference.along import along_axis
from medseg.inference.arriving.axis import SliceAxis, axis_through, reasons, waits_for_last
from medseg.inference.arriving.decoding import Decoder
from medseg.inference.arriving.intake import ArrivedSlices, StreamInvalid, start
from medseg.inference.context import PipelineContext
from medseg.inference.engines import gpu
from medseg.inference.engines.case import TORCH
from medseg.inference.engines.device import CPU, choose_device, choose_precision, memory_errors, steady_batch
from medseg.inference.engines.engine import Engine, Networks
from medseg.inference.labels import LabelSink, SegmentationResult
from medseg.inference.nnunet.case import first_network
from medseg.inference.nnunet.collect import needs_whole_volume
from medseg.inference.pieces.collect import MOST_LABELS, CleanedLabels
from medseg.inference.pieces.quality import flags, no_value
from medseg.inference.regions.look import look_at_regions
from medseg.inference.settings import Settings
from medseg.inference.taken import Taken
from medseg.inference.whole import through_whole
from medseg.progress import Cancelled, Report, Stage, check, never, silent

NETWORKS: Final = Networks()


def segment(
    source: SliceSource,
    bundle: Bundle,
    sink: LabelSink,
    *,
    settings: Settings = Settings(),
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> SegmentationResult:
    """Segment the one stack of slices that `source` gives, and push its label planes into `sink`.

    Slices are decoded while more arrive. `sink.end` is called only when every plane is final.
    Raises GeometryRefused where the slices do not form exactly one stack, UndecodablePixels, InputError where the
    bundle wants several channels, InvalidBundle, WeightsMismatch, UsageError, OutOfMemory, and Interrupted once
    `cancelled` says so.
    """
    _refuse(source, bundle)
    with memory_errors():
        with Decoder(keeps=True) as decoder:

            def context_of(bundle: Bundle, settings: Settings) -> PipelineContext:
                return _context(source, bundle, settings, decoder, on_progress, cancelled)

            context = context_of(bundle, settings)
            if bundle.region is None:
                taken = _through(context, source)
            else:
                taken = look_at_regions(context, source, _through, context_of)
        stack, valueless = taken.stack, taken.collector.valueless.voxels
        if valueless == math.prod(stack.shape):
            raise InputError(f"series {context.series_uid}: none of its {valueless} voxels has a finite value")
        gpu.give_back(context.engine.device)
        values = _values(context, taken)
        with context.clock.time(Stage.RESTORE):
            cleaned = CleanedLabels(taken.collector, stack, decoder.again)
        _deliver(context, stack, cleaned, sink)
        return _result(context, taken, cleaned, values)


def _refuse(source: SliceSource, bundle: Bundle) -> None:
    """Raises InputError, InvalidBundle for a bundle that cannot be run."""
    channels = (len(source.stack.channels) or 1) if isinstance(source, StackSource) else 1
    if bundle.image_channels != channels:
        raise InputError(
            f"series {source.series.series_uid}: bundle {bundle.name} needs {bundle.image_channels} series of a study "
            f"at once, one for each input channel; found {channels}"
        )
    if bundle.recipe.exclusive and bundle.out_channels > MOST_LABELS + 1:
        why = f"{bundle.out_channels} channels: at most {MOST_LABELS} labels and the background can be told apart"
        raise InvalidBundle(bundle.name, "network_def::out_channels", why)


def _context(
    source: SliceSource, bundle: Bundle, settings: Settings, decoder: Decoder, on_progress: Report, cancelled: Cancelled
) -> PipelineContext:
    recipe, series = settings.applied_to(bundle.recipe), source.series
    engines = partial(_engine, batch=recipe.window.batch, settings=settings, cancelled=cancelled)
    return PipelineContext(
        series_uid=series.series_uid,
        bundle=bundle,
        recipe=recipe,
        settings=settings,
        engine=engines(bundle if bundle.nnunet is None else first_network(bundle)),
        engines=engines,
        decoder=decoder,
        floor=floor_of(*((series.modality,) if series.modality else bundle.expects.modality)),
        present=len(source.stack.slices) if isinstance(source, StackSource) else None,
        on_progress=on_progress,
        cancelled=cancelled,
    )


def _engine(bundle: Bundle, batch: int, settings: Settings, cancelled: Cancelled) -> Engine:
    device = CPU if settings.exact else choose_device(settings.device)
    as_they_are = device != CPU or settings.exact or settings.careful or bundle.nnunet is not None
    if device != CPU and settings.batch is None and not settings.careful:
        batch = gpu.MOST
    return Engine(
        NETWORKS.get(bundle, device),
        bundle,
        device,
        choose_precision(settings.precision, bundle, device),
        batch if as_they_are else steady_batch(batch),
        engine=TORCH if settings.exact else settings.engine,
        exact=settings.exact,
        careful=settings.careful,
        waiting=lambda: check(cancelled),
    )


def _through(context: PipelineContext, source: SliceSource) -> Taken:
    """What is found in all of a source."""
    return _all_there(context, source.stack) if isinstance(source, StackSource) else _arriving(context, source)


def _arriving(context: PipelineContext, source: SliceSource) -> Taken:
    """What is found in slices as they come, else once they have."""
    intake = ArrivedSlices(source, lambda count: context.tell(Stage.READ, count, source.expected))
    stack = cache(lambda: _one_stack(context, source.series, intake.slices))
    axis = next(iter(reasons(context.recipe)), None) or _first_axis(context, intake, source)
    if isinstance(axis, SliceAxis):
        try:
            collector = along_axis(context, axis, intake.pull, lambda: _final_axis(context, intake, stack))
            return Taken(stack(), collector, _barrier(context, stack()))
        except StreamInvalid as error:
            axis = str(error)
    with context.clock.time(Stage.READ):
        while not intake.ended:
            slice_ = intake.pull()
            if slice_ is not None:
                context.decoder.keep(slice_)
        stack()
    taken = _all_there(context, stack())
    return replace(taken, waited=taken.waited or axis)


def _first_axis(context: PipelineContext, intake: ArrivedSlices, source: SliceSource) -> SliceAxis | str | None:
    """See `intake.start`."""
    assume = context.settings.assume_frame_of_reference
    with context.clock.time(Stage.READ):
        return start(intake, source, context.recipe, context.decoder, assume_frame=assume)


def _final_axis(context: PipelineContext, intake: ArrivedSlices, stack: Callable[[], Stack]) -> SliceAxis | None:
    """The axis through all slices, once they have come. Raises StreamInvalid where there is none."""
    axis = axis_through(stack(), context.recipe) if intake.ended else None
    if isinstance(axis, str):
        raise StreamInvalid(axis)
    return axis


def _all_there(context: PipelineContext, stack: Stack) -> Taken:
    """What is found in a stack whose slices are all there: along its axis, else through the whole."""
    axis = axis_through(stack, context.recipe)
    if isinstance(axis, SliceAxis):
        try:
            return Taken(stack, along_axis(context, axis, stack=stack), _barrier(context, stack))
        except StreamInvalid as error:
            why = str(error)
    else:
        why = axis
    if context.bundle.nnunet is not None:
        why = needs_whole_volume(context, stack) or why
    return Taken(stack, through_whole(context, stack), why)


def _barrier(context: PipelineContext, stack: Stack) -> str | None:
    """Why windows wait for the last slice though they lie along an axis."""
    return next(iter(context.recipe.barriers()), None) or waits_for_last(stack, context.recipe)


def _one_stack(context: PipelineContext, series: Series, slices: Sequence[Slice]) -> Stack:
    """The one stack that the slices form. Raises GeometryRefused where they form none, or several."""
    verdict = classify(series, slices, assume_frame_of_reference=context.settings.assume_frame_of_reference)
    if len(verdict.stacks) == 1:
        for refusal in verdict.refusals:
            context.warn(f"{refusal.slices} slices left out: {refusal.detail}")
        return verdict.stacks[0]
    if verdict.refusals:
        refusal = verdict.refusals[0]
        raise GeometryRefused(series.series_uid, refusal.reason, refusal.detail)
    phases = ", ".join(stack.phase for stack in verdict.stacks)
    detail = f"expected one volume, found {len(verdict.stacks)} ({phases}): segment each on its own"
    raise GeometryRefused(series.series_uid, Reason.SEVERAL_VOLUMES, detail)


def _deliver(context: PipelineContext, stack: Stack, cleaned: CleanedLabels, sink: LabelSink) -> None:
    count = len(stack.slices)
    with context.clock.time(Stage.ENCODE):
        sink.begin(stack, context.bundle.segments, exclusive=context.recipe.exclusive)
        for k, plane in enumerate(context.timed(Stage.RESTORE, iter(cleaned))):
            sink.plane(k, plane)
            context.tell(Stage.ENCODE, k + 1, count)
        sink.end()


def _values(context: PipelineContext, taken: Taken) -> Values:
    """What the voxels are like. Raises DoesNotFit where the bundle was not made for that, and says so."""
    check = context.bundle.expects.pixels
    values = taken.collector.samples.values(check)
    found = differences(taken.stack, check, values) if check is not None and check.refuse else ()
    if found:
        raise DoesNotFit(context.series_uid, context.bundle.name, found)
    return values


def _result(context: PipelineContext, taken: Taken, cleaned: CleanedLabels, values: Values) -> SegmentationResult:
    """Once all planes are delivered."""
    stack, collector, engine = taken.stack, taken.collector, context.engine
    measured, at_edge = cleaned.measured()
    noticed = [finding.detail for finding in stack.findings if finding.level is Level.WARNING]
    return SegmentationResult(
        stack=stack,
        measured=measured,
        flags=(
            *taken.flags,
            *dict.fromkeys(context.flags),
            *no_value(collector.valueless.voxels, stack, context.floor),
            *flags(stack, context.bundle, measured, at_edge, values),
        ),
        warnings=(*noticed, *context.warnings, *engine.warnings),
        timings_s=context.clock.timings_s(),
        device=str(engine.device),
        engine=engine.name,
        precision=engine.precision,
        exact=context.settings.exact,
        streamed=taken.waited is None,
        streamed_reason=taken.waited,
        region=taken.region,
    )
