"""The network that plans describe, as a bundle's `network_def`: classes by exact names, and nothing is looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from medseg.bundle.schema import Reader

_UNET: Final = "dynamic_network_architectures.architectures"
NETWORKS: Final[Mapping[str, str]] = {
    f"{_UNET}.unet.PlainConvUNet": "PlainConvUNet",
    f"{_UNET}.unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    f"{_UNET}.residual_unet.ResidualEncoderUNet": "ResidualEncoderUNet",
}
OLD: Final = ("PlainConvUNet", "ResidualEncoderUNet")  # `UNet_class_name`, before nnU-Net 2.4.2
BLOCKS: Final = ("dynamic_network_architectures.building_blocks.residual.BasicBlockD",)
SLOPE: Final = 0.01  # torch's default of LeakyReLU
MOST_STAGES: Final = 12
MOST_WIDTH: Final = 4096
MOST_BLOCKS: Final = 64
MOST_SIZE: Final = 16  # of a kernel or a stride


def _spellings(module: str, *names: str) -> dict[str, str]:
    return {f"{prefix}.{name}": name for name in names for prefix in ("torch.nn", f"torch.nn.modules.{module}")}


CLASSES: Final[Mapping[str, Mapping[str, str]]] = {
    "conv_op": _spellings("conv", "Conv2d", "Conv3d"),
    "norm_op": _spellings("instancenorm", "InstanceNorm2d", "InstanceNorm3d")
    | _spellings("batchnorm", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": _spellings("dropout", "Dropout2d", "Dropout3d"),
    "nonlin": _spellings("activation", "LeakyReLU", "ReLU"),
}


def network_of(plan: Reader, dims: int, in_channels: int, out_channels: int) -> dict[str, Any]:
    """`_target_` and arguments of the network of a configuration. Raises InvalidBundle naming the key."""
    if "architecture" not in plan:
        name, made = _old(plan, dims)
    else:
        name, made = _new(plan.reader("architecture"), dims)
    channels = {"spatial_dims": dims, "in_channels": in_channels, "out_channels": out_channels}
    return {"_target_": f"medseg.networks.{name}", **channels, **made}


def _new(given: Reader, dims: int) -> tuple[str, dict[str, Any]]:
    named = given.text("network_class_name")
    name = NETWORKS.get(named)
    if name is None:
        raise given.wrong(
            "network_class_name", f"{named!r:.200} is not a network that is known: expected {' or '.join(OLD)}"
        )
    imported = given.content.get("_kw_requires_import", [])
    if not isinstance(imported, list) or not set(map(str, imported)) <= {*CLASSES, "block"}:
        raise given.wrong("_kw_requires_import", f"expected some of {', '.join(CLASSES)}, found {imported!r:.200}")
    arguments = given.reader("arch_kwargs")
    stages = arguments.integer("n_stages")
    if not 2 <= stages <= MOST_STAGES:
        raise arguments.wrong("n_stages", f"expected 2 to {MOST_STAGES}, found {stages}")
    made = _stages(arguments, name, stages, dims) | _style(arguments, dims)
    _without_effect(arguments)
    arguments.done()
    return name, made


def _old(plan: Reader, dims: int) -> tuple[str, dict[str, Any]]:
    name = plan.text("UNet_class_name")
    if name not in OLD:
        raise plan.wrong(
            "UNet_class_name", f"{name!r:.200} is not a network that is known: expected {' or '.join(OLD)}"
        )
    depths = plan.integers("n_conv_per_stage_encoder", None)
    if not 2 <= len(depths) <= MOST_STAGES:
        raise plan.wrong("n_conv_per_stage_encoder", f"expected 2 to {MOST_STAGES} stages, found {len(depths)}")
    base, most = (
        _within(plan, key, plan.integer(key), MOST_WIDTH) for key in ("UNet_base_num_features", "unet_max_num_features")
    )
    numbers = {
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depths))],
        "kernel_sizes": plan.content.get("conv_kernel_sizes"),
        "strides": plan.content.get("pool_op_kernel_sizes"),
        "n_conv_per_stage" if name == OLD[0] else "n_blocks_per_stage": list(depths),
        "n_conv_per_stage_decoder": plan.content.get("n_conv_per_stage_decoder"),
    }
    return name, _stages(Reader(plan.bundle, plan.key, numbers), name, len(depths), dims)


def _stages(given: Reader, name: str, stages: int, dims: int) -> dict[str, Any]:
    """Widths, kernels, strides and depths, one for each stage."""
    made: dict[str, Any] = {
        "widths": _per_stage(given, "features_per_stage", stages, MOST_WIDTH),
        "kernels": _sizes(given, "kernel_sizes", stages, dims),
        "strides": _sizes(given, "strides", stages, dims),
        "convs_up": _per_stage(given, "n_conv_per_stage_decoder", stages - 1, MOST_BLOCKS),
    }
    if not all(size % 2 for kernel in made["kernels"] for size in kernel):
        raise given.wrong("kernel_sizes", f"expected odd sizes, found {made['kernels']}")
    if name == "PlainConvUNet":
        return made | {"convs": _per_stage(given, "n_conv_per_stage", stages, MOST_BLOCKS)}
    made["blocks"] = _per_stage(given, "n_blocks_per_stage", stages, MOST_BLOCKS)
    if "block" in given and given.text("block") not in BLOCKS:
        raise given.wrong("block", f"{given.content['block']!r:.200} is not known: expected BasicBlockD")
    given.ignore("block")
    if given.content.get("bottleneck_channels") is not None:
        raise given.wrong("bottleneck_channels", "blocks with a bottleneck are not known: expected BasicBlockD")
    given.ignore("bottleneck_channels")
    if "stem_channels" in given:
        made["stem"] = _within(given, "stem_channels", given.integer("stem_channels"), MOST_WIDTH)
    given.ignore("stem_channels")
    return made


def _style(given: Reader, dims: int) -> dict[str, Any]:
    """Normalisation, nonlinearity, dropout, biases."""
    convolution = _class(given, "conv_op", dims)
    if convolution is None:
        raise given.wrong("conv_op", "missing")
    style: dict[str, Any] = {"bias": given.flag("conv_bias", False), "nonlin_first": given.flag("nonlin_first", False)}
    norm, extra = _class(given, "norm_op", dims), _arguments(given, "norm_op_kwargs", "eps", "affine", "momentum")
    style["norm"] = None if norm is None else "instance" if norm.startswith("Instance") else "batch"
    style["eps"] = extra.number("eps", 1e-5)
    style["affine"] = extra.flag("affine", style["norm"] == "batch")
    if not 0 < style["eps"] < 1:
        raise extra.wrong("eps", f"expected more than 0 and less than 1, found {style['eps']}")
    nonlin, extra = _class(given, "nonlin", dims), _arguments(given, "nonlin_kwargs", "inplace", "negative_slope")
    slope = extra.number("negative_slope", SLOPE)
    style["slope"] = None if nonlin is None else 0.0 if nonlin == "ReLU" else slope
    dropout, extra = _class(given, "dropout_op", dims), _arguments(given, "dropout_op_kwargs", "p", "inplace")
    style["dropout"] = None if dropout is None else extra.number("p", 0.5)
    if style["dropout"] is not None and not 0 <= style["dropout"] <= 1:
        raise extra.wrong("p", f"expected a probability, found {style['dropout']}")
    return style


def _class(given: Reader, key: str, dims: int) -> str | None:
    """The last part of a class's name, from the table. Raises InvalidBundle for any other."""
    named = given.maybe_text(key)
    if named is None:
        return None
    name = CLASSES[key].get(named)
    if name is None or name.endswith(str(5 - dims) + "d"):
        known = sorted({cls for cls in CLASSES[key].values() if not cls.endswith(str(5 - dims) + "d")})
        raise given.wrong(
            key, f"{named!r:.200} is not a class that is known: expected {' or '.join(known)} of torch.nn"
        )
    return name


