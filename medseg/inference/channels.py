"""Several images as the channels of one input, plane by plane on the slices of the stack that has them.

One on that very grid is taken as it is, to the bit; another is resampled once, linearly, in patient millimetres, from
as many of its own planes as a slice needs. Where it has no voxel there is what stands for no image: air in a CT, else
0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np

from medseg.bundle.recipe import Interpolation, Padding
from medseg.dicom.instance import Pixels, Vector
from medseg.dicom.overlap import grid_shape, inside, inside_along
from medseg.dicom.series import ChannelImage, Stack
from medseg.inference.arriving.decoding import AHEAD
from medseg.inference.channel_images import ImagePlanes, Slabs, along, nearest_axis, reach
from medseg.inference.context import PipelineContext
from medseg.inference.grids.resample import InPlane, resample_plane, span_of_plane, taps
from medseg.inference.registration import LikelyRegistration

_LINEAR: Final = Interpolation.LINEAR
_EDGE: Final = Padding.BORDER
_STILL: Final = 0.01  # of a voxel: directions are rounded, and what moves none by more is no slant
_ROUNDED: Final = 1e-4  # of a voxel
_FLOAT: Final = 4  # bytes
_WHILE_RESAMPLED: Final = 80  # bytes a voxel of a slice: where it lies, and its parts
_PlaneOf: TypeAlias = Callable[[int, Pixels], Pixels]
"""Slice k of the stack in a channel, given the stack's own plane."""


class ChannelPlanes:
    """All channels of a stack, slice by slice, from the first to the last or `backwards`. Where the stack has no
    channels, its own planes alone."""

    def __init__(self, context: PipelineContext, stack: Stack, *, backwards: bool = False) -> None:
        self._context = context
        self._lying = LikelyRegistration(stack) if len(stack.channels) > 1 else None
        self._images: list[ImagePlanes] = []
        self.held_bytes = 0  # about as much as is at hand of images
        self._each = [self._of(context, stack, channel, backwards) for channel in stack.channels] or [_own]

    def __len__(self) -> int:
        return len(self._each)

    def at(self, k: int, own: Pixels) -> tuple[Pixels, ...]:
        """Slice k in each channel. own: that of the stack itself."""
        planes = tuple(channel(k, own) for channel in self._each)
        if self._lying is not None:
            self._lying.add(k, planes)
        return planes

    def tell(self) -> None:
        """Say what is to be said of all that was read."""
        for image in self._images:
            image.tell()
        if self._lying is not None:
            self._context.flags.extend(self._lying.flags())

    def _of(self, context: PipelineContext, stack: Stack, channel: ChannelImage, backwards: bool) -> _PlaneOf:
        if channel.stack is None:
            return lambda _k, own: np.zeros_like(own)
        if channel.stack.slices is stack.slices:
            return _own
        axis = 0 if channel.matrix is None else nearest_axis(channel.matrix, stack.shape[1:], channel.stack)
        image = ImagePlanes(context, channel.name, channel.stack, backwards=backwards and axis == 0)
        self._images.append(image)
        self.held_bytes += _FLOAT * (AHEAD + 1) * math.prod(image.shape[1:])
        if channel.matrix is None:
            return lambda k, _own: image.slice(k)
        self.held_bytes += _FLOAT * reach(channel.matrix, stack.shape[1:], channel.stack, axis)
        self.held_bytes += _WHILE_RESAMPLED * math.prod(stack.shape[1:])
        return _resampled(image, axis, channel.matrix, stack)


def channel_slices(context: PipelineContext, stack: Stack, own: Iterator[Pixels]) -> Iterator[tuple[Pixels, ...]]:
    """The planes of all channels on the stack's slices, in their order. own: those of the stack itself."""
    channels = ChannelPlanes(context, stack)
    for k, plane in enumerate(own):
        yield channels.at(k, plane)
    channels.tell()


def _own(_k: int, own: Pixels) -> Pixels:
    return own


