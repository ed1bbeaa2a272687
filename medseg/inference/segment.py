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

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.bundle.recipe import Recipe
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import Level, Series, SliceSource, Stack
from medseg.errors import GeometryRefused, InputError, InvalidBundle, UsageError
from medseg.inference import fallback
from medseg.inference.arrival import Contradicted, Intake, Passage, start
from medseg.inference.decoding import AHEAD, Decoder
from medseg.inference.device import Engine, Networks, choose_device, choose_precision, memory_errors
from medseg.inference.grid import Axes
from medseg.inference.labels import LabelPlane, LabelSink, SegmentationResult
from medseg.inference.postprocess import Labels, clean, largest_piece
from medseg.inference.prepare import prepare, uniform
from medseg.inference.quality import flags, measure, sample, values_of
from medseg.inference.restore import Certainty, restore, way_back
from medseg.inference.streaming import Planes, Rows, rows_of, stream
from medseg.inference.track import Track, lay, reasons
from medseg.inference.windows import Layout, importance, layout
from medseg.progress import Cancelled, Progress, Report, Stage, StageClock, check, never, silent

T = TypeVar("T")
MOST_LABELS: Final = 255  # label planes are uint8
NETWORKS: Final = Networks()


@dataclass(frozen=True)
class Settings:
    """How to segment.

    device: auto, cpu, cuda or cuda:N. precision: fp32, auto, bf16 or fp16, as far as the bundle allows.
    overlap, batch: of windows, instead of the bundle's. assume_frame_of_reference: derive one where a series has none.
    careful: memory did not suffice before: one window at a time, and scores stitched in the machine's memory.
    """

    device: str = "auto"
    precision: str = "fp32"
    overlap: float | None = None
    batch: int | None = None
    assume_frame_of_reference: bool = False
    careful: bool = False

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UsageError(f"overlap must be at least 0 and less than 1, found {self.overlap:g}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch must be at least 1, found {self.batch}")

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


class _Found:
    """What is found, plane by plane in the order of the windows; compressed, so that thousands are no burden."""

    def __init__(self, bundle: Bundle) -> None:
        self._exclusive, segments = bundle.recipe.exclusive, bundle.segments
        self._known = np.zeros(MOST_LABELS + 1, np.uint8)
        self._known[[one.number for one in segments]] = [one.number for one in segments]
        self._channels = [one.number - 1 for one in segments]
        self._planes: list[bytes] = []
        self.certainty = Certainty(bundle.out_channels)
        self.samples: list[Pixels] = []
        self.first: Slice | None = None
        self.windows = 0

    def __len__(self) -> int:
        return len(self._planes)

    def add(self, plane: Tensor) -> None:
        """Channel numbers (1, rows, columns), or bits (channels, rows, columns)."""
        given = plane.cpu().numpy()
        labels = self._known[given[0]] if self._exclusive else given[self._channels]
        self._planes.append(zlib.compress(np.ascontiguousarray(labels).tobytes(), 1))

    def labels(self, stack: Stack) -> Labels:
        """Segment numbers (k, j, i), or bits (segments, k, j, i) in their order; what was held is given up."""
        count, *plane = shape = stack.shape
        labels = np.zeros(shape if self._exclusive else (len(self._channels), *shape), np.uint8)
        backwards = self.first is not None and self.first is not stack.slices[0]
        for n, packed in enumerate(self._planes):
            k = count - 1 - n if backwards else n
            labels[..., k, :, :] = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(*labels.shape[:-3], *plane)
        self._planes.clear()
        return labels


