"""How much memory nnU-Net's way takes, told before its large arrays are made; whole volumes, so it grows with them.

preparing   the source, the reader's copy, one channel in double twice, the same on the plans' grid
scores      heads x the plans' grid in half, twice where folds are added, and one window through the network
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medseg.bundle.bundle import Bundle
from medseg.bundle.nnunet.model import NnUNet
from medseg.dicom.series import Stack
from medseg.errors import OutOfMemory
from medseg.inference import memory
from medseg.inference.engines.device import CPU
from medseg.inference.engines.engine import Engine
from medseg.inference.nnunet.prepare import Prepared
from medseg.inference.nnunet.resample import target_shape
from medseg.inference.nnunet.windows import extent

_DOUBLE, _SINGLE, _HALF = 8, 4, 2  # bytes


def check_volume(stack: Stack, bundle: Bundle) -> None:
    """Raise OutOfMemory where a volume cannot be prepared. Its crop is not known yet."""
    model = bundle.nnunet
    assert model is not None
    source = math.prod(stack.shape)
    most = max(math.prod(_grid(stack, one)) for one in _models(bundle))
    channels = len(model.channels)
    needed = source * (2 * _SINGLE * channels + 2 * _DOUBLE + 1) + most * (_SINGLE * channels + _DOUBLE)
    _compare(stack, bundle, needed, f"to prepare {' x '.join(map(str, stack.shape))} voxels")


def check_scores(stack: Stack, bundle: Bundle, prepared: Prepared, engine: Engine) -> None:
    """Raise OutOfMemory where there is no room for the scores of a prepared volume, and for a window."""
    model = bundle.nnunet
    assert model is not None
    shape = [max(pair) for pair in zip(prepared.voxels.shape[1:], extent(model.patch), strict=True)]
    grid, window, heads = math.prod(shape), math.prod(model.patch), model.labels.heads
    sums = _HALF * grid * (heads * (2 if bundle.members else 1) + 1) + 2 * _SINGLE * grid * len(prepared.voxels)
    needed = sums + _SINGLE * window * (bundle.in_channels + 3 * heads)
    free = memory.free_bytes(CPU)
    activations = 512 * _SINGLE * window  # more than networks have (`memory.ample`)
    if engine.device == CPU and free is not None and needed + activations > free:
        activations = memory.held_by(engine.network, bundle.in_channels, model.patch, torch.device("cpu"))
    needed += activations if engine.device == CPU else 0
    _compare(stack, bundle, needed, f"for {heads} classes on {' x '.join(map(str, shape))} voxels")


def _models(bundle: Bundle) -> Sequence[NnUNet]:
    bundles = [part.bundle for part in bundle.parts] or [bundle]
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
