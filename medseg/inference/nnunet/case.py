"""A volume through nnU-Net's models: folds, stages of a cascade, parts that make one result.

prepare -> windows of each fold, averaged in half -> back to the volume, beside the network -> clean up
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.bundle.nnunet.model import NnUNet
from medseg.bundle.recipe import Activation, Finish, Order
from medseg.dicom.series import Stack
from medseg.errors import InvalidBundle
from medseg.inference import malloc, memory
from medseg.inference.background import BackgroundConsumer
from medseg.inference.context import PipelineContext
from medseg.inference.engines.device import CPU
from medseg.inference.engines.engine import Engine
from medseg.inference.grids.restore import Certainty
from medseg.inference.nnunet.back import label_planes, probability_planes
from medseg.inference.nnunet.cleanup import cleaned
from medseg.inference.nnunet.confidence import tell_confidence, winners
from medseg.inference.nnunet.matrices import DeviceZoom
from medseg.inference.nnunet.need import at_a_time, check_scores
from medseg.inference.nnunet.passing import PassedStack, PassingVolume
from medseg.inference.nnunet.prepare import Grids, prepare
from medseg.inference.nnunet.resample import Array, Zoom, overshot
from medseg.inference.nnunet.source import Source
from medseg.inference.nnunet.waiting import WaitingScores
from medseg.inference.nnunet.windows import Placing, count_windows, score_planes
from medseg.progress import Stage

MOST: Final = 256  # labels of a result, the background among them
_TIDY: Final = 64  # planes
REGIONS: Final = Finish(Activation.SIGMOID, 0.5, Order.PROBABILITIES_FIRST, nearest=False)


class Seen(Protocol):
    """What a model's windows see of a volume: planes (C, y, x) of the network's grid, as often as wanted."""

    @property
    def grids(self) -> Grids: ...

    def planes(self) -> Iterator[Tensor]: ...


@dataclass(frozen=True, eq=False)
class ModelRun:
    """One model over one stack. certainty: None for a cascade's first stage. numbers: of its labels in the result.

    models: whose probabilities are averaged, it among them.
    """

    stack: Stack
    bundle: Bundle
    certainty: Certainty | None
    numbers: Array
    model: NnUNet
    models: int = 1


def folds_of(bundle: Bundle) -> list[Bundle]:
    """A bundle for each of the networks whose scores are averaged, as engines know it."""
    assert bundle.nnunet is not None
    finish = bundle.recipe.finish if bundle.nnunet.labels.order is None else REGIONS
    recipe = replace(bundle.recipe, finish=finish, fallback=None)
    folds = []
    for number, weights in enumerate((bundle.weights, *bundle.members)):
        digest = hashlib.sha256(f"{bundle.digest} fold {number}".encode()).hexdigest()
        folds.append(replace(bundle, weights=weights, members=(), digest=digest, recipe=recipe, parts=()))
    return folds


def first_network(bundle: Bundle) -> Bundle:
    """The one that a run begins with."""
    first = bundle.parts[0].bundle if bundle.parts else bundle
    return folds_of(first.averaged[0] if first.averaged else first)[0]


def jobs_of(context: PipelineContext, stack: Stack, certainty: Certainty | None = None) -> list[ModelRun]:
    """The models whose labels a result is merged of. certainty: by label of the result."""
    if not context.bundle.parts:
        return [_job(context, stack, context.bundle, certainty, np.arange(MOST, dtype=np.uint8))]
    jobs = []
    for part in context.bundle.parts:
        numbers = np.zeros(MOST, np.uint8)
        numbers[list(part.numbers)] = list(part.numbers.values())
        jobs.append(_job(context, stack, part.bundle, certainty, numbers))
    return jobs


def _job(
    context: PipelineContext, stack: Stack, bundle: Bundle, certainty: Certainty | None, numbers: Array
) -> ModelRun:
    model, overlap = bundle.nnunet, context.settings.overlap
    assert model is not None
    return ModelRun(stack, bundle, certainty, numbers, model if overlap is None else replace(model, step=1 - overlap))


def models_of(context: PipelineContext, job: ModelRun) -> list[ModelRun]:
    """The models whose probabilities are averaged for a job; itself where there is one."""
    bundles = job.bundle.averaged
    made = (_job(context, job.stack, bundle, job.certainty, job.numbers) for bundle in bundles)
    return [replace(one, models=len(bundles)) for one in made] or [job]


def label_passed(
    context: PipelineContext, passed: PassedStack, job: ModelRun, take: Callable[[int, Array], None]
) -> None:
    """Labels (rows, columns) of every slice to `take`, with its number; from the first slice on, or from the last."""
    models = models_of(context, job)
    with context.clock.time(Stage.PREPARE):
        volumes = [PassingVolume(passed, one.model, _zoom(context)) for one in models]
    volume = volumes[0]

    def taken(n: int, labels: Array) -> None:
        take(volume.slice_of(n), job.numbers[volume.back(labels)])

    if len(models) == 1:
        _restored(context, volume, job, taken)
    else:
        _mean_restored(context, job, zip(models, volumes, strict=True), taken)


def label_whole(context: PipelineContext, source: Source, job: ModelRun) -> Array:
    """Labels (k, j, i) of the source's uniform grid."""
    if job.bundle.averaged:
        return _mean_whole(context, source, job)
    model = job.model
    with context.clock.time(Stage.PREPARE):
        volume, spacing = source.volume(model), source.spacing_mm(model)
    earlier = _earlier(context, source, job)
    cases = [slice(None)] if not model.flat else [slice(n, n + 1) for n in range(volume.shape[1])]
    made = np.zeros(volume.shape[1:], np.uint8)
    for case in cases:
        with context.clock.time(Stage.PREPARE):
            prepared = prepare(
                volume[:, case], spacing, model, None if earlier is None else earlier[case], _zoom(context)
            )
        if case is cases[-1]:
            del volume
        labels = made[case].transpose(model.transpose)
        _restored(context, prepared, job, labels.__setitem__)
        with context.clock.time(Stage.RESTORE):
            cleaned(labels, model.cleanup)
    return job.numbers[source.back(made, model)]


