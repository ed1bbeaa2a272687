"""A resolved MONAI configuration becomes a `Recipe`.

Steps known here run in the streaming engine. A step that a bundle may use but that is not known sets
`Recipe.fallback`, and the whole volume goes through MONAI's own transforms. What does not change the voxels of the
image or the prediction (loading, saving, channel order, copies, other keys such as "label") is left out.
Meanings and defaults are those of MONAI 1.6 (monai/transforms/*/dictionary.py, monai/inferers/inferer.py).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from medseg.bundle.expression import Dtype
from medseg.bundle.recipe import (
    Activation,
    Blend,
    Finish,
    Interpolation,
    Normalize,
    Order,
    Orient,
    Padding,
    Recipe,
    Resample,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    Step,
    Window,
)
from medseg.errors import InvalidBundle

logger = logging.getLogger(__name__)

Config: TypeAlias = Mapping[str, Any]

IMAGE: Final = "image"
PREDICTION: Final = "pred"
AXES: Final = ("RL", "AP", "SI")
DEFAULT_LABELS: Final = [["L", "R"], ["P", "A"], ["I", "S"]]
PAD_MODES: Final = ("constant", "reflect", "replicate", "circular")
LARGEST_WINDOW: Final = 2**28  # voxels, 1 GB in fp32
FINEST_MM: Final = 0.01
SLICE_STACKS: Final = "medseg.bundle.inferers.SliceStackInferer"
BY_SLICE: Final = ("SliceInferer", SLICE_STACKS)
MOST_SLICES: Final = 31
MISSING: Final = object()
# keep the voxels as they are, or only concern files, devices and containers
WITHOUT_EFFECT: Final = frozenset(
    {
        "LoadImaged",
        "SaveImaged",
        "EnsureChannelFirstd",
        "SelectItemsd",
        "DeleteItemsd",
        "CopyItemsd",
        "Identityd",
        "ToDeviced",
    }
)
OF_TYPE: Final = frozenset({"EnsureTyped", "ToTensord", "CastToTyped"})


class _UnknownError(Exception):
    """A step or setting that only MONAI's own transforms carry out."""


class _Arguments:
    """The arguments of one component, each read once with its kind and default; what is left over is an error."""

    def __init__(self, bundle: str, key: str, config: Config, channels: int = 1) -> None:
        self._bundle, self._key, self.channels = bundle, key, channels
        self._values = {name: value for name, value in config.items() if name != "_target_"}
        self.name: str = config["_target_"]

    def wrong(self, name: str, why: str) -> InvalidBundle:
        return InvalidBundle(self._bundle, f"{self._key}::{name}", why)

    def value(self, name: str, default: Any = MISSING) -> Any:
        found = self._values.pop(name, default)
        if found is MISSING:
            raise self.wrong(name, f"{self.name} needs it")
        return found

    def number(self, name: str, default: Any = MISSING) -> float:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"expected a number, found {value!r}")
        return float(value)

    def maybe_number(self, name: str, default: Any = None) -> float | None:
        value = self.value(name, default)
        self._values[name] = value
        if value is None:
            del self._values[name]
            return None
        return self.number(name)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.value(name, default)
        if isinstance(value, list | tuple) and len(value) == 1:  # one per key
            value = value[0]
        if not isinstance(value, bool):
            raise self.wrong(name, f"expected true or false, found {value!r}")
        return value

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        value = self.value(name, default)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str) or value.lower() not in allowed:
            raise self.wrong(name, f"expected one of {', '.join(allowed)}, found {value!r}")
        return value.lower()

    def numbers(self, name: str, count: int, default: Any = MISSING) -> tuple[float, ...]:
        """`count` numbers from one number or a sequence of them."""
        value = self.value(name, default)
        items = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(items) != count or not all(_is_number(item) for item in items):
            raise self.wrong(name, f"expected a number or {count} of them, found {value!r}")
        return tuple(float(item) for item in items)

    def whole(self, name: str, default: Any = MISSING) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise self.wrong(name, f"expected a whole number, found {value}")
        return int(value)

    def ignore(self, *names: str) -> None:
        for name in names:
            self._values.pop(name, None)

    def expect(self, **defaults: Any) -> None:
        """Settings the engine does not have: anything but these values goes through MONAI."""
        for name, default in defaults.items():
            found = self.value(name, default)
            if found != default:
                raise _UnknownError(f"{self.name} with {name}={found!r}")

    def float32(self, name: str = "dtype") -> None:
        found = self.value(name, None)
        if found not in (None, Dtype("float32"), "float32"):
            raise _UnknownError(f"{self.name} to {found.name if isinstance(found, Dtype) else found!r}")

    def done(self) -> None:
        if self._values:
            name = next(iter(self._values))
            raise self.wrong(name, f"{self.name} has no such argument")


