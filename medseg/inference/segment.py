"""The pipeline: slices come in, label planes go out.

    slices as they come -> decode -> prepare -> windows -> restore, plane by plane -> clean -> measure -> sink

The command line, a cohort and the gateway's worker all call `segment`. There are three ways through it, with the same
result to the bit, where they apply:

    while slices come     along a track laid through the first of them (`track`, `arrival`); when the last has come, the
                          whole must lie on that very track, or all is done again
    when all are there    along the track through all of them; memory as above, for any number of slices
    as a whole volume     where a recipe or a geometry has no track (`track.lay` says why)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias, TypeVar

import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.bundle.recipe import Recipe
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import Level, Series, SliceSource, Stack
from medseg.dicom.stored import floor_of
from medseg.errors import GeometryRefused, InputError, InvalidBundle, OutOfMemory, UsageError
from medseg.inference import fallback, heap, memory
from medseg.inference.arrival import Contradicted, Intake, Passage, start
from medseg.inference.beside import Beside
from medseg.inference.decoding import AHEAD, Decoder
from medseg.inference.device import CPU, Engine, Networks, choose_device, choose_precision, memory_errors, steady_batch
from medseg.inference.engines.backends import TORCH
from medseg.inference.engines.race import AUTO, ENGINES, default_engine
from medseg.inference.found import MOST_LABELS, Cleaned, Found
from medseg.inference.grid import Axes
from medseg.inference.labels import LabelPlane, LabelSink, SegmentationResult
from medseg.inference.postprocess import largest_pieces
from medseg.inference.prepare import course, prepare, uniform
from medseg.inference.quality import flags, no_value
from medseg.inference.restore import Back, Way, restore, so_far, way_back
from medseg.inference.streaming import Planes, Rows, rows_of, stream
from medseg.inference.track import Track, lay, reasons
from medseg.inference.windows import Layout, importance, layout
from medseg.progress import Cancelled, Progress, Report, Stage, StageClock, check, never, silent

T = TypeVar("T")
Slab: TypeAlias = tuple[int, Tensor]
NETWORKS: Final = Networks()
_TIDY: Final = 64  # planes found


@dataclass(frozen=True)
class Settings:
    """How to segment.

    device: auto, cpu, cuda or cuda:N. precision: fp32, auto, bf16 or fp16, as far as the bundle allows.
    engine: auto, torch, compile, openvino or tensorrt (`engines.race.ENGINES`); MEDSEG_ENGINE unless given, else auto.
    overlap, batch: of windows, instead of the bundle's. assume_frame_of_reference: derive one where a series has none.
    careful: memory did not suffice before: one window at a time, and scores stitched in the machine's memory.
    exact: scores are to the bit those of MONAI's sliding_window_inference on a CPU; in fp32, by torch, more memory.
    """

    device: str = "auto"
    precision: str = "fp32"
    engine: str = field(default_factory=default_engine)
    overlap: float | None = None
    batch: int | None = None
    assume_frame_of_reference: bool = False
    careful: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.exact:
            self._check_exact()
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UsageError(f"overlap must be at least 0 and less than 1, found {self.overlap:g}")
        if self.engine not in ENGINES:
            raise UsageError(f"no such engine: {self.engine!r}; known are {', '.join(ENGINES)}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch must be at least 1, found {self.batch}")

    def _check_exact(self) -> None:
        if self.device not in (AUTO, CPU.type) or self.engine not in (AUTO, TORCH) or self.precision != "fp32":
            asked = f"device {self.device}, engine {self.engine}, precision {self.precision}"
            raise UsageError(f"exact results are those of torch on a CPU in fp32, found {asked}")
        if self.careful:
            raise UsageError("exact results need windows in batches as MONAI's, not one at a time")

    def applied_to(self, recipe: Recipe) -> Recipe:
        window = recipe.window
        if self.overlap is not None:
            window = replace(window, overlap=(self.overlap,) * len(window.roi))
        if self.batch is not None:
            window = replace(window, batch=self.batch)
        if self.careful:
            window = replace(window, batch=1)
        return replace(recipe, window=window)


@dataclass(frozen=True, eq=False)
class StackSource:
    """A source whose slices are all here and known to form this stack: a folder looked at before, or NIfTI."""

    stack: Stack

    @property
    def series(self) -> Series:
        return self.stack.series

    @property
    def expected(self) -> int | None:
        return len(self.stack.slices)

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.stack.slices)


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
        self.beside: Beside[Slab] | None = None  # where slabs are brought back
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
            cleaned = Cleaned(found, stack)
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

    def _while_they_come(self, source: SliceSource) -> tuple[Stack, Found | None, str | None]:
        """The stack that all slices form; what was found in them meanwhile, else why nothing could be."""
        intake = Intake(source, lambda count: self._tell(Stage.READ, count, source.expected))
        formed: list[Stack] = []

        def whole() -> Stack:
            if not formed:
                formed.append(self._stack(source, intake.slices))
            return formed[0]

        def end() -> Track | None:
            track = lay(whole(), self.recipe) if intake.ended else None
            if isinstance(track, str):
                raise Contradicted(track)
            return track

        why: str | None = next(iter(reasons(self.recipe)), None)
        if why is None:
            assume = self.settings.assume_frame_of_reference
            with self.clock.time(Stage.READ):
                track = start(intake, source, self.recipe, self.decoder, assume_frame=assume)
            if isinstance(track, Track):
                try:
                    found = self._along(track, intake.pull, end)
                    return whole(), found, self._waits()
                except Contradicted as error:
                    why = str(error)
            else:
                why = track
        with self.clock.time(Stage.READ):
            while not intake.ended:
                one = intake.pull()
                if one is not None:
                    self.decoder.keep(one)
            return whole(), None, why

    def _all_there(self, stack: Stack) -> tuple[Found, str | None]:
        """What is found in a stack whose slices are all there; and why windows could not have run before they were."""
        track = lay(stack, self.recipe)
        if isinstance(track, str):
            return self._as_a_whole(stack), track
        try:
            return self._along(track, lambda: None, lambda: track), self._waits()
        except Contradicted as error:
            return self._as_a_whole(stack), str(error)

    def _waits(self) -> str | None:
        """Why windows wait for the last slice though they lie along a track."""
        return next(iter(self.recipe.barriers()), None)

    def _along(self, track: Track, more: Callable[[], Slice | None], end: Callable[[], Track | None]) -> Found:
        """What the windows find along a track. Raises Contradicted where it turns out to be another."""
        found = Found(self.bundle, self.floor)
        found.first = track.slices[0]

        def pull() -> Slice | None:
            one = more()
            if one is None and self.beside is not None:
                self.beside.settle()  # what is found is told before anything is waited for
                self._tell(Stage.RESTORE, len(found), None)
            return one

        passage = Passage(
            track,
            self.recipe,
            self.decoder,
            more=pull,
            end=end,
            seen=partial(self._seen, found),
            clock=self.clock,
            certain=self.settings.exact,
        )

        def tick(where: Layout, windows: int) -> None:
            found.windows += windows
            self._tell(Stage.INFER, found.windows, where.count if passage.ended else None)

        def planes(first: int, last: int) -> Tensor:
            slab = passage.planes(first, last)
            self._tell(Stage.PREPARE, last, passage.plan.where.shape[0] if passage.ended else None)
            return slab

        where = passage.plan.where
        self._fit(where, track.shape)
        windows = where.count if passage.ended else len(where.in_plane())  # of an arriving series, the first row
        slabs = self._slabs(planes, passage.rows(), where, windows, tick)
        clean = partial(self._cleaned_before_return, backwards=track.count is not None)
        self._bring_back(slabs, passage.way, found, clean, lambda: passage.plan.count if passage.ended else None)
        found.see_rest(lambda n: self.decoder.take(passage.slices[n]))
        return found

    def _bring_back(
        self,
        slabs: Iterator[Slab],
        way: Way,
        found: Found,
        clean: Callable[[Iterable[Tensor]], Iterable[Tensor]],
        count: Callable[[], int | None],
    ) -> None:
        """Bring slabs back to the source, and look at its planes, in threads beside that of the network."""

        def consume(slabs: Iterator[Slab]) -> None:
            with found:
                for plane in restore(slabs, self.recipe.finish, way, found.certainty, clean):
                    found.add(plane)
                    if len(found) % _TIDY == 0:
                        heap.give_back()

        try:
            with self.engine.at_work(), Beside(consume, lambda slab: slab[1].nbytes, memory.WAITING) as self.beside:
                for slab in slabs:
                    self.beside.put(slab)
                    self._tell(Stage.RESTORE, len(found), count())
            self.clock.seconds[Stage.RESTORE] += self.beside.busy_s
        finally:
            self.beside = None
        self._tell(Stage.RESTORE, len(found), count())

    def _as_a_whole(self, stack: Stack) -> Found:
        found = Found(self.bundle, self.floor)
        if fallback.reason_for_fallback(self.recipe) is None:  # what MONAI's transforms take, nobody knows
            grid = (round(float(stack.coordinates[-1])) + 1, *stack.shape[1:])
            frame = course(stack.affine, grid, self.recipe, tilted=stack.tilt_deg != 0).frame
            where = layout(frame.stored_shape, frame.axes, self.recipe.window)
            self._fit(where, stack.shape[1:], (math.prod(grid), math.prod(where.shape)))
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

    def _fit(self, where: Layout, source: tuple[int, int], volumes: tuple[int, int] = (0, 0)) -> None:
        """Let only so many windows run at a time as memory has room for. Raises OutOfMemory where it has none for one.

        See `memory.need` for the arguments.
        """
        window, engine, bundle, exact = self.recipe.window, self.engine, self.bundle, self.settings.exact
        free = memory.free_bytes(CPU)
        if free is None:
            return
        on_device = None if engine.device == CPU else memory.free_bytes(engine.device)
        channels, classes = bundle.image_channels, bundle.out_channels
        takes = partial(memory.need, where, source, channels=channels, classes=classes, volumes=volumes, exact=exact)
        takes = partial(takes, exclusive=self.recipe.exclusive)
        needed = takes(activations=memory.ample(where))
        if memory.fitting(needed, engine.batch, free, on_device) < engine.batch:
            roi = [size for m, size in enumerate(where.roi) if len(window.roi) == 3 or m != window.slice_axis]
            held = memory.held_by(engine.network, channels * where.slices, roi, engine.device)
            needed = takes(activations=held)
        batch = memory.fitting(needed, engine.batch, free, on_device)
        least = engine.batch if exact else 1  # exact results need batches as they are
        if batch < least:
            raise OutOfMemory(
                f"series {self.series_uid}: about {memory.gib(needed.of(least))} of memory needed, {memory.gib(free)} "
                f"free: {classes} classes on slices of {where.shape[1]} x {where.shape[2]} voxels, bundle "
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

    def _seen(self, found: Found, plane: Pixels) -> Pixels:
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

    def _restored_whole(self, stack: Stack, volume: Tensor, found: Found) -> None:
        """Find what is in a whole volume."""
        with self.clock.time(Stage.PREPARE):
            self._tell(Stage.PREPARE, 0, 1)
            prepared = prepare(volume, stack.affine, self.recipe, tilted=stack.tilt_deg != 0)
            del volume
            back = way_back(prepared, stack.coordinates, stack.shape[1:], self.recipe.finish)
            self._tell(Stage.PREPARE, 1, 1)
        count = len(stack.slices)
        slabs = self._scores(prepared.voxels, prepared.frame.axes)
        way = partial(_way, back, count)
        self._bring_back(slabs, way, found, self._cleaned_before_return, lambda: count)

    def _scores(self, voxels: Tensor, axes: Axes) -> Iterator[Slab]:
        """Slabs of class scores over a prepared volume (C, k, j, i)."""
        where = layout((voxels.shape[1], voxels.shape[2], voxels.shape[3]), axes, self.recipe.window)
        done = 0

        def tick(_: Layout, windows: int) -> None:
            nonlocal done
            done += windows
            self._tell(Stage.INFER, done, where.count)

        return self._slabs(lambda first, last: voxels[:, first:last], rows_of(where), where, where.count, tick)

    def _slabs(
        self, planes: Planes, rows: Rows, where: Layout, windows: int, tick: Callable[[Layout, int], None]
    ) -> Iterator[Slab]:
        """Slabs of class scores. windows: how many there will be, as far as that is known."""
        window = self.recipe.window
        weights = importance(where.roi, window.blend, window.sigma_scale)
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


def _way(back: Back, count: int, k: int, newest: int) -> tuple[Back, int]:
    """See `restore.Way`."""
    return back, so_far(back, count, k, newest)
