"""A bundle's postprocessing becomes a `Finish`: activation, return to the source's grid, labels, in its order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from medseg.bundle.arguments import OF_TYPE, WITHOUT_EFFECT, Arguments, Config, UnknownStep, chain, for_key, keys_of
from medseg.bundle.recipe import Activation, Finish, Order

logger = logging.getLogger(__name__)
PREDICTION: Final = "pred"


@dataclass(frozen=True)
class _Chain:
    """What the postprocessing chain has done so far."""

    out_channels: int
    activation: Activation = Activation.NONE
    discrete: bool = False
    threshold: float | None = None
    inverted: bool = False
    order: Order = Order.PROBABILITIES_FIRST
    nearest: bool = False
    keep_largest: tuple[int, ...] = ()
    keep_after: tuple[int, ...] = ()
    unknown: tuple[str, ...] = field(default=())


def finish_from_config(
    bundle: str, config: Config, out_channels: int
) -> tuple[Finish, tuple[int, ...], tuple[str, ...]]:
    state = _Chain(out_channels)
    for key, transform in chain(bundle, "postprocessing", config):
        name, keys = transform["_target_"], keys_of(bundle, key, transform)
        if name in WITHOUT_EFFECT or PREDICTION not in keys:
            continue
        arguments = Arguments(bundle, key, for_key(transform, keys, PREDICTION))
        arguments.ignore("keys", "allow_missing_keys")
        try:
            if name in OF_TYPE:
                continue
            if name not in FINISHING:
                raise UnknownStep(name)
            state = FINISHING[name](arguments, state)
            arguments.done()
        except UnknownStep as reason:
            state = replace(state, unknown=(*state.unknown, str(reason)))
    if not state.discrete:
        overlapping = state.activation is Activation.SIGMOID or out_channels == 1
        state = replace(state, threshold=0.5 if overlapping else None)
        if overlapping and state.activation is Activation.NONE:
            state = replace(state, activation=Activation.SIGMOID)
    if not state.inverted:  # ours always returns to the source grid
        first = Order.LABELS_FIRST if state.keep_largest else Order.PROBABILITIES_FIRST
        state = replace(state, order=first, nearest=bool(state.keep_largest))
    if state.order is Order.LABELS_FIRST and not state.nearest:
        # A label number between two others is not between them in meaning: 0 beside 2 would give a rim of 1.
        logger.warning("bundle %s interpolates label numbers (Invertd nearest_interp false); nearest is used", bundle)
        state = replace(state, nearest=True)
    finish = Finish(state.activation, state.threshold, state.order, state.nearest, state.keep_largest)
    return finish, state.keep_after, state.unknown


def _activate(arguments: Arguments, state: _Chain) -> _Chain:
    arguments.expect(other=None, dim=0)
    softmax, sigmoid = arguments.flag("softmax"), arguments.flag("sigmoid")
    if softmax and sigmoid:
        raise arguments.wrong("softmax", "softmax and sigmoid exclude each other")
    if not softmax and not sigmoid:
        return state
    if state.discrete or state.inverted or state.activation is not Activation.NONE:
        raise UnknownStep("an activation after another step")
    return replace(state, activation=Activation.SOFTMAX if softmax else Activation.SIGMOID)


def _discretise(arguments: Arguments, state: _Chain) -> _Chain:
    arguments.ignore("dtype")
    arguments.expect(to_onehot=None, rounding=None, dim=0, keepdim=True)
    argmax = arguments.flag("argmax")
    threshold = arguments.maybe_number("threshold")
    if argmax and state.out_channels == 1:
        raise arguments.wrong("argmax", "the network has one output channel: a threshold is needed")
    if state.discrete or argmax == (threshold is not None):
        raise UnknownStep("AsDiscreted that is not one argmax or one threshold")
    order = state.order if state.inverted else Order.LABELS_FIRST
    return replace(state, discrete=True, threshold=threshold, order=order)


def _invert(arguments: Arguments, state: _Chain) -> _Chain:
    arguments.ignore("meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device", "orig_keys")
    arguments.expect(post_func=None)
    arguments.value("transform")
    if state.inverted:
        raise UnknownStep("a second Invertd")
    return replace(state, inverted=True, nearest=arguments.flag("nearest_interp", True))


def _keep_largest(arguments: Arguments, state: _Chain) -> _Chain:
    arguments.expect(independent=True, num_components=1)
    if arguments.value("is_onehot", None) or arguments.value("connectivity", None) not in (None, 3):
        raise UnknownStep("KeepLargestConnectedComponentd with is_onehot or its own connectivity")
    if not state.discrete or state.threshold is not None:
        raise UnknownStep("KeepLargestConnectedComponentd of several channels")
    labels = arguments.value("applied_labels", None)
    labels = list(range(1, state.out_channels)) if labels is None else labels
    chosen = tuple(labels) if isinstance(labels, list | tuple) else (labels,)
    if not all(isinstance(label, int) and 0 < label < state.out_channels for label in chosen):
        raise arguments.wrong("applied_labels", f"expected labels from 1 to {state.out_channels - 1}, found {labels!r}")
    if state.inverted:
        return replace(state, keep_after=chosen)
    return replace(state, keep_largest=chosen)


FINISHING: Final[Mapping[str, Callable[[Arguments, _Chain], _Chain]]] = {
    "Activationsd": _activate,
    "AsDiscreted": _discretise,
    "Invertd": _invert,
    "KeepLargestConnectedComponentd": _keep_largest,
}
