"""A bundle's inferer becomes a `Window`; meanings and defaults are MONAI's (monai/inferers/inferer.py)."""

from __future__ import annotations

import math
from typing import Final

from medseg.bundle.arguments import Arguments, Config
from medseg.bundle.recipe import Blend, Window

PAD_MODES: Final = ("constant", "reflect", "replicate", "circular")
LARGEST_WINDOW: Final = 2**28  # voxels, 1 GB in fp32
SLICE_STACKS: Final = "medseg.bundle.inferers.SliceStackInferer"
BY_SLICE: Final = ("SliceInferer", SLICE_STACKS)
MOST_SLICES: Final = 31


def window_from_config(bundle: str, config: Config, spatial_dims: int) -> Window:
    """The sliding window of a resolved inferer. Raises InvalidBundle."""
    arguments = Arguments(bundle, "inferer", config)
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
