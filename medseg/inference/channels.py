"""Several images as the channels of one input, plane by plane on the slices of the stack that has them.

One on that very grid is taken as it is, to the bit; another is resampled once, linearly, in patient millimetres, from
as many of its own planes as a slice needs. Where it has no voxel there is what stands for no image: air in a CT, else
0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.recipe import Interpolation, Padding
from medseg.dicom.instance import Pixels, Slice, Vector
from medseg.dicom.overlap import grid_shape, inside
from medseg.dicom.series import ChannelImage, Stack
from medseg.dicom.stored import floor_of
from medseg.inference.arriving.decoding import AHEAD
from medseg.inference.context import PipelineContext
from medseg.inference.grids.prepare import uniform
from medseg.inference.grids.resample import resample_plane, span_of_plane
from medseg.inference.valueless import Valueless
from medseg.progress import check

SEVERAL: Final = "several series as channels of one input are read as a whole"


def channel_planes(context: PipelineContext, stack: Stack, own: Iterator[Pixels]) -> list[Iterator[Pixels]]:
    """Of each channel the planes on the stack's slices, in their order. own: those of the stack itself."""
    return [_planes(context, stack, channel, own) for channel in stack.channels] or [own]


def _planes(context: PipelineContext, stack: Stack, channel: ChannelImage, own: Iterator[Pixels]) -> Iterator[Pixels]:
    if channel.stack is None:
        return (np.zeros(stack.shape[1:], np.float32) for _ in stack.slices)
    if channel.stack.slices is stack.slices:
        return own
    image = _Image(context, channel.name, channel.stack)
    return image.one_by_one() if channel.matrix is None else _on_slices(image, channel.matrix, stack)


def _on_slices(image: _Image, matrix: Vector, stack: Stack) -> Iterator[Pixels]:
    """The image where the slices lie; matrix: from their grid to the image's."""
    size, shape = stack.shape[1:], grid_shape(image.stack)
    for k in stack.coordinates:
        low, high = span_of_plane(matrix, k, size, shape[0])
        slab = image.slab(low, high)
        linear, edge = Interpolation.LINEAR, Padding.BORDER  # the outermost values hold to their voxels' edges
        plane = resample_plane(slab, low, matrix, k, size, shape[0], linear, edge)[0].numpy()
        yield np.where(inside(_places(matrix, k, size), shape), plane, image.floor)
    image.tell()


def _places(matrix: Vector, k: float, size: tuple[int, int]) -> Vector:
    """Where the voxels of a slice lie on the image's grid: (rows, columns, 3)."""
    rows = np.arange(size[0])[:, None, None] * matrix[:3, 1]
    columns = np.arange(size[1])[None, :, None] * matrix[:3, 2]
    return np.asarray(rows + columns + (matrix[:3, 0] * k + matrix[:3, 3]))


class _Image:
    """A channel's own planes: those at hand, on its uniform grid."""

    def __init__(self, context: PipelineContext, name: str, stack: Stack) -> None:
        self._context, self._name, self.stack = context, name, stack
        self._gaps = Valueless(floor_of(stack.series.modality))
        self._at_hand: dict[int, Tensor] = {}
        self._whole: Tensor | None = None

    @property
    def floor(self) -> np.float32:
        return self._gaps.floor

    def one_by_one(self) -> Iterator[Pixels]:
        for k, slice_ in enumerate(self.stack.slices):
            self._context.decoder.ahead(self.stack.slices[k : k + AHEAD])
            yield self._read(slice_)
        self.tell()

    def slab(self, low: int, high: int) -> Tensor:
        """(1, d, j, i): planes from `low` to `high`. Others are let go: which are needed moves one way."""
        if not self.stack.uniform:
            if self._whole is None:
                planes = torch.from_numpy(np.stack(list(map(self._read, self.stack.slices))))
                self._whole = uniform(planes[None], self.stack.coordinates)
            return self._whole[:, low : high + 1]
        missing = [n for n in range(low, high + 1) if n not in self._at_hand]
        self._context.decoder.ahead([self.stack.slices[n] for n in missing])
        read = {n: torch.from_numpy(self._read(self.stack.slices[n])) for n in missing}
        self._at_hand = {n: plane for n, plane in (self._at_hand | read).items() if low <= n <= high}
        return torch.stack([self._at_hand[n] for n in range(low, high + 1)])[None]

    def tell(self) -> None:
        """Say how many voxels had no value."""
        if self._gaps.voxels:
            missing = f"{self._gaps.voxels} voxels have no finite value: taken as {self.floor:g}"
            self._context.warn(f"channel {self._name}: {missing}")

    def _read(self, slice_: Slice) -> Pixels:
        check(self._context.cancelled)
        return self._gaps.see(self._context.decoder.take(slice_))[0]
