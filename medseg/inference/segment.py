"""The pipeline: slices come in, label planes go out.

    slices as they come -> decode -> prepare -> windows -> restore, plane by plane -> clean -> measure -> sink

The command line, a cohort and the gateway's worker all call `segment`. There are three ways through it, with the same
result to the bit, where they apply:

    while slices come     along an axis laid through the first of them (`arriving.axis`); when the last has come, the
                          whole must lie on that very axis, or all is done again
    when all are there    along the axis through all of them; memory as above, for any number of slices
    as a whole volume     where a recipe or a geometry has no axis (`axis_through` says why)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeAlias, TypeVar

import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import Level, SliceSource, Stack, StackSource
from medseg.dicom.stored import floor_of
from medseg.errors import GeometryRefused, InputError, InvalidBundle, OutOfMemory
from medseg.inference import fallback, malloc, memory
from medseg.inference.arriving.axis import SliceAxis, axis_through, reasons
from medseg.inference.arriving.decoding import AHEAD, Decoder
from medseg.inference.arriving.intake import ArrivedSlices, StreamInvalid, start
from medseg.inference.arriving.passage import StreamedVolume
from medseg.inference.background import BackgroundConsumer
from medseg.inference.engines.case import TORCH
from medseg.inference.engines.device import CPU, choose_device, choose_precision, memory_errors, steady_batch
from medseg.inference.engines.engine import Engine, Networks
from medseg.inference.grids.grid import Axes
from medseg.inference.grids.prepare import prepare, preprocessing_plan, uniform
from medseg.inference.grids.restore import Inverse, ToSource, restore, so_far, to_source
from medseg.inference.labels import LabelPlane, LabelSink, SegmentationResult
from medseg.inference.pieces.cleanup import largest_pieces
from medseg.inference.pieces.collect import MOST_LABELS, CleanedLabels, LabelCollector
from medseg.inference.pieces.quality import flags, no_value
from medseg.inference.settings import Settings
from medseg.inference.windows.layout import Layout, importance, lay_out
from medseg.inference.windows.streaming import Planes, Rows, rows_of, stream
from medseg.progress import Cancelled, Progress, Report, Stage, StageClock, check, never, silent

T = TypeVar("T")
Slab: TypeAlias = tuple[int, Tensor]
NETWORKS: Final = Networks()
_TIDY: Final = 64  # planes found


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
    if bundle.image_channels != 1:
        raise InputError(
            f"bundle {bundle.name} needs {bundle.image_channels} series of a study at once, one per input channel; "
            "bundles of one channel can be run"
        )
    if bundle.recipe.exclusive and bundle.out_channels > MOST_LABELS + 1:
        why = f"{bundle.out_channels} channels: at most {MOST_LABELS} labels and the background can be told apart"
        raise InvalidBundle(bundle.name, "network_def::out_channels", why)
    with memory_errors():
        return _Run(bundle, settings, on_progress, cancelled)(source, sink)


class _Run:
    """One call of `segment`: its clock, its warnings, and where it tells of itself."""

    def __init__(self, bundle: Bundle, settings: Settings, on_progress: Report, cancelled: Cancelled) -> None:
        self.bundle, self.settings = bundle, settings
        self.recipe = settings.applied_to(bundle.recipe)
        self.on_progress, self.cancelled = on_progress, cancelled
        self.clock = StageClock()
        self.warnings: list[str] = []
        self.beside: BackgroundConsumer[Slab] | None = None  # where slabs are brought back
        self.here: int | None = None  # slices, where none has to come; then decoding is what reading means
        device = CPU if settings.exact else choose_device(settings.device)
        precision = choose_precision(settings.precision, bundle, device)
        batch = self.recipe.window.batch
        self.engine = Engine(
            NETWORKS.get(bundle, device),
            bundle,
            device,
            precision,
            steady_batch(batch) if device == CPU and not (settings.exact or settings.careful) else batch,
            engine=TORCH if settings.exact else settings.engine,
            exact=settings.exact,
            careful=settings.careful,
            waiting=lambda: check(cancelled),
        )

    def __call__(self, source: SliceSource, sink: LabelSink) -> SegmentationResult:
        self.series_uid = source.series.series_uid
        modalities = (source.series.modality,) if source.series.modality else self.bundle.expects.modality
        self.floor = floor_of(*modalities)
        with Decoder() as self.decoder:
            if isinstance(source, StackSource):
                stack, found, waited = source.stack, None, None
                self.here = len(stack.slices)
            else:
                stack, found, waited = self._while_they_come(source)
            if found is None:
                found, whole = self._all_there(stack)
                waited = whole or waited
        valueless = found.valueless.voxels
        if valueless == math.prod(stack.shape):
            raise InputError(f"series {self.series_uid}: none of its {valueless} voxels has a finite value")
        with self.clock.time(Stage.RESTORE):
            cleaned = CleanedLabels(found, stack)
        self._deliver(stack, cleaned, sink)
        measured, at_edge = cleaned.measured()
        noticed = [one.detail for one in stack.findings if one.level is Level.WARNING]
        return SegmentationResult(
            stack=stack,
            measured=measured,
            flags=(
                *no_value(valueless, stack, self.floor),
                *flags(stack, self.bundle, measured, at_edge, found.samples.values()),
            ),
            warnings=(*noticed, *self.warnings, *self.engine.warnings),
            timings_s=self.clock.timings_s(),
            device=str(self.engine.device),
            engine=self.engine.name,
            precision=self.engine.precision,
            exact=self.settings.exact,
            streamed=waited is None,
            streamed_reason=waited,
        )

    def _while_they_come(self, source: SliceSource) -> tuple[Stack, LabelCollector | None, str | None]:
        """The stack that all slices form; what was found in them meanwhile, else why nothing could be."""
        intake = ArrivedSlices(source, lambda count: self._tell(Stage.READ, count, source.expected))
        formed: list[Stack] = []

        def whole() -> Stack:
            if not formed:
                formed.append(self._stack(source, intake.slices))
            return formed[0]

        def end() -> SliceAxis | None:
            track = axis_through(whole(), self.recipe) if intake.ended else None
            if isinstance(track, str):
                raise StreamInvalid(track)
            return track

        why: str | None = next(iter(reasons(self.recipe)), None)
        if why is None:
            assume = self.settings.assume_frame_of_reference
            with self.clock.time(Stage.READ):
                track = start(intake, source, self.recipe, self.decoder, assume_frame=assume)
            if isinstance(track, SliceAxis):
                try:
                    found = self._along(track, intake.pull, end)
                    return whole(), found, self._waits()
                except StreamInvalid as error:
                    why = str(error)
            else:
                why = track
        with self.clock.time(Stage.READ):
            while not intake.ended:
                one = intake.pull()
                if one is not None:
                    self.decoder.keep(one)
            return whole(), None, why

    def _all_there(self, stack: Stack) -> tuple[LabelCollector, str | None]:
        """What is found in a stack whose slices are all there; and why windows could not have run before they were."""
        track = axis_through(stack, self.recipe)
        if isinstance(track, str):
            return self._as_a_whole(stack), track
        try:
            return self._along(track, lambda: None, lambda: track), self._waits()
        except StreamInvalid as error:
            return self._as_a_whole(stack), str(error)

    def _waits(self) -> str | None:
        """Why windows wait for the last slice though they lie along a track."""
        return next(iter(self.recipe.barriers()), None)

    def _along(
        self, track: SliceAxis, more: Callable[[], Slice | None], end: Callable[[], SliceAxis | None]
    ) -> LabelCollector:
        """What the windows find along an axis. Raises StreamInvalid where it turns out to be another."""
        found = LabelCollector(self.bundle, self.floor)
        found.first = track.slices[0]

        def pull() -> Slice | None:
            one = more()
            if one is None and self.beside is not None:
                self.beside.settle()  # what is found is told before anything is waited for
                self._tell(Stage.RESTORE, len(found), None)
            return one

        passage = StreamedVolume(
            track,
            self.recipe,
            self.decoder,
            more=pull,
            end=end,
            seen=partial(self._seen, found),
            clock=self.clock,
            certain=self.settings.exact,
        )

        def tick(layout: Layout, windows: int) -> None:
            found.windows += windows
            self._tell(Stage.INFER, found.windows, layout.count if passage.ended else None)

        def planes(first: int, last: int) -> Tensor:
            slab = passage.planes(first, last)
            self._tell(Stage.PREPARE, last, passage.plan.layout.shape[0] if passage.ended else None)
            return slab

        layout = passage.plan.layout
        self._fit(layout, track.shape)
        windows = layout.count if passage.ended else len(layout.in_plane())  # of an arriving series, the first row
        slabs = self._slabs(planes, passage.rows(), layout, windows, tick)
        clean = partial(self._cleaned_before_return, backwards=track.count is not None)
        self._bring_back(slabs, passage.way, found, clean, lambda: passage.plan.count if passage.ended else None)
        found.see_rest(lambda n: self.decoder.take(passage.slices[n]))
        return found

    def _bring_back(
        self,
        slabs: Iterator[Slab],
        way: Inverse,
        found: LabelCollector,
        clean: Callable[[Iterable[Tensor]], Iterable[Tensor]],
        count: Callable[[], int | None],
    ) -> None:
        """Bring slabs back to the source, and look at its planes, in threads beside that of the network."""

        def consume(slabs: Iterator[Slab]) -> None:
            with found:
                for plane in restore(slabs, self.recipe.finish, way, found.certainty, clean):
                    found.add(plane)
                    if len(found) % _TIDY == 0:
                        malloc.give_back()

        try:
            with (
                self.engine.at_work(),
                BackgroundConsumer(consume, lambda slab: slab[1].nbytes, memory.WAITING) as self.beside,
            ):
                for slab in slabs:
                    self.beside.put(slab)
                    self._tell(Stage.RESTORE, len(found), count())
            self.clock.seconds[Stage.RESTORE] += self.beside.busy_s
        finally:
            self.beside = None
        self._tell(Stage.RESTORE, len(found), count())

    def _as_a_whole(self, stack: Stack) -> LabelCollector:
        found = LabelCollector(self.bundle, self.floor)
        if fallback.reason_for_fallback(self.recipe) is None:  # what MONAI's transforms take, nobody knows
            grid = (round(float(stack.coordinates[-1])) + 1, *stack.shape[1:])
            frame = preprocessing_plan(stack.affine, grid, self.recipe, tilted=stack.tilt_deg != 0).frame
            layout = lay_out(frame.stored_shape, frame.axes, self.recipe.window)
            self._fit(layout, stack.shape[1:], (math.prod(grid), math.prod(layout.shape)))
        voxels = torch.empty((1, *stack.shape))
        with self.clock.time(Stage.READ):
            for k, one in enumerate(stack.slices):
                check(self.cancelled)
                self.decoder.ahead(stack.slices[k : k + AHEAD])
                voxels[0, k] = torch.from_numpy(self._seen(found, self.decoder.take(one)))
        # The volume is handed on, not kept: it may be large, and it is changed on the way.
        given = [uniform(voxels, stack.coordinates)]
        del voxels
        if fallback.reason_for_fallback(self.recipe) is None:
            self._restored_whole(stack, given.pop(), found)
            return found
        bundle = replace(self.bundle, recipe=self.recipe)
        planes = fallback.label_planes(
            given.pop(), stack.affine, stack.coordinates, bundle, self._scores, found.certainty
        )
        with found:
            for plane in self._timed(Stage.RESTORE, planes):
                found.add(plane)
                self._tell(Stage.RESTORE, len(found), len(stack.slices))
        return found

    def _fit(self, layout: Layout, source: tuple[int, int], volumes: tuple[int, int] = (0, 0)) -> None:
        """Let only so many windows run at a time as memory has room for. Raises OutOfMemory where it has none for one.

        See `memory.need` for the arguments.
        """
        window, engine, bundle, exact = self.recipe.window, self.engine, self.bundle, self.settings.exact
        free = memory.free_bytes(CPU)
        if free is None:
            return
        on_device = None if engine.device == CPU else memory.free_bytes(engine.device)
        channels, classes = bundle.image_channels, bundle.out_channels
        takes = partial(memory.need, layout, source, channels=channels, classes=classes, volumes=volumes, exact=exact)
        takes = partial(takes, exclusive=self.recipe.exclusive)
        needed = takes(activations=memory.ample(layout))
        if memory.fitting(needed, engine.batch, free, on_device) < engine.batch:
            roi = [size for m, size in enumerate(layout.roi) if len(window.roi) == 3 or m != window.slice_axis]
            held = memory.held_by(engine.network, channels * layout.slices, roi, engine.device)
            needed = takes(activations=held)
        batch = memory.fitting(needed, engine.batch, free, on_device)
        least = engine.batch if exact else 1  # exact results need batches as they are
        if batch < least:
            raise OutOfMemory(
                f"series {self.series_uid}: about {memory.gib(needed.of(least))} of memory needed, {memory.gib(free)} "
                f"free: {classes} classes on slices of {layout.shape[1]} x {layout.shape[2]} voxels, bundle "
                f"{bundle.name}: close other programs, use a machine with more memory, or a bundle with fewer classes, "
                "larger voxels or a smaller window"
            )
        if batch < engine.batch:
            less = f"{batch} instead of {engine.batch} windows at a time"
            self.warnings.append(f"{less}: {memory.gib(needed.of(engine.batch))} needed, {memory.gib(free)} free")
            self.recipe = replace(self.recipe, window=replace(window, batch=min(window.batch, batch)))
            engine.batch = batch

    def _tell(self, stage: Stage, done: int, total: int | None) -> None:
        check(self.cancelled)
        self.on_progress(Progress(stage, done, total))

    def _seen(self, found: LabelCollector, plane: Pixels) -> Pixels:
        plane, values = found.valueless.see(plane)
        found.samples.add(values)
        if self.here is not None:
            self._tell(Stage.READ, len(found.samples), self.here)
        return plane

    def _stack(self, source: SliceSource, slices: Sequence[Slice]) -> Stack:
        """The one stack that the slices form. Raises GeometryRefused where they form none, or several."""
        series = source.series
        verdict = classify(series, slices, assume_frame_of_reference=self.settings.assume_frame_of_reference)
        if len(verdict.stacks) == 1:
            self.warnings += [f"{one.slices} slices left out: {one.detail}" for one in verdict.refusals]
            return verdict.stacks[0]
        if verdict.refusals:
            refusal = verdict.refusals[0]
            raise GeometryRefused(series.series_uid, refusal.reason, refusal.detail)
        phases = ", ".join(stack.phase for stack in verdict.stacks)
        detail = f"expected one volume, found {len(verdict.stacks)} ({phases}): segment each on its own"
        raise GeometryRefused(series.series_uid, "several_volumes", detail)

    def _restored_whole(self, stack: Stack, volume: Tensor, found: LabelCollector) -> None:
        """Find what is in a whole volume."""
        with self.clock.time(Stage.PREPARE):
            self._tell(Stage.PREPARE, 0, 1)
            prepared = prepare(volume, stack.affine, self.recipe, tilted=stack.tilt_deg != 0)
            del volume
            back = to_source(prepared, stack.coordinates, stack.shape[1:], self.recipe.finish)
            self._tell(Stage.PREPARE, 1, 1)
        count = len(stack.slices)
        slabs = self._scores(prepared.voxels, prepared.frame.axes)
        way = partial(_way, back, count)
        self._bring_back(slabs, way, found, self._cleaned_before_return, lambda: count)

    def _scores(self, voxels: Tensor, axes: Axes) -> Iterator[Slab]:
        """Slabs of class scores over a prepared volume (C, k, j, i)."""
        layout = lay_out((voxels.shape[1], voxels.shape[2], voxels.shape[3]), axes, self.recipe.window)
        done = 0

        def tick(_: Layout, windows: int) -> None:
            nonlocal done
            done += windows
            self._tell(Stage.INFER, done, layout.count)

        return self._slabs(lambda first, last: voxels[:, first:last], rows_of(layout), layout, layout.count, tick)

    def _slabs(
        self, planes: Planes, rows: Rows, layout: Layout, windows: int, tick: Callable[[Layout, int], None]
    ) -> Iterator[Slab]:
        """Slabs of class scores. windows: how many there will be, as far as that is known."""
        window = self.recipe.window
        weights = importance(layout.roi, window.blend, window.sigma_scale)
        self.engine.expected = windows
        scored = stream(
            planes,
            rows,
            weights,
            self.engine,
            batch=window.batch if self.settings.exact else self.engine.batch,
            tick=tick,
            room=self.engine.room,
            exact=self.settings.exact,
            steady=lambda: self.engine.steady,
        )
        return self._timed(Stage.INFER, scored)

    def _timed(self, stage: Stage, items: Iterator[T]) -> Iterator[T]:
        while True:
            with self.clock.time(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _cleaned_before_return(self, planes: Iterable[Tensor], *, backwards: bool = False) -> Iterable[Tensor]:
        """The recipe's KeepLargestConnectedComponentd, where it stands before the inversion."""
        wanted = self.recipe.finish.keep_largest
        if not wanted:
            return planes
        kept = largest_pieces((plane[0].cpu().numpy() for plane in planes), wanted, backwards=backwards)
        return (torch.tensor(plane)[None] for plane in kept)

    def _deliver(self, stack: Stack, cleaned: Iterable[LabelPlane], sink: LabelSink) -> None:
        count = len(stack.slices)
        with self.clock.time(Stage.ENCODE):
            sink.begin(stack, self.bundle.segments, exclusive=self.recipe.exclusive)
            for k, plane in enumerate(self._timed(Stage.RESTORE, iter(cleaned))):
                sink.plane(k, plane)
                self._tell(Stage.ENCODE, k + 1, count)
            sink.end()


def _way(back: ToSource, count: int, k: int, newest: int) -> tuple[ToSource, int]:
    """See `restore.Inverse`."""
    return back, so_far(back, count, k, newest)