class _Run:
    """One call of `segment`: its clock, its warnings, and where it tells of itself."""

    def __init__(self, bundle: Bundle, settings: Settings, on_progress: Report, cancelled: Cancelled) -> None:
        self.bundle, self.settings = bundle, settings
        self.recipe = settings.applied_to(bundle.recipe)
        self.on_progress, self.cancelled = on_progress, cancelled
        self.clock = StageClock()
        self.warnings: list[str] = []
        self.here: int | None = None  # slices, where none has to come; then decoding is what reading means
        device = choose_device(settings.device)
        precision = choose_precision(settings.precision, bundle, device)
        self.engine = Engine(
            NETWORKS.get(bundle, device), bundle, device, precision, self.recipe.window.batch, careful=settings.careful
        )

    def __call__(self, source: SliceSource, sink: LabelSink) -> SegmentationResult:
        with Decoder() as self.decoder:
            if isinstance(source, StackSource):
                stack, found, waited = source.stack, None, None
                self.here = len(stack.slices)
            else:
                stack, found, waited = self._while_they_come(source)
            if found is None:
                found, whole = self._all_there(stack)
                waited = whole or waited
        labels = found.labels(stack)
        exclusive, segments = self.recipe.exclusive, self.bundle.segments
        confidence = [found.certainty.mean(one.number - (0 if exclusive else 1)) for one in segments]
        with self.clock.time(Stage.RESTORE):
            voxel_ml = np.array([stack.voxel_ml(k) for k in range(len(stack.slices))])
            left_out = clean(labels, segments, self.bundle.postprocess, voxel_ml, exclusive=exclusive)
            measured, at_edge = measure(labels, segments, voxel_ml, confidence, left_out, exclusive=exclusive)
        self._deliver(stack, labels, sink)
        noticed = [one.detail for one in stack.findings if one.level is Level.WARNING]
        return SegmentationResult(
            stack=stack,
            measured=measured,
            flags=flags(stack, self.bundle, measured, at_edge, values_of(found.samples)),
            warnings=(*noticed, *self.warnings, *self.engine.warnings),
            timings_s=self.clock.timings_s(),
            device=str(self.engine.device),
            engine="torch",
            precision=self.engine.precision,
            streamed=waited is None,
            streamed_reason=waited,
        )

    def _while_they_come(self, source: SliceSource) -> tuple[Stack, _Found | None, str | None]:
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
                    return whole(), found, None
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

    def _all_there(self, stack: Stack) -> tuple[_Found, str | None]:
        """What is found in a stack whose slices are all there; and why it was taken as a whole, where it was."""
        track = lay(stack, self.recipe)
        if isinstance(track, str):
            return self._as_a_whole(stack), track
        return self._along(track, lambda: None, lambda: track), None

    def _along(self, track: Track, more: Callable[[], Slice | None], end: Callable[[], Track | None]) -> _Found:
        """What the windows find along a track. Raises Contradicted where it turns out to be another."""
        found = _Found(self.bundle)
        found.first = track.slices[0]
        passage = Passage(
            track, self.recipe, self.decoder, more=more, end=end, seen=partial(self._seen, found), clock=self.clock
        )

        def tick(where: Layout, windows: int) -> None:
            found.windows += windows
            self._tell(Stage.INFER, found.windows, where.count if passage.ended else None)

        def planes(first: int, last: int) -> Tensor:
            slab = passage.planes(first, last)
            self._tell(Stage.PREPARE, last, passage.plan.where.shape[0] if passage.ended else None)
            return slab

        slabs = self._slabs(planes, passage.rows(), passage.plan.where, tick)
        finish = self.recipe.finish
        for plane in self._timed(
            Stage.RESTORE, restore(slabs, finish, passage.way, found.certainty, self._cleaned_before_return)
        ):
            found.add(plane)
            passage.restored = len(found)
            self._tell(Stage.RESTORE, len(found), passage.plan.count if passage.ended else None)
        return found

    def _as_a_whole(self, stack: Stack) -> _Found:
        found = _Found(self.bundle)
        voxels = torch.empty((1, *stack.shape))
        with self.clock.time(Stage.READ):
            for k, one in enumerate(stack.slices):
                check(self.cancelled)
                self.decoder.ahead(stack.slices[k : k + AHEAD])
                voxels[0, k] = torch.from_numpy(self._seen(found, self.decoder.take(one)))
        # The volume is handed on, not kept: it may be large, and it is changed on the way.
        given = [uniform(voxels, stack.coordinates)]
        del voxels
        run = self._planes if fallback.reason_for_fallback(self.recipe) is None else self._planes_by_monai
        for plane in self._timed(Stage.RESTORE, run(stack, given.pop(), found.certainty)):
            found.add(plane)
            self._tell(Stage.RESTORE, len(found), len(stack.slices))
        return found

    def _tell(self, stage: Stage, done: int, total: int | None) -> None:
        check(self.cancelled)
        self.on_progress(Progress(stage, done, total))

    def _seen(self, found: _Found, plane: Pixels) -> Pixels:
        plane = self._finite(plane)
        found.samples.append(sample(plane))
        if self.here is not None:
            self._tell(Stage.READ, len(found.samples), self.here)
        return plane

    def _finite(self, plane: Pixels) -> Pixels:
        """The plane with its least value where there is none (NaN, infinity), which would spread over its row."""
        good = np.isfinite(plane)
        if good.all():
            return plane
        warning = "some voxels have no finite value: the least value of their slice is used"
        if warning not in self.warnings:
            self.warnings.append(warning)
        return np.where(good, plane, plane[good].min() if good.any() else np.float32(0))

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

    def _planes(self, stack: Stack, volume: Tensor, certainty: Certainty) -> Iterator[Tensor]:
        """Label planes of a whole volume."""
        finish = self.recipe.finish
        with self.clock.time(Stage.PREPARE):
            self._tell(Stage.PREPARE, 0, 1)
            prepared = prepare(volume, stack.affine, self.recipe, tilted=stack.tilt_deg != 0)
            del volume
            back = way_back(prepared, stack.coordinates, stack.shape[1:], finish)
            self._tell(Stage.PREPARE, 1, 1)
        slabs = self._scores(prepared.voxels, prepared.frame.axes)
        return restore(slabs, finish, lambda: (back, len(stack.slices)), certainty, self._cleaned_before_return)

    def _planes_by_monai(self, stack: Stack, volume: Tensor, certainty: Certainty) -> Iterator[Tensor]:
        bundle = replace(self.bundle, recipe=self.recipe)
        return fallback.label_planes(volume, stack.affine, stack.coordinates, bundle, self._scores, certainty)

    def _scores(self, voxels: Tensor, axes: Axes) -> Iterator[tuple[int, Tensor]]:
        """Slabs of class scores over a prepared volume (C, k, j, i)."""
        where = layout((voxels.shape[1], voxels.shape[2], voxels.shape[3]), axes, self.recipe.window)
        done = 0

        def tick(_: Layout, windows: int) -> None:
            nonlocal done
            done += windows
            self._tell(Stage.INFER, done, where.count)

        return self._slabs(lambda first, last: voxels[:, first:last], rows_of(where), where, tick)

    def _slabs(
        self, planes: Planes, rows: Rows, where: Layout, tick: Callable[[Layout, int], None]
    ) -> Iterator[tuple[int, Tensor]]:
        window = self.recipe.window
        weights = importance(where.roi, window.blend, window.sigma_scale)
        scored = stream(planes, rows, weights, self.engine, batch=window.batch, tick=tick, room=self.engine.room)
        return self._timed(Stage.INFER, scored)

    def _timed(self, stage: Stage, items: Iterator[T]) -> Iterator[T]:
        while True:
            with self.clock.time(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _cleaned_before_return(self, planes: Iterable[Tensor]) -> Iterable[Tensor]:
        """The recipe's KeepLargestConnectedComponentd, where it stands before the inversion."""
        wanted = self.recipe.finish.keep_largest
        if not wanted:
            return planes
        volume = torch.stack(list(planes), dim=1).cpu().numpy()  # (1, k, j, i)
        for label in wanted:
            mask: NDArray[np.bool_] = volume[0] == label
            volume[0][mask & ~largest_piece(mask)] = 0
        return torch.from_numpy(volume).unbind(dim=1)

    def _deliver(self, stack: Stack, labels: Labels, sink: LabelSink) -> None:
        count = len(stack.slices)
        with self.clock.time(Stage.ENCODE):
            sink.begin(stack, self.bundle.segments, exclusive=self.recipe.exclusive)
            for k in range(count):
                plane: LabelPlane = labels[k] if self.recipe.exclusive else labels[:, k]
                sink.plane(k, plane)
                self._tell(Stage.ENCODE, k + 1, count)
            sink.end()
