"""From a volume to what nnU-Net's network sees: transposed, cropped to what is not zero, normalised, resampled.

Statistics are numpy's of the very views that nnU-Net takes them of: its sums in single depend on how memory lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg.bundle.nnunet.model import InputChannel, Method, NnUNet, Scheme
from medseg.errors import InputError
from medseg.inference.nnunet.resample import Array, Shape, Zoom, overshot, resample_image, resample_labels, target_shape

_LEAST: float = 1e-8
_CONNECTED = ndimage.generate_binary_structure(3, 1)
Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[slice, slice, slice]


def wanted_mm(spacing_mm: Sequence[float], model: NnUNet) -> tuple[float, ...]:
    """What a volume of that spacing is resampled to; slices stay where the network has two axes."""
    return (*spacing_mm[: 3 - len(model.spacing_mm)], *model.spacing_mm)


@dataclass(frozen=True)
class Grids:
    """A volume and what the network sees of it; axes are the plans'.

    whole: the volume's shape. box: what is cut out of it. shape: of what that is resampled to. spacing_mm: of the
    volume; model_mm: of what it is resampled to.
    """

    whole: Shape
    box: Box
    shape: Shape
    spacing_mm: tuple[float, ...]
    model_mm: tuple[float, ...]

    @classmethod
    def of(cls, whole: Shape, box: Box, spacing_mm: tuple[float, ...], model: NnUNet) -> Grids:
        """spacing_mm: in the plans' axes."""
        wanted = wanted_mm(spacing_mm, model)
        made = cls(whole, box, whole, spacing_mm, wanted)
        if model.image.method is Method.NONE:
            return replace(made, shape=made.cropped)
        return replace(made, shape=target_shape(made.cropped, spacing_mm, wanted))

    @property
    def cropped(self) -> Shape:
        z, y, x = (part.stop - part.start for part in self.box)
        return z, y, x


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """voxels: (channels, z, y, x), single, on the network's grid."""

    voxels: Array
    grids: Grids

    def planes(self) -> Iterator[Tensor]:
        """(channels, y, x), one after the other."""
        return iter(torch.from_numpy(self.voxels).unbind(1))


def prepare(
    volume: Array, spacing_mm: Sequence[float], model: NnUNet, earlier: Array | None = None, zoom: Zoom = overshot
) -> PreparedCase:
    """volume: (channels, z, y, x) as the reader gives it, single; it is changed. earlier: labels of a cascade's first
    stage on the same grid.

    Raises InputError for values that a channel's scheme does not take.
    """
    volume = volume.transpose(0, *(axis + 1 for axis in model.transpose))
    spacing = tuple(float(spacing_mm[axis]) for axis in model.transpose)
    inside = not_zero(volume)
    box = bounds(inside)
    cut, inside = volume[(slice(None), *box)], inside[box]
    labels = None
    if earlier is not None:
        labels = earlier.transpose(model.transpose)[box].astype(np.int16)
        labels[(labels == 0) & ~inside] = -1
        inside = labels >= 0
    for number, channel in enumerate(model.channels):
        _normalise(cut[number], channel, inside)
    z, y, x = volume.shape[1:]
    grids = Grids.of((z, y, x), box, spacing, model)
    made = [resample_image(channel, grids.shape, model.image, spacing, grids.model_mm, zoom) for channel in cut]
    if labels is not None:
        labels = resample_labels(labels, grids.shape, model.labelmap, spacing, grids.model_mm)
        made += [(labels == value).astype(np.float32) for value in model.labels.foreground]
    return PreparedCase(np.stack(made), grids)


def not_zero(volume: Array) -> Mask:
    """Where any channel is not exactly zero, cavities closed on all sides filled."""
    mask: Mask = volume[0] != 0
    for channel in volume[1:]:
        mask |= channel != 0
    if mask.all():
        return mask
    numbers, count = ndimage.label(~mask, _CONNECTED)
    closed = np.ones(count + 1, np.bool_)
    for axis in range(3):
        for end in (0, -1):
            closed[np.unique(np.take(numbers, end, axis=axis))] = False
    mask |= closed[numbers]
    return mask


def bounds(mask: Mask) -> Box:
    """The box around a mask; all of it where it is empty."""
    axes = [tuple(other for other in range(3) if other != axis) for axis in range(3)]
    return around([np.asarray(mask.any(axis=others)) for others in axes])


def around(there: Sequence[Mask]) -> Box:
    """The box around a mask, of which is told where along each axis there is any of it."""
    z, y, x = (slice(0, len(axis)) if not axis.any() else _span(axis) for axis in there)
    return z, y, x


def _span(there: Mask) -> slice:
    at = np.flatnonzero(there)
    return slice(int(at[0]), int(at[-1]) + 1)


def _normalise(image: Array, channel: InputChannel, inside: Mask) -> None:
    """In place, in single."""
    match channel.scheme:
        case Scheme.Z_SCORE if channel.masked:
            values = image[inside]
            if values.size:
                image[inside] = (values - values.mean()) / max(values.std(), _LEAST)
        case Scheme.Z_SCORE:
            mean, deviation = image.mean(), image.std()
            image -= mean
            image /= max(deviation, _LEAST)
        case _:
            normalise_part(image, channel, image.min(), image.max())


def normalise_part(image: Array, channel: InputChannel, low: np.float32, high: np.float32) -> None:
    """Any part of a volume whose lowest and highest value are known, in place, in single; by no statistics else.

    Raises InputError for values that the channel's scheme does not take.
    """
    match channel.scheme:
        case Scheme.CT:
            np.clip(image, channel.low, channel.high, out=image)
            image -= channel.mean
            image /= max(channel.deviation, _LEAST)
        case Scheme.RESCALE:
            image -= low
            image /= max(high - low, np.float32(_LEAST))
        case Scheme.RGB:
            if low < 0 or high > 255:
                raise InputError(f"channel {channel.name}: expected values of 0 to 255, found {low:g} to {high:g}")
            image /= 255.0
        case Scheme.NONE:
            pass
        case Scheme.Z_SCORE:
            raise ValueError("a z-score is that of a whole volume")