def _resampled(image: ImagePlanes, axis: int, matrix: Vector, stack: Stack) -> _PlaneOf:
    """An image, by planes along one of its axes, where the slices of another stack lie.

    matrix: from their grid to the image's.
    """
    planes, matrix = along(image, axis, matrix)
    swapped = abs(matrix[1, 2]) > abs(matrix[1, 1])  # its rows lie along the stack's columns
    straight = matrix[[0, 2, 1, 3]] if swapped else matrix
    slant = np.abs(straight[:3, :3] - np.diag(np.diag(straight[:3, :3])))
    if (slant @ np.array(grid_shape(stack))).max() < _STILL:
        return _Parallel(planes, image.floor, straight, stack, swapped=swapped)
    return _Aslant(planes, image.floor, matrix, stack)


class _Parallel:
    """Of planes whose axes run along those of the stack: axis by axis. swapped: their rows are columns."""

    def __init__(self, planes: Slabs, floor: np.float32, matrix: Vector, stack: Stack, *, swapped: bool) -> None:
        n, rows, columns = planes.shape
        shape = (n, columns, rows) if swapped else planes.shape
        steps = stack.coordinates, np.arange(stack.shape[1]), np.arange(stack.shape[2])
        places = [_settled(matrix[axis, axis] * at + matrix[axis, 3]) for axis, at in enumerate(steps)]
        # The outermost values hold to their voxels' edges.
        operators = [taps(at, size, _LINEAR, _EDGE) for at, size in zip(places, shape, strict=True)]
        self._slices, self._in_plane = operators[0], InPlane.of(operators[1], operators[2])
        within = [inside_along(at, size) for at, size in zip(places, shape, strict=True)]
        self._there, self._beside = within[0], within[1][:, None] & within[2]
        self._planes, self._floor, self._swapped = planes, floor, swapped

    def __call__(self, k: int, own: Pixels) -> Pixels:
        if not self._there[k]:
            return np.full_like(own, self._floor)
        low, high = int(self._slices.lower[k]), int(self._slices.upper[k])
        slab = self._planes.slab(low, high)
        plane = self._slices.mix(lambda n: slab[:, n - low], k)
        made: Pixels = self._in_plane(plane.mT.contiguous() if self._swapped else plane)[0].numpy()
        return made if self._beside.all() else np.where(self._beside, made, self._floor)


def _settled(places: Vector) -> Vector:
    """Where voxels of both grids lie on each other but for rounded positions, exactly there: else a voxel of 0 would be
    nearly 0, and no longer blank to a step that asks."""
    whole = np.rint(places)
    return np.where(np.abs(places - whole) < _ROUNDED, whole, places)


class _Aslant:
    """Of planes that lie in any other way."""

    def __init__(self, planes: Slabs, floor: np.float32, matrix: Vector, stack: Stack) -> None:
        self._places, self._size = stack.coordinates, stack.shape[1:]
        self._planes, self._floor, self._matrix = planes, floor, matrix

    def __call__(self, k: int, _own: Pixels) -> Pixels:
        place, shape, matrix = float(self._places[k]), self._planes.shape, self._matrix
        low, high = span_of_plane(matrix, place, self._size, shape[0])
        slab = self._planes.slab(low, high)
        plane = resample_plane(slab, low, matrix, place, self._size, shape[0], _LINEAR, _EDGE)[0].numpy()
        return np.where(inside(_voxels(matrix, place, self._size), shape), plane, self._floor)


def _voxels(matrix: Vector, k: float, size: tuple[int, int]) -> Vector:
    """Where the voxels of a slice lie on the image's grid: (rows, columns, 3)."""
    rows = np.arange(size[0])[:, None, None] * matrix[:3, 1]
    columns = np.arange(size[1])[None, :, None] * matrix[:3, 2]
    return np.asarray(rows + columns + (matrix[:3, 0] * k + matrix[:3, 3]))