def recipe_from_config(
    bundle: str,
    *,
    preprocessing: Config,
    inferer: Config,
    postprocessing: Config,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
) -> tuple[Recipe, tuple[int, ...]]:
    """The recipe of resolved `preprocessing`, `inferer` and `postprocessing`, and the labels whose largest piece the
    chain keeps after the return to the source grid. Raises InvalidBundle.
    """
    window = window_from_config(bundle, inferer, spatial_dims)
    if in_channels % window.slices:
        why = f"expected a multiple of the inferer's {window.slices} slices, found {in_channels}"
        raise InvalidBundle(bundle, "network_def::in_channels", why)
    steps, unknown_before = _steps(bundle, preprocessing, in_channels // window.slices)
    finish, keep_after, unknown_after = _finish(bundle, postprocessing, out_channels)
    unknown = (*unknown_before, *unknown_after)
    reason = f"MONAI's own transforms are needed for {', '.join(unknown)}" if unknown else None
    return Recipe(steps, window, finish, reason), keep_after


def chain(bundle: str, key: str, config: Config) -> Iterator[tuple[str, Config]]:
    """The transforms of a `Compose`, nested ones in their place, each with its key."""
    if config["_target_"] != "Compose":
        yield key, config
        return
    transforms = config.get("transforms") or ()
    for i, transform in enumerate(transforms if isinstance(transforms, list | tuple) else [transforms]):
        here = f"{key}::transforms::{i}"
        if not isinstance(transform, Mapping) or "_target_" not in transform:
            raise InvalidBundle(bundle, here, f"expected a transform with _target_, found {type(transform).__name__}")
        yield from chain(bundle, here, transform)


def keys_of(bundle: str, key: str, config: Config) -> tuple[str, ...]:
    """The entries of the data dictionary that a transform changes."""
    keys = config.get("keys", ())
    keys = (keys,) if isinstance(keys, str) else keys
    if not isinstance(keys, list | tuple) or not all(isinstance(name, str) for name in keys):
        raise InvalidBundle(bundle, f"{key}::keys", f"expected names, found {keys!r}")
    return tuple(keys)


def _steps(bundle: str, config: Config, channels: int) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    steps: list[Step] = []
    unknown: list[str] = ["resampling in one go (lazy)"] if config.get("lazy") else []
    for key, transform in chain(bundle, "preprocessing", config):
        name, keys = transform["_target_"], keys_of(bundle, key, transform)
        if name in WITHOUT_EFFECT or IMAGE not in keys:
            continue
        arguments = _Arguments(bundle, key, _for_key(transform, keys, IMAGE), channels)
        arguments.ignore("keys", "allow_missing_keys")
        try:
            if name in OF_TYPE:
                arguments.float32()
                continue
            if name not in PREPARING:
                raise _UnknownError(name)
            step = PREPARING[name](arguments)
            arguments.done()
        except _UnknownError as reason:
            unknown.append(str(reason))
        else:
            steps.extend([step] if step else [])
    return tuple(steps), tuple(unknown)


def _for_key(transform: Config, keys: tuple[str, ...], wanted: str) -> dict[str, Any]:
    """The transform's arguments for one of its keys, where MONAI takes a list with one entry per key."""
    place = keys.index(wanted)
    per_key = ("mode", "padding_mode", "align_corners", "dtype", "scale_extent")
    return {
        name: value[place] if name in per_key and isinstance(value, list | tuple) and len(value) == len(keys) else value
        for name, value in transform.items()
    }


def _orient(arguments: _Arguments) -> Step:
    if arguments.value("labels", None) not in (None, DEFAULT_LABELS):
        raise _UnknownError("Orientationd with labels of its own")
    arguments.expect(lazy=False)
    axcodes = arguments.value("axcodes", None)
    if arguments.flag("as_closest_canonical"):
        axcodes = "RAS"
    orders = itertools.permutations(AXES)
    if not isinstance(axcodes, str) or not any(
        len(axcodes) == 3 and all(code in pair for code, pair in zip(axcodes, order, strict=True)) for order in orders
    ):
        raise arguments.wrong("axcodes", f"expected three letters such as RAS, found {axcodes!r}")
    return Orient(axcodes)


def _resample(arguments: _Arguments) -> Step:
    arguments.ignore("ensure_same_shape")
    arguments.expect(diagonal=False, recompute_affine=False, min_pixdim=None, max_pixdim=None, lazy=False)
    dtype = arguments.value("dtype", None)
    if dtype not in (None, Dtype("float64"), Dtype("float32"), "float64", "float32"):
        raise _UnknownError(f"Spacingd computing in {dtype!r}")
    pixdim = arguments.value("pixdim")
    given = list(pixdim) if isinstance(pixdim, list | tuple) else [pixdim]
    if not given or not all(_is_number(item) and not 0 < item < FINEST_MM for item in given):
        raise arguments.wrong("pixdim", f"expected spacings in mm, found {pixdim!r}")
    spacing = [*given, *[given[-1]] * 3][:3]  # as MONAI, the last one stands for those missing
    mode, padding = arguments.value("mode", "bilinear"), arguments.value("padding_mode", "border")
    if mode not in tuple(Interpolation) or padding not in tuple(Padding):
        raise _UnknownError(f"Spacingd with mode={mode!r}, padding_mode={padding!r}")
    return Resample(
        tuple(float(item) for item in spacing),
        Interpolation(mode),
        Padding(padding),
        arguments.flag("align_corners"),
        arguments.flag("scale_extent"),
    )


def _scale_range(arguments: _Arguments) -> Step:
    arguments.float32()
    step = ScaleRange(
        arguments.number("a_min"),
        arguments.number("a_max"),
        arguments.maybe_number("b_min"),
        arguments.maybe_number("b_max"),
        arguments.flag("clip"),
    )
    if step.a_min == step.a_max:
        raise arguments.wrong("a_max", f"equal to a_min, {step.a_min}")
    if (step.b_min is None) != (step.b_max is None) or (step.clip and step.b_min is None):
        raise _UnknownError("ScaleIntensityRanged with only one end, or clipping to none")
    return step


def _scale_percentiles(arguments: _Arguments) -> Step:
    arguments.float32()
    _one_channel(arguments)
    step = ScalePercentiles(
        arguments.number("lower"),
        arguments.number("upper"),
        arguments.maybe_number("b_min", MISSING),
        arguments.maybe_number("b_max", MISSING),
        arguments.flag("clip"),
        arguments.flag("relative"),
    )
    for name, percentile in (("lower", step.lower), ("upper", step.upper)):
        if not 0 <= percentile <= 100:
            raise arguments.wrong(name, f"expected a percentile from 0 to 100, found {percentile}")
    if (step.b_min is None) != (step.b_max is None) or (step.b_min is None and (step.clip or step.relative)):
        raise _UnknownError("ScaleIntensityRangePercentilesd with only one end, or clipping to none")
    return step


def _scale_min_max(arguments: _Arguments) -> Step | None:
    arguments.float32()
    _one_channel(arguments)
    minv, maxv = arguments.maybe_number("minv", 0.0), arguments.maybe_number("maxv", 1.0)
    factor = arguments.maybe_number("factor")
    if (minv is None) != (maxv is None):
        raise _UnknownError("ScaleIntensityd with only one end")
    if minv is None:
        return ScaleMinMax(None, None, factor) if factor is not None else None
    return ScaleMinMax(minv, maxv, None)


def _normalize(arguments: _Arguments) -> Step:
    arguments.float32()
    _one_channel(arguments)
    numbers: list[float | None] = []
    for name in ("subtrahend", "divisor"):
        value = arguments.value(name, None)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if value is not None and not _is_number(value):
            raise _UnknownError(f"NormalizeIntensityd with {name}={value!r}")
        numbers.append(None if value is None else float(value))
    subtrahend, divisor = numbers
    return Normalize(subtrahend, divisor, arguments.flag("nonzero"))


def _one_channel(arguments: _Arguments) -> None:
    if arguments.flag("channel_wise") and arguments.channels > 1:
        raise _UnknownError(f"{arguments.name} channel by channel")


PREPARING: Final[Mapping[str, Callable[[_Arguments], Step | None]]] = {
    "Orientationd": _orient,
    "Spacingd": _resample,
    "ScaleIntensityRanged": _scale_range,
    "ScaleIntensityRangePercentilesd": _scale_percentiles,
    "ScaleIntensityd": _scale_min_max,
    "NormalizeIntensityd": _normalize,
}


def window_from_config(bundle: str, config: Config, spatial_dims: int) -> Window:
    """The sliding window of a resolved inferer. Raises InvalidBundle."""
    arguments = _Arguments(bundle, "inferer", config)
    name = config["_target_"]
    if name == "SimpleInferer":
        return Window((-1,) * spatial_dims, (0.0,) * spatial_dims)
    by_slice = name in BY_SLICE
    axis = arguments.whole("spatial_dim", 0) if by_slice else 2
    slices = arguments.whole("slices") if name == SLICE_STACKS else 1
    if slices < 1 or slices % 2 == 0 or slices > MOST_SLICES:
        raise arguments.wrong("slices", f"expected an odd number up to {MOST_SLICES}, found {slices}")
    given = arguments.value("roi_size")
    roi = tuple(given) if isinstance(given, list | tuple) else (given,) * spatial_dims
    if by_slice and len(roi) != 2:
        raise arguments.wrong("roi_size", f"{arguments.name} takes two sizes, found {given!r}")
    if len(roi) != spatial_dims or not all(isinstance(size, int) and not isinstance(size, bool) for size in roi):
        raise arguments.wrong("roi_size", f"expected {spatial_dims} whole numbers for this network, found {given!r}")
    if math.prod(size for size in roi if size > 0) > LARGEST_WINDOW:
        raise arguments.wrong("roi_size", f"a window of {given!r} voxels")
    overlap = arguments.numbers("overlap", spatial_dims, 0.25)
    if not all(0 <= part < 1 for part in overlap):
        raise arguments.wrong("overlap", f"expected fractions from 0 to below 1, found {overlap!r}")
    sigma = arguments.numbers("sigma_scale", spatial_dims, 0.125)
    if len(set(sigma)) > 1 or sigma[0] <= 0:
        raise arguments.wrong("sigma_scale", f"expected one positive number for all axes, found {sigma!r}")
    batch = arguments.whole("sw_batch_size", 1)
    if not 1 <= batch <= 1024:
        raise arguments.wrong("sw_batch_size", f"expected 1 to 1024, found {batch}")
    if axis not in (0, 1, 2):
        raise arguments.wrong("spatial_dim", f"expected 0, 1 or 2, found {axis}")
    if arguments.flag("with_coord"):
        raise arguments.wrong("with_coord", "networks that take window coordinates are not supported")
    window = Window(
        roi,
        overlap,
        Blend(arguments.choice("mode", "constant", tuple(Blend))),
        sigma[0],
        arguments.choice("padding_mode", "constant", PAD_MODES),
        arguments.number("cval", 0.0),
        batch,
        axis,
        slices,
    )
    # where and how MONAI computes, not what
    arguments.ignore("device", "sw_device", "progress", "cache_roi_weight_map", "cpu_thresh")
    arguments.ignore("buffer_steps", "buffer_dim")
    arguments.done()
    return window


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


def _finish(bundle: str, config: Config, out_channels: int) -> tuple[Finish, tuple[int, ...], tuple[str, ...]]:
    state = _Chain(out_channels)
    for key, transform in chain(bundle, "postprocessing", config):
        name, keys = transform["_target_"], keys_of(bundle, key, transform)
        if name in WITHOUT_EFFECT or PREDICTION not in keys:
            continue
        arguments = _Arguments(bundle, key, _for_key(transform, keys, PREDICTION))
        arguments.ignore("keys", "allow_missing_keys")
        try:
            if name in OF_TYPE:
                continue
            if name not in FINISHING:
                raise _UnknownError(name)
            state = FINISHING[name](arguments, state)
            arguments.done()
        except _UnknownError as reason:
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


def _activate(arguments: _Arguments, state: _Chain) -> _Chain:
    arguments.expect(other=None, dim=0)
    softmax, sigmoid = arguments.flag("softmax"), arguments.flag("sigmoid")
    if softmax and sigmoid:
        raise arguments.wrong("softmax", "softmax and sigmoid exclude each other")
    if not softmax and not sigmoid:
        return state
    if state.discrete or state.inverted or state.activation is not Activation.NONE:
        raise _UnknownError("an activation after another step")
    return replace(state, activation=Activation.SOFTMAX if softmax else Activation.SIGMOID)


def _discretise(arguments: _Arguments, state: _Chain) -> _Chain:
    arguments.ignore("dtype")
    arguments.expect(to_onehot=None, rounding=None, dim=0, keepdim=True)
    argmax = arguments.flag("argmax")
    threshold = arguments.maybe_number("threshold")
    if argmax and state.out_channels == 1:
        raise arguments.wrong("argmax", "the network has one output channel: a threshold is needed")
    if state.discrete or argmax == (threshold is not None):
        raise _UnknownError("AsDiscreted that is not one argmax or one threshold")
    order = state.order if state.inverted else Order.LABELS_FIRST
    return replace(state, discrete=True, threshold=threshold, order=order)


def _invert(arguments: _Arguments, state: _Chain) -> _Chain:
    arguments.ignore("meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device", "orig_keys")
    arguments.expect(post_func=None)
    arguments.value("transform")
    if state.inverted:
        raise _UnknownError("a second Invertd")
    return replace(state, inverted=True, nearest=arguments.flag("nearest_interp", True))


def _keep_largest(arguments: _Arguments, state: _Chain) -> _Chain:
    arguments.expect(independent=True, num_components=1)
    if arguments.value("is_onehot", None) or arguments.value("connectivity", None) not in (None, 3):
        raise _UnknownError("KeepLargestConnectedComponentd with is_onehot or its own connectivity")
    if not state.discrete or state.threshold is not None:
        raise _UnknownError("KeepLargestConnectedComponentd of several channels")
    labels = arguments.value("applied_labels", None)
    labels = list(range(1, state.out_channels)) if labels is None else labels
    chosen = tuple(labels) if isinstance(labels, list | tuple) else (labels,)
    if not all(isinstance(label, int) and 0 < label < state.out_channels for label in chosen):
        raise arguments.wrong("applied_labels", f"expected labels from 1 to {state.out_channels - 1}, found {labels!r}")
    if state.inverted:
        return replace(state, keep_after=chosen)
    return replace(state, keep_largest=chosen)


FINISHING: Final[Mapping[str, Callable[[_Arguments, _Chain], _Chain]]] = {
    "Activationsd": _activate,
    "AsDiscreted": _discretise,
    "Invertd": _invert,
    "KeepLargestConnectedComponentd": _keep_largest,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
