"""A bundle's preprocessing becomes the steps of a `Recipe`, as MONAI means them (monai/transforms/*/dictionary.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from medseg.allowed import is_number
from medseg.bundle.arguments import (
    OF_TYPE,
    WITHOUT_EFFECT,
    Arguments,
    Config,
    UnknownStep,
    for_key,
    keys_of,
)
from medseg.bundle.expression import Dtype
from medseg.bundle.joining import Transforms, parted, side_by_side
from medseg.bundle.recipe import (
    ChannelWise,
    Intensity,
    Interpolation,
    Normalize,
    Orient,
    Padding,
    Pointwise,
    Resample,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    Step,
)
from medseg.bundle.schema import ABSENT

IMAGE: Final = "image"
AXES: Final = ("RL", "AP", "SI")
DEFAULT_LABELS: Final = [["L", "R"], ["P", "A"], ["I", "S"]]
FINEST_MM: Final = 0.01


@dataclass(frozen=True)
class Preparing:
    """steps: of a recipe. unknown: what MONAI's own transforms are needed for. keys: of images that are joined."""

    steps: tuple[Step, ...]
    unknown: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def steps_from_config(bundle: str, config: Config, channels: int) -> Preparing:
    """Raises InvalidBundle."""
    keys, before, after = parted(bundle, config, IMAGE, channels)
    unknown = ["resampling in one go (lazy)"] if config.get("lazy") else []
    steps: tuple[Step, ...] | None = ()
    if keys:
        each = [_steps(bundle, before, key, 1) for key in keys]
        unknown += dict.fromkeys(why for one in each for why in one.unknown)
        steps = side_by_side([one.steps for one in each])
    if steps is None:
        unknown.append(f"images that are brought to different grids ({', '.join(keys)})")
    joined = _steps(bundle, after, IMAGE, channels)
    return Preparing((*(steps or ()), *joined.steps), (*unknown, *joined.unknown), keys)


def _steps(bundle: str, transforms: Transforms, image: str, channels: int) -> Preparing:
    """What transforms do to one key."""
    steps: list[Step] = []
    unknown: list[str] = []
    for key, transform in transforms:
        name, keys = transform["_target_"], keys_of(bundle, key, transform)
        if name in WITHOUT_EFFECT or image not in keys:
            continue
        arguments = Arguments(bundle, key, for_key(transform, keys, image), channels)
        arguments.ignore("keys", "allow_missing_keys")
        try:
            if name in OF_TYPE:
                arguments.float32()
                continue
            if name not in PREPARING:
                raise UnknownStep(name)
            step = PREPARING[name](arguments)
            arguments.done()
        except UnknownStep as reason:
            unknown.append(str(reason))
        else:
            steps.extend([step] if step else [])
    return Preparing(tuple(steps), tuple(unknown))


def is_orientation(axcodes: str) -> bool:
    """Whether these are letters for three anatomical axes, such as RAS."""
    orders = itertools.permutations(AXES)
    return len(axcodes) == 3 and any(
        all(code in pair for code, pair in zip(axcodes, order, strict=True)) for order in orders
    )


def _orient(arguments: Arguments) -> Step:
    if arguments.value("labels", None) not in (None, DEFAULT_LABELS):
        raise UnknownStep("Orientationd with labels of its own")
    arguments.expect(lazy=False)
    axcodes = arguments.value("axcodes", None)
    if arguments.flag("as_closest_canonical"):
        axcodes = "RAS"
    if not isinstance(axcodes, str) or not is_orientation(axcodes):
        raise arguments.wrong("axcodes", f"expected three letters such as RAS, found {axcodes!r}")
    return Orient(axcodes)


