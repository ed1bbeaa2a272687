"""From a volume to what nnU-Net's network sees: transposed, cropped to what is not zero, normalised, resampled.

Statistics are numpy's of the very views that nnU-Net takes them of: its sums in single depend on how memory lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.bundle.nnunet.model import Channel, NnUNet, Scheme
from medseg.errors import InputError
from medseg.inference.nnunet.resample import Array, Shape, resample_image, resample_labels, target_shape

_LEAST: float = 1e-8
_CONNECTED = ndimage.generate_binary_structure(3, 1)
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Prepared:
    """voxels: (channels, z, y, x), single. Axes are the plans'.

    whole: the volume's shape. box: what was cut out of it. spacing_mm: of the volume; model_mm: of `voxels`.
    """

    voxels: Array
    whole: Shape
    box: tuple[slice, slice, slice]
    spacing_mm: tuple[float, ...]
    model_mm: tuple[float, ...]

    @property
    def cropped(self) -> Shape:
        z, y, x = (part.stop - part.start for part in self.box)
        return z, y, x


def prepare(volume: Array, spacing_mm: Sequence[float], model: NnUNet, earlier: Array | None = None) -> Prepared:
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
    wanted = (*spacing[: 3 - len(model.spacing_mm)], *model.spacing_mm)
    shape = target_shape(cut.shape[1:], spacing, wanted)
    made = [resample_image(channel, shape, model.image, spacing, wanted) for channel in cut]
    if labels is not None:
        labels = resample_labels(labels, shape, model.labelmap, spacing, wanted)
        made += [(labels == value).astype(np.float32) for value in model.labels.foreground]
    z, y, x = volume.shape[1:]
    return Prepared(np.stack(made), (z, y, x), box, spacing, wanted)


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


def bounds(mask: Mask) -> tuple[slice, slice, slice]:
    """The box around a mask; all of it where it is empty."""
    found = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append(slice(int(there[0]), int(there[-1]) + 1) if there.size else slice(0, mask.shape[axis]))
    return found[0], found[1], found[2]


def _normalise(image: Array, channel: Channel, inside: Mask) -> None:
    """In place, in single."""
    match channel.scheme:
        case Scheme.CT:
            np.clip(image, channel.low, channel.high, out=image)
            image -= channel.mean
            image /= max(channel.deviation, _LEAST)
        case Scheme.Z_SCORE if channel.masked:
            values = image[inside]
            if values.size:
                image[inside] = (values - values.mean()) / max(values.std(), _LEAST)
        case Scheme.Z_SCORE:
            mean, deviation = image.mean(), image.std()
            image -= mean
            image /= max(deviation, _LEAST)
        case Scheme.RESCALE:
            image -= image.min()
            image /= max(image.max(), np.float32(_LEAST))
        case Scheme.RGB:
            low, high = float(image.min()), float(image.max())
            if low < 0 or high > 255:
                raise InputError(f"channel {channel.name}: expected values of 0 to 255, found {low:g} to {high:g}")
            image /= 255.0
        case Scheme.NONE:
            pass
