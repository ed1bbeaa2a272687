"""Several models as one, whose probabilities are averaged: nnU-Net's ensembles of configurations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from medseg.bundle.bundle import Bundle
from medseg.bundle.nnunet.model import NnUNet
from medseg.bundle.nnunet.whole import EVENLY, why_whole
from medseg.errors import InvalidBundle


def average_of(bundle: str, models: Sequence[Bundle], cleanup: tuple[tuple[int, ...], ...], *, unread: bool) -> Bundle:
    """cleanup, unread: as of `NnUNet`, for the average; models have none of their own.

    Raises InvalidBundle where models do not say the same of the same images.
    """
    first, *others = (_model(model) for model in models)
    for model, other in zip(models[1:], others, strict=True):
        _check_alike(bundle, model, first, other)
    for model in models:
        if not _model(model).scores.by_planes:
            how = f"{_model(model).scores.method}, order {_model(model).scores.order}"
            why = f"{_place(model)} resamples scores as a whole ({how}): averages need planes of them"
            raise InvalidBundle(bundle, "average", why)
    made = replace(first, cleanup=cleanup, cleanup_unread=unread)
    fallbacks = [model.recipe.fallback for model in models if model.recipe.fallback != EVENLY]
    facts = "\n".join(["average", repr(made), *(model.digest for model in models)])
    return replace(
        models[0],
        digest=hashlib.sha256(facts.encode()).hexdigest(),
        recipe=replace(models[0].recipe, fallback=next(iter(fallbacks), None) or why_whole(made) or EVENLY),
        nnunet=made,
        previous=None,
        averaged=tuple(models),
    )


def _check_alike(bundle: str, model: Bundle, first: NnUNet, other: NnUNet) -> None:
    what = {
        "labels": (first.labels, other.labels),
        "channels": ([one.name for one in first.channels], [one.name for one in other.channels]),
        "axes": (_axes(first), _axes(other)),
    }
    different = [name for name, (one, its) in what.items() if one != its]
    if different:
        why = f"{_place(model)} has other {' and '.join(different)} than the first: their mean would say nothing"
        raise InvalidBundle(bundle, "average", why)
    if first.flat:
        raise InvalidBundle(bundle, "average", "models of pictures are not averaged: name the folder of one")


def _axes(model: NnUNet) -> tuple[object, ...]:
    return model.transpose, model.orientation, model.reorients, model.flat


def _model(bundle: Bundle) -> NnUNet:
    assert bundle.nnunet is not None
    return bundle.nnunet


def _place(bundle: Bundle) -> str:
    return bundle.weights.parent.parent.name
