"""From the source's voxels to what the network sees: the steps of a recipe, one after another, each as MONAI's.

The volume stays in stored order (k, j, i) throughout; `PreparedVolume` remembers the grids it has been on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medseg.bundle.recipe import (
    ChannelWise,
    Intensity,
    Normalize,
    Orient,
    Recipe,
    Resample,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    needs_whole,
)
from medseg.dicom.instance import Vector
from medseg.inference.grids.grid import ModelFrame, index_map, oriented, parallel, resampled, source_frame
from medseg.inference.grids.resample import Taps, axis_taps, resample_affine, resample_separable, resample_slices, taps
from medseg.inference.grids.statistics import VolumeStatistics
from medseg.inference.grids.zeros import Sampler, Sampling

STRAIGHTEN = Resample(spacing_mm=())  # spacing kept, shear removed


@dataclass(frozen=True, eq=False)
class Resampling:
    """What a resampling step did: from the grid `old` to `new`."""

    step: Resample
    old: ModelFrame
    new: ModelFrame


@dataclass(frozen=True, eq=False)
class PreprocessingPlan:
    """What a recipe's steps come to on one grid.

    before, after: intensity steps on either side of the resampling; without one, all are before.
    frame, resampling: as in `PreparedVolume`.
    """

    before: tuple[Intensity, ...]
    resampling: Resampling | None
    after: tuple[Intensity, ...]
    frame: ModelFrame


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """What windows run over.

    voxels: (C, k, j, i) float32 on the model's grid, in stored order. frame: that grid.
    resampling: how it was reached from the source's uniform grid; None where it is the source's own.
    """

    voxels: Tensor
    frame: ModelFrame
    resampling: Resampling | None


def uniform(voxels: Tensor, coordinates: Vector) -> Tensor:
    """Slices (C, K, j, i) that lie at `coordinates` (K,) along k -> slices at 0, 1, 2, ...; gaps are interpolated."""
    count = round(float(coordinates[-1])) + 1
    if count == len(coordinates) and np.allclose(coordinates, np.arange(count), atol=1e-3):
        return voxels
    return resample_slices(voxels, to_uniform(coordinates))


def to_uniform(coordinates: Vector) -> Taps:
    """The operator from slices at `coordinates` to slices at 0, 1, 2, ...; linear."""
    count = round(float(coordinates[-1])) + 1
    place = np.interp(np.arange(count, dtype=float), coordinates, np.arange(len(coordinates), dtype=float))
    return taps(place, len(coordinates), STRAIGHTEN.interpolation, STRAIGHTEN.padding)


def preprocessing_plan(
    affine: Vector, shape: tuple[int, int, int], recipe: Recipe, *, tilted: bool = False
) -> PreprocessingPlan:
    """What `recipe.steps` come to on the grid of `shape` (k, j, i) and `affine`; see `prepare`.

    A recipe that resamples twice has no course: `fallback.reason_for_fallback` says so.
    """
    frame = source_frame(affine, shape)
    steps = list(recipe.steps)
    if tilted and not any(isinstance(step, Resample) for step in steps):
        steps.insert(1 if steps and isinstance(steps[0], Orient) else 0, STRAIGHTEN)
    resampling: Resampling | None = None
    before: list[Intensity] = []
    after: list[Intensity] = []
    for step in steps:
        if isinstance(step, Orient):
            frame = oriented(frame, step.axcodes)
        elif isinstance(step, Resample):
            wanted = resampled(frame, step)
            if wanted is not frame:
                resampling, frame = Resampling(step, frame, wanted), wanted
        else:
            (before if resampling is None else after).append(step)
    return PreprocessingPlan(tuple(before), resampling, tuple(after), frame)


def prepare(voxels: Tensor, affine: Vector, recipe: Recipe, *, tilted: bool = False) -> PreparedVolume:
    """Carry out `recipe.steps` on the source's uniform grid.

    voxels: (C, k, j, i) float32 in modality values; changed in place. affine: 4x4, (k, j, i, 1) to LPS mm.
    tilted: the affine is sheared; where the recipe does not resample, the volume is straightened at its own spacing,
    because a network has learned upright anatomy.
    """
    k, j, i = voxels.shape[1:]
    way = preprocessing_plan(affine, (k, j, i), recipe, tilted=tilted)
    for step in way.before:
        voxels = scale(voxels, step)
    if way.resampling is not None:
        voxels = to_grid(voxels, way.resampling, zeros=recipe.zeros_matter)
    for step in way.after:
        voxels = scale(voxels, step)
    return PreparedVolume(voxels, way.frame, way.resampling)


def to_grid(voxels: Tensor, how: Resampling, *, zeros: bool) -> Tensor:
    step, old, new = how.step, how.old, how.new
    sampler = Sampler.between(old, new, step) if zeros else None
    if sampler is not None:
        result = voxels.new_empty((voxels.shape[0], *new.stored_shape))
        sampling = Sampling(sampler, lambda n: voxels[:, n])
        for k in range(result.shape[1]):
            result[:, k] = sampling.plane(k)
        return result
    if not parallel(old, new):
        return resample_affine(voxels, index_map(old, new), new.stored_shape, step)
    return resample_separable(
        voxels, axis_taps(old, new, step.interpolation, step.padding, align_corners=step.align_corners)
    )


def scale(voxels: Tensor, step: Intensity) -> Tensor:
    """An intensity step on a whole volume (C, k, j, i), in place, in the order of operations of its MONAI transform."""
    return scale_settled(voxels, settled(voxels, step))


def settled(voxels: Tensor, step: Intensity) -> Intensity:
    """The step with all that it must know of the volume (C, k, j, i)."""
    if not needs_whole(step):
        return step
    gathering = VolumeStatistics(step)
    for plane in voxels.unbind(1):
        gathering.add(plane)
    return gathering.settle(lambda: voxels.unbind(1))


def scale_settled(voxels: Tensor, step: Intensity) -> Tensor:
    """A step that needs to know of no other voxels: of a volume, or a plane of one; in place."""
    match step:
        case ChannelWise(each):
            for channel, own in zip(voxels.unsqueeze(1), each, strict=True):
                if own is not None:
                    scale_settled(channel, own)
            return voxels
        case ScaleRange():
            return _to_range(voxels, step)
        case ScaleMinMax():
            return voxels.mul_(1.0 + (step.factor or 0.0))
        case Normalize():
            return _normalized(voxels, step)
        case ScalePercentiles():
            raise ValueError("percentiles are settled by a Gathering first")


def _to_range(voxels: Tensor, step: ScaleRange) -> Tensor:
    voxels.sub_(step.a_min)
    if step.a_max == step.a_min:
        return voxels.add_(step.b_min or 0.0)
    voxels.div_(step.a_max - step.a_min)
    if step.b_min is not None and step.b_max is not None:
        voxels.mul_(step.b_max - step.b_min).add_(step.b_min)
    if step.clip and (step.b_min is not None or step.b_max is not None):
        voxels.clamp_(step.b_min, step.b_max)
    return voxels


def _normalized(voxels: Tensor, step: Normalize) -> Tensor:
    blank = voxels == 0 if step.nonzero else None
    voxels.sub_(step.subtrahend or 0.0).div_(step.divisor or 1.0)
    return voxels if blank is None else voxels.masked_fill_(blank, 0.0)
