"""A part of a stack as a stack of its own: the voxels of a box, turned round where the network is to see them so.

Geometry is that of the voxels where they lie. What is mirrored keeps it, slot by slot, and has the values of the slot
opposite along the axis of the grid that is nearest to the patient's: so a recipe sees one side as the other, whatever
axes it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from medseg.bundle.catalog import grid_axes
from medseg.bundle.region import Mirror
from medseg.dicom.instance import Pixels, Slice, Vector
from medseg.dicom.series import ChannelImage, Stack
from medseg.inference.labels import LabelPlane
from medseg.inference.regions.boxes import RegionBox

T = TypeVar("T", bound=np.generic)
Read: TypeAlias = Callable[[Slice], Pixels]
"""A slice's values, decoded by the thread that asks."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A box of a stack. stack: its voxels as the network sees them. flipped: along k, j, i."""

    box: RegionBox
    stack: Stack
    flipped: tuple[bool, bool, bool]

    def back(self, k: int, planes: Callable[[int], LabelPlane]) -> LabelPlane:
        """Labels of the box's slice k, as they lie in the image. planes: of the stack that the network saw."""
        plane = planes(self.box.shape[0] - 1 - k if self.flipped[0] else k)
        return _turned(plane, self.flipped)


def cut_out(stack: Stack, box: RegionBox, mirror: Sequence[Mirror], read: Read) -> Cut:
    """A box of a stack, and of its channels."""
    axes = grid_axes(stack)
    turned = {axes[one.axis] for one in mirror}
    flipped = 0 in turned, 1 in turned, 2 in turned
    cut = _cut(stack, box, flipped, read)
    channels = tuple(_channel(channel, stack, cut, box, flipped, read) for channel in stack.channels)
    return Cut(box, replace(cut, channels=channels), flipped)


def _channel(
    channel: ChannelImage, stack: Stack, cut: Stack, box: RegionBox, flipped: tuple[bool, bool, bool], read: Read
) -> ChannelImage:
    image = channel.stack
    if image is None:
        return channel
    if image.slices is stack.slices:
        return replace(channel, stack=cut)
    if channel.matrix is None:
        return replace(channel, stack=_cut(image, box, flipped, read))
    return replace(channel, matrix=channel.matrix @ _from_box(stack, box, flipped))


def _from_box(stack: Stack, box: RegionBox, flipped: tuple[bool, bool, bool]) -> Vector:
    """4x4: from the grid of what is cut out to the stack's."""
    ends = stack.coordinates[box.low[0]], stack.coordinates[box.high[0] - 1]
    first = (float(ends[0]), *box.low[1:])
    last = (float(ends[1]), box.high[1] - 1, box.high[2] - 1)
    matrix = np.eye(4)
    for axis, flip in enumerate(flipped):
        matrix[axis, axis] = -1.0 if flip else 1.0
        matrix[axis, 3] = last[axis] if flip else first[axis]
    return matrix


def _cut(stack: Stack, box: RegionBox, flipped: tuple[bool, bool, bool], read: Read) -> Stack:
    slices = slice(box.low[0], box.high[0])
    own = stack.slices[slices]
    coordinates, thickness = stack.coordinates[slices], stack.thickness_mm[slices]
    affine = stack.affine.copy()
    affine[:3, 3] = (stack.affine @ [coordinates[0], box.low[1], box.low[2], 1.0])[:3]
    coordinates = coordinates - coordinates[0]
    if flipped[0]:
        coordinates, thickness = coordinates[-1] - coordinates[::-1], thickness[::-1]
    values = own[::-1] if flipped[0] else own
    return replace(
        stack,
        slices=tuple(_slice(at, of, box, flipped, read) for at, of in zip(own, values, strict=True)),
        coordinates=coordinates,
        affine=affine,
        thickness_mm=thickness,
        channels=(),
    )


def _slice(at: Slice, of: Slice, box: RegionBox, flipped: tuple[bool, bool, bool], read: Read) -> Slice:
    """The part of a slice, with the values of another where slices are turned round."""
    plane, (_, rows, columns) = at.plane, box.shape
    position = (
        plane.position_mm
        + box.low[1] * plane.spacing_mm[0] * plane.column_direction
        + box.low[2] * plane.spacing_mm[1] * plane.row_direction
    )
    part = replace(plane, position_mm=position, rows=rows, columns=columns)
    return replace(at, plane=part, read=partial(_read, of, box, flipped, read))


def _read(of: Slice, box: RegionBox, flipped: tuple[bool, bool, bool], read: Read) -> Pixels:
    plane = read(of)[box.low[1] : box.high[1], box.low[2] : box.high[2]]
    return np.ascontiguousarray(_turned(plane, flipped))


def _turned(plane: NDArray[T], flipped: tuple[bool, bool, bool]) -> NDArray[T]:
    """(..., rows, columns), turned round within the plane."""
    return np.flip(plane, tuple(axis for axis, flip in ((-2, flipped[1]), (-1, flipped[2])) if flip))
