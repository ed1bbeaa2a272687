"""How much memory nnU-Net's way takes, told before its large arrays are made.

a whole volume  the source, the reader's copy, one channel in double twice, the same on the plans' grid
passing planes  a few of them, and what splines between them are made of: not more for more slices
scores          heads x as many planes of the plans' grid as a window is deep, in half; one window and its network
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from medseg.bundle.bundle import Bundle
from medseg.bundle.nnunet.model import NnUNet
from medseg.dicom.series import Stack
from medseg.errors import OutOfMemory
from medseg.inference import memory
from medseg.inference.arriving.decoding import AHEAD
from medseg.inference.engines import gpu
from medseg.inference.engines.device import CPU
from medseg.inference.engines.engine import Engine
from medseg.inference.engines.held import held_by
from medseg.inference.nnunet.prepare import Grids
from medseg.inference.nnunet.resample import target_shape
from medseg.inference.nnunet.windows import extent

_DOUBLE, _SINGLE, _HALF = 8, 4, 2  # bytes
_SOURCE_PLANES: Final = 3 * AHEAD  # of slices that are being brought to the plans' rows and columns
_SPLINE_PLANES: Final = 100  # of coefficients and of what they are made of (`along`)


def check_volume(stack: Stack, bundle: Bundle) -> None:
    """Raise OutOfMemory where a volume cannot be prepared. Its crop is not known yet."""
    model = bundle.nnunet
    assert model is not None
    source = math.prod(stack.shape)
    most = max(math.prod(_grid(stack, one)) for one in _models(bundle))
    channels = len(model.channels)
    needed = source * (2 * _SINGLE * channels + 2 * _DOUBLE + 1) + most * (_SINGLE * channels + _DOUBLE)
    _compare(stack, bundle, needed, f"to prepare {' x '.join(map(str, stack.shape))} voxels")


def check_scores(stack: Stack, bundle: Bundle, grids: Grids, engine: Engine, *, passing: bool, models: int = 1) -> None:
    """Raise OutOfMemory where there is no room for the scores that are held at a time, and for a window.

    passing: planes of the volume pass one by one, too; else it is there already. models: whose probabilities are
    averaged, plane by plane.
    """
    model = bundle.nnunet
    assert model is not None
    shape = [max(pair) for pair in zip(grids.shape, extent(model.patch), strict=True)]
    depth, plane, heads = extent(model.patch)[0], math.prod(shape[1:]), model.labels.heads
    window, source = math.prod(model.patch), math.prod(grids.cropped[1:])
    needed = _HALF * plane * (heads + 1) * (depth if model.scores.by_planes else 2 * shape[0])
    needed += _SINGLE * (bundle.in_channels * (plane * depth + window) + 2 * heads * window)
    needed += 4 * memory.WAITING + 3 * _SINGLE * heads * plane
    if models > 1:
        needed += heads * math.prod(grids.whole[1:]) * (_SINGLE * (models + 2) + _DOUBLE)
    if passing:
        needed += _DOUBLE * bundle.in_channels * (_SOURCE_PLANES * source + _SPLINE_PLANES * plane)
    free = memory.free_bytes(CPU)
    activations = 512 * _SINGLE * window  # more than networks have
    if engine.device == CPU and free is not None and needed + activations > free:
        activations = held_by(engine.network, (bundle.in_channels, *model.patch), CPU)
    needed += activations if engine.device == CPU else 0
    _compare(stack, bundle, needed, f"for {heads} classes on {' x '.join(map(str, shape))} voxels")


def at_a_time(engine: Engine, shape: Sequence[int]) -> tuple[int, int]:
    """How many windows over planes of `shape` (z, y, x) run together, and how many mirror images of each."""
    if engine.device == CPU:
        return engine.batch, engine.mirrored
    bundle, model = engine.bundle, engine.bundle.nnunet
    assert model is not None
    window, heads, depth = math.prod(model.patch), model.labels.heads, extent(model.patch)[0]
    plane = math.prod(max(pair) for pair in list(zip(shape, extent(model.patch), strict=True))[1:])
    beside = plane * depth * (_HALF * (heads + 1) + _SINGLE * bundle.in_channels)
    each = held_by(engine.network, (bundle.in_channels, *model.patch), engine.device)
    each += _SINGLE * window * (bundle.in_channels + 2 * heads)
    most = max(engine.batch, engine.mirrored)
    images = gpu.most_that_fit(gpu.share_bytes(engine.device), beside, each, most)
    return max(images // engine.mirrored, 1), min(images, engine.mirrored)


def _models(bundle: Bundle) -> Sequence[NnUNet]:
    bundles = [part.bundle for part in bundle.parts] or [*bundle.averaged] or [bundle]
    bundles += [one.previous for one in bundles if one.previous is not None]
    return [one.nnunet for one in bundles if one.nnunet is not None]


def _grid(stack: Stack, model: NnUNet) -> Sequence[int]:
    """About the shape of the plans' grid; which axis is which makes little difference to its size."""
    if model.flat:
        return stack.shape
    mm, shape = [stack.spacing_mm[axis] for axis in model.transpose], [stack.shape[axis] for axis in model.transpose]
    return target_shape(shape, mm, (*mm[: 3 - len(model.spacing_mm)], *model.spacing_mm))


def _compare(stack: Stack, bundle: Bundle, needed: int, what: str) -> None:
    free = memory.free_bytes(CPU)
    needed += memory.RUNTIME
    if free is not None and needed > free:
        raise OutOfMemory(
            f"series {stack.series.series_uid}: about {memory.gib(needed)} of memory needed {what}, "
            f"{memory.gib(free)} free, bundle {bundle.name}: close other programs, or use a machine with more memory"
        )