def _zoom(context: PipelineContext) -> Zoom:
    device = context.engine.device
    return overshot if device == CPU else DeviceZoom(device)


def _earlier(context: PipelineContext, source: Source, job: ModelRun) -> Array | None:
    """Labels (z, y, x) of a cascade's first stage."""
    if job.bundle.previous is None:
        return None
    first = _job(context, job.stack, job.bundle.previous, None, np.arange(MOST, dtype=np.uint8))
    return source.seen(label_whole(context, source, first), job.model)


def _mean_whole(context: PipelineContext, source: Source, job: ModelRun) -> Array:
    """Labels (k, j, i) of the mean of several models."""
    model = job.model
    made = np.zeros(source.seen(source.voxels, model).shape[1:], np.uint8)
    labels = made.transpose(model.transpose)

    def prepared(one: ModelRun) -> Seen:
        earlier = _earlier(context, source, one)
        with context.clock.time(Stage.PREPARE):
            return prepare(source.volume(one.model), source.spacing_mm(one.model), one.model, earlier, _zoom(context))

    _mean_restored(context, job, ((one, prepared(one)) for one in models_of(context, job)), labels.__setitem__)
    with context.clock.time(Stage.RESTORE):
        cleaned(labels, model.cleanup)
    return job.numbers[source.back(made, model)]


