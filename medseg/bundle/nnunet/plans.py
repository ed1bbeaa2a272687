"""plans.json: one configuration of it, both forms, inheritance resolved (nnU-Net's plans_handler.py)."""

from __future__ import annotations

import math
from typing import Any, Final

from medseg.bundle.nnunet.architecture import divides, network_of
from medseg.bundle.nnunet.dataset import Dataset
from medseg.bundle.nnunet.model import InputChannel, Method, NnUNet, Resampler, Scheme
from medseg.bundle.schema import Reader
from medseg.bundle.window import LARGEST_WINDOW

AS_STORED: Final = ("SimpleITKIO", "NibabelIO", "Tiff3DIO")
TO_RAS: Final = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
FLAT: Final = "NaturalImage2DIO"
INTENSITIES: Final = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
FINEST_MM: Final = 0.01
MOST_ORDER: Final = 5


def read_plans(plans: Reader, name: str, dataset: Dataset) -> tuple[NnUNet, dict[str, Any]]:
    """A configuration and its network, as a bundle's `network_def`. Raises InvalidBundle naming the key."""
    plan = configuration(plans, name)
    _only(plan, "preprocessor_name", "DefaultPreprocessor")
    _only(plans, "label_manager", "LabelManager")
    patch = plan.integers("patch_size", None)
    dims = len(patch)
    if dims not in (2, 3) or not all(size > 0 for size in patch) or math.prod(patch) > LARGEST_WINDOW:
        raise plan.wrong("patch_size", f"expected the sizes of a window along 2 or 3 axes, found {list(patch)}")
    previous = plan.maybe_text("previous_stage")
    if previous is not None and dims == 2:
        raise plan.wrong("previous_stage", "expected none for a network of slices")
    labels = dataset.labels
    more = len(labels.foreground) if previous else 0
    network = network_of(plan, dims, len(dataset.channels) + more, labels.heads)
    if not divides(network["strides"], patch):
        raise plan.wrong("patch_size", f"{list(patch)} is not divided by the strides {network['strides']}")
    reader = plans.text("image_reader_writer")
    if reader not in (*AS_STORED, *TO_RAS, FLAT):
        known = ", ".join((*AS_STORED, *TO_RAS, FLAT))
        raise plans.wrong(
            "image_reader_writer", f"{reader!r:.80} is not a reader that is known: expected one of {known}"
        )
    model = NnUNet(
        configuration=name,
        patch=patch,
        spacing_mm=_spacing(plan, dims),
        transpose=_transpose(plans),
        channels=_channels(plans, plan, dataset),
        image=_resampler(plan, "data", labels=False),
        scores=_resampler(plan, "probabilities", labels=False),
        labelmap=_resampler(plan, "seg", labels=True),
        labels=labels,
        previous_stage=previous,
        orientation="RAS" if reader in TO_RAS else None,
        reorients=reader in TO_RAS,
        flat=reader == FLAT,
    )
    return model, network


def configuration(plans: Reader, name: str) -> Reader:
    """What a configuration says, and those that it inherits from; nearer ones win. Raises InvalidBundle."""
    if "configurations" not in plans:
        raise plans.wrong("configurations", "missing: plans of nnU-Net version 1 are not read, train with version 2")
    known = Reader(plans.bundle, f"{plans.key}::configurations", plans.content["configurations"]).content
    merged: dict[str, Any] = {}
    line: list[str] = []
    following: str | None = name
    while following is not None:
        if following in line:
            raise plans.wrong(f"configurations::{name}", f"inherits from itself: {' -> '.join((*line, following))}")
        if following not in known:
            listed = ", ".join(map(str, known))
            raise plans.wrong("configurations", f"there is no {following!r:.80}; there are {listed:.200}")
        line.append(following)
        plan = Reader(plans.bundle, f"{plans.key}::configurations::{following}", known[following])
        following = plan.maybe_text("inherits_from")
        merged = dict(plan.content) | merged
    return Reader(plans.bundle, f"{plans.key}::configurations::{name}", merged)


def _only(given: Reader, key: str, known: str) -> None:
    named = given.maybe_text(key)
    if named not in (None, known):
        raise given.wrong(key, f"{named!r:.80} is not known: expected {known}")


