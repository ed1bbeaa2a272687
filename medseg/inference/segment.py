"""The pipeline: slices come in, label planes go out.

    slices as they come -> decode -> stack -> prepare -> windows -> restore, plane by plane -> clean -> measure -> sink

The command line, a cohort and the gateway's worker all call `segment`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

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
from medseg.inference.device import Engine, Networks, choose_device, choose_precision, memory_errors
from medseg.inference.grid import Axes
from medseg.inference.labels import LabelPlane, LabelSink, SegmentationResult
from medseg.inference.postprocess import Labels, clean, largest_piece
from medseg.inference.prepare import prepare, uniform
from medseg.inference.quality import flags, measure, values_of
from medseg.inference.restore import Certainty, restore, way_back
from medseg.inference.streaming import stream
from medseg.inference.windows import importance, layout
from medseg.progress import Cancelled, Progress, Report, Stage, StageClock, check, never, silent

READERS: Final = min(4, os.cpu_count() or 1)
MOST_LABELS: Final = 255  # label planes are uint8
NETWORKS: Final = Networks()


@dataclass(frozen=True)
class Settings:
    """How to segment.

    device: auto, cpu, cuda or cuda:N. precision: fp32, auto, bf16 or fp16, as far as the bundle allows.
    overlap, batch: of windows, instead of the bundle's. assume_frame_of_reference: derive one where a series has none.
    """

    device: str = "auto"
    precision: str = "fp32"
    overlap: float | None = None
    batch: int | None = None
    assume_frame_of_reference: bool = False

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
    if bundle.in_channels != 1:
        raise InputError(
            f"bundle {bundle.name} needs {bundle.in_channels} series of a study at once, one per input channel; "
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
        self.reason = fallback.reason_for_fallback(self.recipe)
        self.on_progress, self.cancelled = on_progress, cancelled
        self.clock = StageClock()
        self.warnings: list[str] = []
        device = choose_device(settings.device)
        precision = choose_precision(settings.precision, bundle, device)
        self.engine = Engine(NETWORKS.get(bundle, device), bundle, device, precision, self.recipe.window.batch)

    def __call__(self, source: SliceSource, sink: LabelSink) -> SegmentationResult:
        stack, voxels = self._read(source)
        values = values_of(voxels.numpy())
        certainty = Certainty(self.bundle.out_channels)
        # The volume is handed on, not kept: it may be large, and it is changed on the way.
        given = [uniform(voxels, stack.coordinates)]
        del voxels
        run = self._planes if self.reason is None else self._planes_by_monai
        labels = self._collected(stack, run(stack, given.pop(), certainty))
        confidence = [certainty.mean(one.number - (0 if self.recipe.exclusive else 1)) for one in self.bundle.segments]
        exclusive, segments = self.recipe.exclusive, self.bundle.segments
        with self.clock.time(Stage.RESTORE):
            voxel_ml = np.array([stack.voxel_ml(k) for k in range(len(stack.slices))])
            clean(labels, segments, self.bundle.postprocess, voxel_ml, exclusive=exclusive)
            measured, at_edge = measure(labels, segments, voxel_ml, confidence, exclusive=exclusive)
        self._deliver(stack, labels, sink)
        noticed = [found.detail for found in stack.findings if found.level is Level.WARNING]
        return SegmentationResult(
            stack=stack,
            measured=measured,
            flags=flags(stack, self.bundle, measured, at_edge, values),
            warnings=(*noticed, *self.warnings, *self.engine.warnings),
            timings_s=self.clock.timings_s(),
            device=str(self.engine.device),
            engine="torch",
            precision=self.engine.precision,
            streamed=self.reason is None,
            streamed_reason=self.reason,
        )

    def _tell(self, stage: Stage, done: int, total: int | None) -> None:
        check(self.cancelled)
        self.on_progress(Progress(stage, done, total))

    def _read(self, source: SliceSource) -> tuple[Stack, Tensor]:
        """The stack, and its slices (1, K, rows, columns)."""
        with self.clock.time(Stage.READ), ThreadPoolExecutor(READERS, thread_name_prefix="decode") as pool:
            pixels: dict[int, Future[Pixels]] = {}
            slices: list[Slice] = []
            try:
                for one in source:
                    slices.append(one)
                    pixels[id(one)] = pool.submit(one.read)
                    self._tell(Stage.READ, len(slices), source.expected)
                stack = self._stack(source, slices)
                voxels = torch.empty((1, *stack.shape))
                for k, one in enumerate(stack.slices):
                    check(self.cancelled)
                    voxels[0, k] = torch.from_numpy(self._finite(pixels.pop(id(one)).result()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return stack, voxels

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
        if isinstance(source, StackSource):
            return source.stack
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
        """Label planes by the streaming engine."""
        finish = self.recipe.finish
        with self.clock.time(Stage.PREPARE):
            self._tell(Stage.PREPARE, 0, 1)
            prepared = prepare(volume, stack.affine, self.recipe, tilted=stack.tilt_deg != 0)
            del volume
            back = way_back(prepared, stack.coordinates, stack.shape[1:], finish)
            self._tell(Stage.PREPARE, 1, 1)
        slabs = self._scores(prepared.voxels, prepared.frame.axes)
        return restore(slabs, finish, back, len(stack.slices), certainty, self._cleaned_before_return)

    def _planes_by_monai(self, stack: Stack, volume: Tensor, certainty: Certainty) -> Iterator[Tensor]:
        bundle = replace(self.bundle, recipe=self.recipe)
        return fallback.label_planes(volume, stack.affine, stack.coordinates, bundle, self._scores, certainty)

    def _scores(self, voxels: Tensor, axes: Axes) -> Iterator[tuple[int, Tensor]]:
        """Slabs of class scores over a prepared volume (C, k, j, i)."""
        window = self.recipe.window
        where = layout((voxels.shape[1], voxels.shape[2], voxels.shape[3]), axes, window)
        weights = importance(where.roi, window.blend, window.sigma_scale)
        done = 0

        def tick(windows: int) -> None:
            nonlocal done
            done += windows
            self._tell(Stage.INFER, done, where.count)

        def planes(first: int, last: int) -> Tensor:
            return voxels[:, first:last]

        return self._timed(stream(planes, where, weights, self.engine, batch=window.batch, tick=tick))

    def _collected(self, stack: Stack, planes: Iterator[Tensor]) -> Labels:
        """Channel numbers or bits -> segment numbers (k, j, i), or bits (segments, k, j, i) in their order."""
        segments, exclusive = self.bundle.segments, self.recipe.exclusive
        labels = np.zeros(stack.shape if exclusive else (len(segments), *stack.shape), np.uint8)
        known = np.zeros(MOST_LABELS + 1, np.uint8)
        known[[one.number for one in segments]] = [one.number for one in segments]
        channels = [one.number - 1 for one in segments]
        begin, elsewhere = time.perf_counter(), self._spent()
        for k, plane in enumerate(planes):
            if exclusive:
                labels[k] = known[plane[0].cpu().numpy()]
            else:
                labels[:, k] = plane.cpu().numpy()[channels]
            self._tell(Stage.RESTORE, k + 1, len(stack.slices))
        self.clock.seconds[Stage.RESTORE] += time.perf_counter() - begin - (self._spent() - elsewhere)
        return labels

    def _spent(self) -> float:
        return self.clock.seconds[Stage.PREPARE] + self.clock.seconds[Stage.INFER]

    def _timed(self, slabs: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        while True:
            with self.clock.time(Stage.INFER):
                slab = next(slabs, None)
            if slab is None:
                return
            yield slab

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
