"""To another grid as nnU-Net does it: splines in double, voxel edges on each other, thick slices one by one.

    together    scipy's zoom over three axes, then clipped to what the channel had
    separate    each slice in its plane, then the nearest slice along the axis of the thickest voxels

What skimage's `resize` does, on which nnU-Net builds, is `ndimage.zoom(grid_mode=True)` and the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from medseg.bundle.nnunet.model import Method, Resampler

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = Sequence[float]
Zoom: TypeAlias = Callable[[Array, Sequence[int], int], Array]
"""Brings an image in double to a shape by splines of an order, as `overshot` does."""


def target_shape(shape: Sequence[int], old: Spacing, new: Spacing) -> Shape:
    """Voxels per axis after resampling; halves are rounded to even, and the order of operations matters."""
    z, y, x = (round(mm / to_mm * count) for mm, to_mm, count in zip(old, new, shape, strict=True))
    return max(z, 1), max(y, 1), max(x, 1)


def separate_axis(how: Resampler, old: Spacing, new: Spacing) -> int | None:
    """The axis along which slices are brought to another number one by one; None: all axes together."""
    if how.separate is False:
        return None
    for spacing in (old,) if how.separate else (old, new):
        if how.separate or max(spacing) / min(spacing) > how.threshold:
            thickest = [axis for axis, mm in enumerate(spacing) if max(spacing) / mm == 1]
            return thickest[0] if len(thickest) == 1 else None
    return None


def overshot(image: Array, shape: Sequence[int], order: int) -> Array:
    """An image in double of two or three axes, by splines of an order, which may go beyond the values that there
    were."""
    factors = [1 / (old / new) for old, new in zip(image.shape, shape, strict=True)]
    made: Array = ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True)
    return made


def resample_image(
    channel: Array, shape: Shape, how: Resampler, old: Spacing, new: Spacing, zoom: Zoom = overshot
) -> Array:
    """A channel (z, y, x) on a grid of `shape`; the same values where that is its own."""
    if channel.shape == shape or how.method is Method.NONE:
        return channel
    axis = separate_axis(how, old, new)
    if how.method is Method.TORCH:
        return _by_torch(channel, shape, axis, _linear)
    wide = channel.astype(np.float64)
    if axis is None:
        return zoomed(wide, shape, how.order, zoom).astype(channel.dtype)
    flat = _in_planes(wide, shape, axis, lambda plane, size: zoomed(plane, size, how.order, zoom), np.float64)
    return _along(flat, shape, axis, how.order_z).astype(channel.dtype)


def zoomed(image: Array, shape: Sequence[int], order: int, zoom: Zoom = overshot) -> Array:
    """As `overshot`, but within the values that there were."""
    made = zoom(image, shape, order)
    return np.clip(made, image.min(), image.max(), out=made)


def _in_planes(
    image: Array, shape: Shape, axis: int, resize: Callable[[Array, tuple[int, int]], Array], kind: Any
) -> Array:
    """Each slice across `axis` in its plane."""
    first, second = (size for n, size in enumerate(shape) if n != axis)
    planes = [resize(plane, (first, second)) for plane in np.moveaxis(image, axis, 0)]
    return np.moveaxis(np.stack(planes).astype(kind, copy=False), 0, axis)


def _along(image: Array, shape: Shape, axis: int, order: int) -> Array:
    """Slices at other places along `axis`, the planes as they are."""
    count = image.shape[axis]
    if count == shape[axis]:
        return image
    if order == 0:
        return np.take(image, nearest_slices(count, shape[axis]), axis=axis)
    place = centres(count, shape[axis])
    grid = [place if n == axis else np.arange(size) for n, size in enumerate(shape)]
    at = np.stack(np.meshgrid(*grid, indexing="ij"))
    made: Array = ndimage.map_coordinates(image, at, order=order, mode="nearest")
    return made


def centres(count: int, new: int) -> Array:
    """Where `new` samples lie on an axis of `count` old ones, edges on edges."""
    place: Array = count / new * (np.arange(new) + 0.5) - 0.5
    return place


def nearest_slices(count: int, new: int) -> Array:
    """Of `count` slices the one that is nearest to each of `new` ones."""
    return nearest(centres(count, new), count)


def nearest(place: Array, count: int) -> Array:
    """The nearest of `count` samples to each place, the later of two equally near (map_coordinates of order 0)."""
    return np.floor(np.clip(place, 0, count - 1) + 0.5).astype(np.intp)


def resample_labels(labels: Array, shape: Shape, how: Resampler, old: Spacing, new: Spacing) -> Array:
    """A label map (z, y, x) of whole numbers, on a grid of `shape`: the label whose part of a voxel is the largest."""
    if labels.shape == shape or how.method is Method.NONE:
        return labels
    axis = separate_axis(how, old, new)
    if how.method is Method.TORCH:
        return _by_torch(labels, shape, axis, _by_parts)
    if axis is None:
        return _voted(labels, shape, how.order)
    flat = _in_planes(labels, shape, axis, lambda plane, size: _voted(plane, size, how.order), labels.dtype)
    if how.order_z == 0 or flat.shape[axis] == shape[axis]:
        return _along(flat, shape, axis, 0)
    made = np.zeros(shape, labels.dtype)
    for label in np.unique(flat):
        made[np.round(_along((flat == label).astype(np.float64), shape, axis, how.order_z)) > 0.5] = label
    return made


def _voted(labels: Array, shape: Sequence[int], order: int) -> Array:
    """By an indicator for each label: the largest wins, and of equals the nearest label, where it is among them.

    As batchgenerators from 0.25.5 on.
    """
    close = zoomed(labels.astype(np.float64), shape, 0).astype(labels.dtype)
    values = np.unique(labels)
    if order == 0 or len(values) == 1:
        return close
    best: Array | None = None
    for label in values:
        score = zoomed((labels == label).astype(np.float64), shape, order)
        if best is None:
            best, winner = score, np.full(shape, label, labels.dtype)
            leads = close == label
            continue
        better, level = score > best, score == best
        leads = np.where(better, close == label, leads | (level & (close == label)))
        winner[better] = label
        np.maximum(best, score, out=best)
    return np.where(leads, close, winner)


def _by_torch(
    image: Array, shape: Shape, axis: int | None, resize: Callable[[torch.Tensor, Sequence[int], str], torch.Tensor]
) -> Array:
    """With torch's interpolation (`resample_torch_fornnunet`)."""
    given = torch.from_numpy(np.ascontiguousarray(image))
    if axis is None:
        return resize(given[None], shape, "trilinear")[0].numpy()
    planes = given.movedim(axis, 0)
    size = [count for n, count in enumerate(shape) if n != axis]
    flat = planes if list(planes.shape[1:]) == size else resize(planes, size, "bilinear")
    flat = flat.movedim(0, axis)
    if tuple(flat.shape) != shape:
        flat = resize(flat[None], shape, "nearest-exact")[0]
    return flat.numpy()


def _linear(images: torch.Tensor, shape: Sequence[int], mode: str) -> torch.Tensor:
    """(N, *S) -> (N, *shape), each by itself."""
    made: torch.Tensor = functional.interpolate(images[None].float(), list(shape), mode=mode)[0]
    return made


def _by_parts(labels: torch.Tensor, shape: Sequence[int], mode: str) -> torch.Tensor:
    values = torch.from_numpy(np.unique(labels.numpy()))
    scores = [_linear(labels == value, shape, mode).mul(1000).half() for value in values]
    best: torch.Tensor = values[torch.stack(scores).argmax(0)]
    return best