def _mean_restored(
    context: PipelineContext, job: ModelRun, models: Iterable[tuple[ModelRun, Seen]], take: Callable[[int, Array], None]
) -> None:
    """As `_restored`, of the mean of models' probabilities on the volume's grid; scores of each wait on disk, on its
    own."""
    waiting: list[Iterator[Tensor]] = []
    for one, seen in models:
        scores = WaitingScores(_averaged(context, seen, one, lambda: None))
        waiting.append(probability_planes(scores, seen.grids, one.model))
        del seen  # before the next is made
    with context.clock.time(Stage.RESTORE), torch.inference_mode():
        for n, (total, *others) in enumerate(zip(*waiting, strict=True)):
            for other in others:
                total += other
            winning, label = winners(total.div_(len(waiting)), job.model.labels)
            if job.certainty is not None:
                job.certainty.count(winning, torch.from_numpy(job.numbers).long()[label])
            take(n, label.numpy().astype(np.uint8))


def _restored(context: PipelineContext, seen: Seen, job: ModelRun, take: Callable[[int, Array], None]) -> None:
    """Labels of the planes of the whole volume to `take`, with their numbers, in the plans' axes."""

    all_heads = context.engine.device != CPU

    def consume(planes: Iterator[Tensor]) -> None:
        confident = _confident(planes, job)
        with torch.inference_mode():
            for n, labels in enumerate(label_planes(confident, seen.grids, job.model, all_heads=all_heads)):
                take(n, labels)
                if n % _TIDY == _TIDY - 1:
                    malloc.give_back()

    with BackgroundConsumer(consume, lambda plane: plane.nbytes, sys.maxsize) as beside:
        for plane in _averaged(context, seen, job, lambda: beside.lighten(memory.WAITING)):
            beside.put(plane)
    context.clock.add(Stage.RESTORE, beside.busy_s)


def _confident(planes: Iterable[Tensor], job: ModelRun) -> Iterator[Tensor]:
    """The same planes, once the job's certainty knows of them."""
    for plane in planes:
        if job.certainty is not None:
            tell_confidence(plane, job.model.labels, job.certainty, job.numbers)
        yield plane


def _averaged(context: PipelineContext, seen: Seen, job: ModelRun, room: Callable[[], None]) -> Iterator[Tensor]:
    """Scores of all folds, added and divided in half; those of earlier folds wait on disk."""
    folds = folds_of(job.bundle)
    earlier: WaitingScores | None = None
    for number, fold in enumerate(folds):
        engine = context.engine if fold.digest == context.engine.bundle.digest else context.engines(fold)
        if number == 0:
            passing = isinstance(seen, PassingVolume)
            check_scores(job.stack, job.bundle, seen.grids, engine, passing=passing, models=job.models)
        scores = _of_fold(context, seen, job, engine, (number, len(folds)), room)
        if earlier is not None:
            scores = (total.to(plane.device).add_(plane) for total, plane in zip(earlier, scores, strict=True))
        if number < len(folds) - 1:
            earlier = WaitingScores(scores)
        else:
            yield from (plane.div_(len(folds)) if len(folds) > 1 else plane for plane in scores)
        if engine is not context.engine:
            context.warnings.extend(engine.warnings)


def _of_fold(
    context: PipelineContext,
    seen: Seen,
    job: ModelRun,
    engine: Engine,
    place: tuple[int, int],
    room: Callable[[], None],
) -> Iterator[Tensor]:
    """place: the fold's number, and of how many. Raises InvalidBundle where scores are beyond half's numbers."""
    number, count = place

    def tick(done: int, windows: int) -> None:
        context.tell(Stage.INFER, number * windows + done, count * windows)

    shape = seen.grids.shape
    engine.begin_job(count_windows(shape, job.model), *at_a_time(engine, shape))
    planes = context.timed(Stage.PREPARE, seen.planes())
    placing = Placing(lambda: 1 if engine.device == CPU else engine.batch, engine.to_device, engine.room, room)
    scores = score_planes(planes, shape, job.model, engine, tick, placing)
    with engine.at_work():
        for plane in context.timed(Stage.INFER, scores):
            if not bool(torch.isfinite(plane).all()):
                why = "gives scores that half precision cannot hold, in which nnU-Net adds them up"
                raise InvalidBundle(job.bundle.name, engine.bundle.weights.name, why)
            yield plane