def _spacing(plan: Reader, dims: int) -> tuple[float, ...]:
    value = plan.content.get("spacing")
    if not isinstance(value, list) or len(value) != dims or not all(_is_number(mm) and mm >= FINEST_MM for mm in value):
        raise plan.wrong("spacing", f"expected {dims} spacings in mm, as many as patch_size has, found {value!r:.80}")
    return tuple(map(float, value))


def _transpose(plans: Reader) -> tuple[int, int, int]:
    forward, backward = (plans.integers(f"transpose_{way}", 3) for way in ("forward", "backward"))
    if sorted(forward) != [0, 1, 2] or tuple(forward.index(axis) for axis in range(3)) != backward:
        why = f"expected an order of axes 0, 1, 2 and the way back, found {list(forward)} and {list(backward)}"
        raise plans.wrong("transpose_forward", why)
    return forward[0], forward[1], forward[2]


def _channels(plans: Reader, plan: Reader, dataset: Dataset) -> tuple[InputChannel, ...]:
    schemes, masked = plan.texts("normalization_schemes"), plan.content.get("use_mask_for_norm")
    count = len(dataset.channels)
    if len(schemes) != count:
        why = f"{len(schemes)} schemes, but {count} channels in dataset.json: these are not of one model"
        raise plan.wrong("normalization_schemes", why)
    if not isinstance(masked, list) or len(masked) != count or not all(isinstance(flag, bool) for flag in masked):
        raise plan.wrong(
            "use_mask_for_norm", f"expected true or false for each of {count} channels, found {masked!r:.80}"
        )
    return tuple(
        _channel(plans, plan, number, *row)
        for number, row in enumerate(zip(dataset.channels, schemes, masked, strict=True))
    )


def _channel(plans: Reader, plan: Reader, number: int, name: str, scheme: str, masked: bool) -> InputChannel:
    if scheme not in tuple(Scheme):
        why = f"{scheme!r:.80} is not a normalisation that is known: expected one of {', '.join(Scheme)}"
        raise plan.wrong(f"normalization_schemes::{number}", why)
    if scheme != Scheme.CT:
        return InputChannel(name, Scheme(scheme), masked)
    key = next((key for key in INTENSITIES if key in plans), INTENSITIES[0])
    given = Reader(plans.bundle, f"{plans.key}::{key}", plans.content.get(key)).reader(str(number))
    low, high = given.number("percentile_00_5"), given.number("percentile_99_5")
    mean, deviation = given.number("mean"), given.number("std")
    if low > high or deviation < 0:
        raise given.wrong("std", f"expected a range and a deviation, found {low} to {high} and {deviation}")
    return InputChannel(name, Scheme.CT, masked, low, high, mean, deviation)


def _resampler(plan: Reader, kind: str, *, labels: bool) -> Resampler:
    key = f"resampling_fn_{kind}"
    method = plan.text(key)
    if method not in tuple(Method):
        raise plan.wrong(key, f"{method!r:.80} is not a function that is known: expected one of {', '.join(Method)}")
    given = plan.reader(f"{key}_kwargs")
    if method == Method.NONE:
        return Resampler(Method.NONE)
    if given.flag("is_seg", False) is not labels:
        raise given.wrong("is_seg", f"expected {str(labels).lower()}")
    separate = given.content.get("force_separate_z", False if method == Method.SPLINE else None)
    if separate is not None and not isinstance(separate, bool):
        raise given.wrong("force_separate_z", f"expected true, false or null, found {separate!r:.80}")
    threshold = given.number("separate_z_anisotropy_threshold", 3.0)
    given.ignore("force_separate_z")
    if method == Method.TORCH:
        for name, usual in (("mode", "linear"), ("aniso_axis_mode", "nearest-exact")):
            if given.content.get(name, usual) != usual:
                raise given.wrong(name, f"expected {usual}, found {given.content[name]!r:.80}")
        given.ignore("mode", "aniso_axis_mode", "num_threads", "device", "memefficient_seg_resampling")
        given.done()
        return Resampler(Method.TORCH, 1, 0, separate, threshold)
    order, order_z = given.integer("order", 3), given.integer("order_z", 0)
    given.done()
    if not (0 <= order <= MOST_ORDER and 0 <= order_z <= MOST_ORDER):
        raise given.wrong("order", f"expected 0 to {MOST_ORDER}, found {order} and {order_z}")
    return Resampler(Method.SPLINE, order, order_z, separate, threshold)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