def _arguments(given: Reader, key: str, *known: str) -> Reader:
    extra = given.reader(key)
    for name in extra.content:
        if name not in known:
            raise extra.wrong(name, f"unknown argument; known are {', '.join(known)}")
    return extra


def _without_effect(given: Reader) -> None:
    """What changes nothing where the network only runs."""
    given.ignore("deep_supervision")
    for key, usual in (("stochastic_depth_p", 0.0), ("squeeze_excitation", False)):
        if given.content.get(key, usual) != usual:
            raise given.wrong(key, f"expected {usual}, found {given.content[key]!r:.80}: this is not built")
    given.ignore("stochastic_depth_p", "squeeze_excitation", "squeeze_excitation_reduction_ratio")


def _per_stage(given: Reader, key: str, count: int, most: int) -> list[int]:
    value = given.content.get(key)
    given.ignore(key)
    rows = [value] * count if type(value) is int else value
    if not isinstance(rows, list) or len(rows) != count or not all(type(number) is int for number in rows):
        raise given.wrong(key, f"expected {count} whole numbers, found {value!r:.80}")
    return [_within(given, key, number, most) for number in rows]


def _sizes(given: Reader, key: str, count: int, dims: int) -> list[list[int]]:
    value = given.content.get(key)
    given.ignore(key)
    rows = [value] * count if type(value) is int else value
    if not isinstance(rows, list) or len(rows) != count:
        raise given.wrong(key, f"expected {count} entries, one for each stage, found {value!r:.80}")
    sizes = [[row] * dims if type(row) is int else row for row in rows]
    for row in sizes:
        if not isinstance(row, list) or len(row) != dims or not all(type(size) is int for size in row):
            raise given.wrong(key, f"expected {dims} whole numbers for each stage, found {row!r:.80}")
    return [[_within(given, key, size, MOST_SIZE) for size in row] for row in sizes]


def _within(given: Reader, key: str, value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise given.wrong(key, f"expected 1 to {most}, found {value}")
    return value


def divides(strides: list[list[int]], patch: tuple[int, ...]) -> bool:
    """Whether all strides together divide a window, without which skips and what is upsampled do not meet."""
    total = [math.prod(column) for column in zip(*strides, strict=True)]
    return all(size % step == 0 for size, step in zip(patch, total, strict=True))
