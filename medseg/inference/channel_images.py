"""The planes of one of several images, as many at hand as a slice of the reference needs.

planes of the image       along its slices, where the reference's lie about along them: a few at a time
sections through it       across them, else: rows or columns of all slices, which wait on disk for it

reference axial     -----       image axial  =====       image sagittal  |||||
                    -----                    =====                       |||||
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from medseg.dicom.instance import Pixels, Slice, Vector
from medseg.dicom.overlap import grid_shape
from medseg.dicom.series import Stack
from medseg.dicom.stored import floor_of
from medseg.errors import OutputNotWritable
from medseg.inference.arriving.decoding import AHEAD
from medseg.inference.context import PipelineContext
from medseg.inference.grids.prepare import to_uniform
from medseg.inference.valueless import Valueless
from medseg.progress import check

_AT_ONCE: Final = 16  # planes that are turned into sections


class Slabs(Protocol):
    """shape: of all planes (n, rows, columns)."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def slab(self, low: int, high: int) -> Tensor:
        """(1, d, rows, columns): planes from `low` to `high`. Which are asked for moves one way."""
        ...


class ImagePlanes:
    """An image's own planes, on its uniform grid; each slice is decoded once. backwards: from the last to the first."""

    def __init__(self, context: PipelineContext, name: str, stack: Stack, *, backwards: bool = False) -> None:
        self._context, self._name, self._slices = context, name, stack.slices
        self._backwards = backwards
        self._gaps = Valueless(floor_of(stack.series.modality))
        self._between = None if stack.uniform else to_uniform(stack.coordinates)
        self._at_hand: dict[int, Tensor] = {}
        self._decoded: dict[int, Tensor] = {}  # where slices lie on either side of a plane
        self.shape = grid_shape(stack)

    @property
    def floor(self) -> np.float32:
        """What stands where there is no image."""
        return self._gaps.floor

    def slice(self, number: int) -> Pixels:
        """As it was taken."""
        check(self._context.cancelled)
        self._context.decoder.ahead(self._next(number))
        return self._gaps.see(self._context.decoder.take(self._slices[number]))[0]

    def slab(self, low: int, high: int) -> Tensor:
        self._at_hand = {n: plane for n, plane in self._at_hand.items() if low <= n <= high}
        numbers = range(low, high + 1)
        for n in reversed(numbers) if self._backwards else numbers:
            if n not in self._at_hand:
                self._at_hand[n] = self._plane(n)
        return torch.stack([self._at_hand[n] for n in numbers])[None]

    def tell(self) -> None:
        """Say how many voxels had no value."""
        if self._gaps.voxels:
            missing = f"{self._gaps.voxels} voxels have no finite value: taken as {self.floor:g}"
            self._context.warn(f"channel {self._name}: {missing}")

    def _plane(self, n: int) -> Tensor:
        if self._between is None:
            return torch.from_numpy(self.slice(n))
        ends = sorted({int(self._between.lower[n]), int(self._between.upper[n])}, reverse=self._backwards)
        known = self._decoded
        self._decoded = {m: known[m] if m in known else torch.from_numpy(self.slice(m)) for m in ends}
        return self._between.mix(self._decoded.__getitem__, n)

    def _next(self, number: int) -> tuple[Slice, ...]:
        if self._backwards:
            return self._slices[max(number + 1 - AHEAD, 0) : number + 1][::-1]
        return self._slices[number : number + AHEAD]


class Sections:
    """Planes across an image's slices: along its rows (axis 1) or its columns (axis 2), (rows or columns, slices, ...).

    All slices are read before the first one is given.
    """

    def __init__(self, image: ImagePlanes, axis: int) -> None:
        slices, across, beside = image.shape[0], image.shape[axis], image.shape[3 - axis]
        self._image, self._axis = image, axis
        self._descriptor: int | None = None
        self.shape = (across, slices, beside)

    def slab(self, low: int, high: int) -> Tensor:
        """Raises OutputNotWritable where there is no room for temporary files."""
        if self._descriptor is None:
            self._descriptor = self._written()
        _, *plane = self.shape
        size = 4 * plane[0] * plane[1]
        read = os.pread(self._descriptor, size * (high + 1 - low), size * low)
        return torch.from_numpy(np.frombuffer(read, np.float32).reshape(1, -1, *plane).copy())

    def _written(self) -> int:
        _, slices, beside = self.shape
        try:
            file = tempfile.TemporaryFile(buffering=0, prefix="medseg-")  # noqa: SIM115 - closed when we are dropped
            weakref.finalize(self, file.close)
            for first in range(0, slices, _AT_ONCE):
                some = self._image.slab(first, min(first + _AT_ONCE, slices) - 1)[0]
                for n, section in enumerate(some.movedim(self._axis, 0).contiguous().numpy()):
                    _write(file.fileno(), section.tobytes(), 4 * beside * (n * slices + first))
        except OSError as error:
            why = f"{error.strerror or error}, for an image whose slices lie across the reference's"
            raise OutputNotWritable(Path(tempfile.gettempdir()), why) from error
        return file.fileno()


def _write(descriptor: int, packed: bytes, begin: int) -> None:
    written = 0
    while written < len(packed):
        written += os.pwrite(descriptor, packed[written:], begin + written)


def nearest_axis(matrix: Vector, size: tuple[int, int], stack: Stack) -> int:
    """The axis of an image along which a slice of the reference, of `size`, meets the least of it; 0 if its own slices.

    matrix: 4x4, from (k, j, i, 1) of the reference to those of the image.
    """
    return int(np.argmin([reach(matrix, size, stack, axis) for axis in range(3)]))


def reach(matrix: Vector, size: tuple[int, int], stack: Stack, axis: int) -> int:
    """Voxels of the planes along an axis of an image that a slice of the reference meets."""
    shape = grid_shape(stack)
    planes = float(np.abs(matrix[axis, 1:3]) @ (np.array(size) - 1.0)) + 2.0
    return math.ceil(min(planes, shape[axis]) * math.prod(shape) / shape[axis])


def along(image: ImagePlanes, axis: int, matrix: Vector) -> tuple[Slabs, Vector]:
    """An image's planes along one of its axes, and the map of `nearest_axis` to their grid."""
    return (image, matrix) if axis == 0 else (Sections(image, axis), matrix[[axis, 0, 3 - axis, 3]])
