"""A volume through nnU-Net's models: folds, stages of a cascade, parts that make one result.

prepare -> windows of each fold, averaged in half -> back to the volume -> clean up
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.bundle.nnunet.model import NnUNet
from medseg.bundle.recipe import Activation, Finish, Order
from medseg.dicom.series import Stack
from medseg.errors import InvalidBundle
from medseg.inference.context import PipelineContext
from medseg.inference.grids.restore import Certainty
from medseg.inference.nnunet.back import label_volume
from medseg.inference.nnunet.cleanup import cleaned
from medseg.inference.nnunet.confidence import tell_confidence
from medseg.inference.nnunet.need import check_scores
from medseg.inference.nnunet.prepare import Prepared, prepare
from medseg.inference.nnunet.resample import Array
from medseg.inference.nnunet.source import Source
from medseg.inference.nnunet.windows import window_scores
from medseg.progress import Stage

MOST: Final = 256  # labels of a result, the background among them
REGIONS: Final = Finish(Activation.SIGMOID, 0.5, Order.PROBABILITIES_FIRST, nearest=False)


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
    return folds_of(bundle.parts[0].bundle if bundle.parts else bundle)[0]


def label_source(context: PipelineContext, source: Source, certainty: Certainty) -> Array:
    """Labels (k, j, i) of the source's uniform grid. certainty: by label of the result."""
    if not context.bundle.parts:
        return _labels(context, source, context.bundle, certainty, np.arange(MOST, dtype=np.uint8))
    merged = np.zeros(source.voxels.shape[1:], np.uint8)
    for part in context.bundle.parts:
        numbers = np.zeros(MOST, np.uint8)
        numbers[list(part.numbers)] = list(part.numbers.values())
        labels = _labels(context, source, part.bundle, certainty, numbers)
        np.copyto(merged, labels, where=labels != 0)
    return merged


def _labels(
    context: PipelineContext, source: Source, bundle: Bundle, certainty: Certainty | None, numbers: Array
) -> Array:
    """Labels of one model, numbered anew. certainty: None for a cascade's first stage."""
    model = bundle.nnunet
    assert model is not None
    if context.settings.overlap is not None:
        model = replace(model, step=1 - context.settings.overlap)
    with context.clock.time(Stage.PREPARE):
        volume, spacing = source.volume(model), source.spacing_mm(model)
    earlier = None
    if bundle.previous is not None:
        before = _labels(context, source, bundle.previous, None, np.arange(MOST, dtype=np.uint8))
        earlier = source.seen(before, model)
    cases = [slice(None)] if not model.flat else [slice(n, n + 1) for n in range(volume.shape[1])]
    made = np.zeros(volume.shape[1:], np.uint8)
    for case in cases:
        with context.clock.time(Stage.PREPARE):
            prepared = prepare(volume[:, case], spacing, model, None if earlier is None else earlier[case])
        if case is cases[-1]:
            del volume
        scores = _averaged(context, source.stack, prepared, bundle, model)
        with context.clock.time(Stage.RESTORE):
            if certainty is not None:
                tell_confidence(scores, model.labels, certainty, numbers)
            axes = [model.transpose.index(axis) for axis in range(3)]
            made[case] = cleaned(label_volume(scores, prepared, model), model.cleanup).transpose(axes)
    return numbers[source.back(made, model)]


def _averaged(context: PipelineContext, stack: Stack, prepared: Prepared, bundle: Bundle, model: NnUNet) -> Tensor:
    """Scores of all folds, added and divided in half. Raises InvalidBundle where some are beyond half's numbers."""
    voxels = torch.from_numpy(prepared.voxels)
    folds = folds_of(bundle)
    total: Tensor | None = None
    for number, fold in enumerate(folds):
        engine = context.engine if fold.digest == context.engine.bundle.digest else context.engines(fold)
        if number == 0:
            check_scores(stack, bundle, prepared, engine)

        def tick(done: int, count: int, number: int = number) -> None:
            context.tell(Stage.INFER, number * count + done, len(folds) * count)

        with context.clock.time(Stage.INFER):
            scores = window_scores(voxels, model, engine, tick)
        if engine is not context.engine:
            context.warnings.extend(engine.warnings)
        if not bool(torch.isfinite(scores).all()):
            why = "gives scores that half precision cannot hold, in which nnU-Net adds them up"
            raise InvalidBundle(bundle.name, fold.weights.name, why)
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total.div_(len(folds)) if len(folds) > 1 else total