def _resample(arguments: Arguments) -> Step:
    arguments.ignore("ensure_same_shape")
    arguments.expect(diagonal=False, recompute_affine=False, min_pixdim=None, max_pixdim=None, lazy=False)
    dtype = arguments.value("dtype", None)
    if dtype not in (None, Dtype("float64"), Dtype("float32"), "float64", "float32"):
        raise UnknownStep(f"Spacingd computing in {dtype!r}")
    pixdim = arguments.value("pixdim")
    given = list(pixdim) if isinstance(pixdim, list | tuple) else [pixdim]
    if not given or not all(is_number(item) and not 0 < item < FINEST_MM for item in given):
        raise arguments.wrong("pixdim", f"expected spacings in mm, found {pixdim!r}")
    spacing = [*given, *[given[-1]] * 3][:3]  # as MONAI, the last one stands for those missing
    mode, padding = arguments.value("mode", "bilinear"), arguments.value("padding_mode", "border")
    if mode not in tuple(Interpolation) or padding not in tuple(Padding):
        raise UnknownStep(f"Spacingd with mode={mode!r}, padding_mode={padding!r}")
    return Resample(
        tuple(float(item) for item in spacing),
        Interpolation(mode),
        Padding(padding),
        arguments.flag("align_corners"),
        arguments.flag("scale_extent"),
    )


def _scale_range(arguments: Arguments) -> Step:
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
        raise UnknownStep("ScaleIntensityRanged with only one end, or clipping to none")
    return step


def _scale_percentiles(arguments: Arguments) -> Step:
    arguments.float32()
    step = ScalePercentiles(
        arguments.number("lower"),
        arguments.number("upper"),
        arguments.maybe_number("b_min", ABSENT),
        arguments.maybe_number("b_max", ABSENT),
        arguments.flag("clip"),
        arguments.flag("relative"),
    )
    for name, percentile in (("lower", step.lower), ("upper", step.upper)):
        if not 0 <= percentile <= 100:
            raise arguments.wrong(name, f"expected a percentile from 0 to 100, found {percentile}")
    if (step.b_min is None) != (step.b_max is None) or (step.b_min is None and (step.clip or step.relative)):
        raise UnknownStep("ScaleIntensityRangePercentilesd with only one end, or clipping to none")
    return _of_channels(arguments, step)


def _scale_min_max(arguments: Arguments) -> Step | None:
    arguments.float32()
    minv, maxv = arguments.maybe_number("minv", 0.0), arguments.maybe_number("maxv", 1.0)
    factor = arguments.maybe_number("factor")
    if (minv is None) != (maxv is None):
        raise UnknownStep("ScaleIntensityd with only one end")
    if minv is None:
        return ScaleMinMax(None, None, factor) if factor is not None else None
    return _of_channels(arguments, ScaleMinMax(minv, maxv, None))


def _normalize(arguments: Arguments) -> Step:
    arguments.float32()
    nonzero, own = arguments.flag("nonzero"), arguments.flag("channel_wise")
    subtrahends, divisors = (_of_each(arguments, name, own) for name in ("subtrahend", "divisor"))
    steps = [Normalize(*numbers, nonzero) for numbers in zip(subtrahends, divisors, strict=True)]
    return ChannelWise(tuple(steps)) if own and arguments.channels > 1 else steps[0]


def _of_each(arguments: Arguments, name: str, own: bool) -> list[float | None]:
    """An argument of NormalizeIntensityd for every channel: one for each where they are scaled on their own."""
    value = arguments.value(name, None)
    values = list(value) if isinstance(value, list | tuple) else [value]
    wanted = arguments.channels if own and value is not None else 1
    if len(values) != wanted or not all(one is None or is_number(one) for one in values):
        raise UnknownStep(f"NormalizeIntensityd with {name}={value!r}")
    numbers = [None if one is None else float(one) for one in values]
    return numbers if wanted > 1 else numbers * arguments.channels


def _of_channels(arguments: Arguments, step: Pointwise) -> Intensity:
    """The step with the statistics of all channels together, or of each one."""
    if arguments.flag("channel_wise") and arguments.channels > 1:
        return ChannelWise((step,) * arguments.channels)
    return step


PREPARING: Final[Mapping[str, Callable[[Arguments], Step | None]]] = {
    "Orientationd": _orient,
    "Spacingd": _resample,
    "ScaleIntensityRanged": _scale_range,
    "ScaleIntensityRangePercentilesd": _scale_percentiles,
    "ScaleIntensityd": _scale_min_max,
    "NormalizeIntensityd": _normalize,
}
