"""A stack whose planes pass one by one, and wait on disk for the network: never is a volume in memory.

as they come        what is not zero, lowest and highest values -> box, and what normalising must know of the whole
as they are needed  from the disk -> the plans' axes -> cropped -> normalised -> rows and columns -> along the slices
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.nnunet.model import NnUNet
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.errors import OutputNotWritable
from medseg.inference.arriving.decoding import AHEAD, READERS
from medseg.inference.nnunet.along import along
from medseg.inference.nnunet.prepare import Box, Grids, Mask, around, normalise_part
from medseg.inference.nnunet.resample import Array, Zoom, nearest_slices, overshot, separate_axis, zoomed
from medseg.inference.nnunet.source import plans_axes, reader_axes, spacing_of
from medseg.inference.planes import PlaneStore

S = TypeVar("S")
T = TypeVar("T")


class ValueRange(NamedTuple):
    """The lowest and the highest value of a channel."""

    low: np.float32
    high: np.float32

    @classmethod
    def of(cls, plane: Pixels) -> ValueRange:
        return cls(plane.min(), plane.max())

    def and_(self, other: ValueRange) -> ValueRange:
        return ValueRange(min(self.low, other.low), max(self.high, other.high))


class _Seen(NamedTuple):
    """A slice as it lies on disk, channel by channel. there: in which of its rows and columns there is anything."""

    k: int
    planes: tuple[tuple[int, int, str], ...]
    there: tuple[Mask, Mask]
    limits: tuple[ValueRange, ...]


class PassedStack:
    """The planes of a uniform stack, on disk; complete once all were added."""

    def __init__(self, stack: Stack) -> None:
        """Raises OutputNotWritable where there is no room for temporary files."""
        self.stack = stack
        self._planes: dict[int, tuple[tuple[int, int, str], ...]] = {}
        self._there = [np.zeros(size, np.bool_) for size in stack.shape]
        self._limits: tuple[ValueRange, ...] = ()
        try:
            self._store = PlaneStore()
        except OSError as error:
            raise _no_room(error) from error

    def add(self, slices: Iterable[tuple[int, Sequence[Pixels]]]) -> None:
        """slices: the number of each, and its plane (rows, columns) in each channel. Raises OutputNotWritable."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="keep") as pool:
            try:
                for seen in ahead(pool, lambda given: self._look_at(*given), slices):
                    self._planes[seen.k] = seen.planes
                    self._there[0][seen.k] = bool(seen.there[0].any())
                    self._there[1] |= seen.there[0]
                    self._there[2] |= seen.there[1]
                    self._limits = _wider(self._limits, seen.limits)
            except OSError as error:
                raise _no_room(error) from error

    def _look_at(self, k: int, planes: Sequence[Pixels]) -> _Seen:
        singles = [plane.astype(np.float32, copy=False) for plane in planes]
        there = np.logical_or.reduce([plane != 0 for plane in singles])
        kept = tuple(self._store.put(plane) for plane in singles)
        return _Seen(k, kept, (there.any(axis=1), there.any(axis=0)), tuple(map(ValueRange.of, singles)))

    def plane(self, channel: int, k: int) -> Pixels:
        """(rows, columns)."""
        return self._store.get(self._planes[k][channel], self.stack.shape[1:])

    def box(self) -> Box:
        """Around all that is not zero (k, j, i): holes are within it."""
        return around(self._there)

    def limits(self, channel: int) -> ValueRange:
        """In the box."""
        box = self.box()
        if box == tuple(slice(0, size) for size in self.stack.shape):
            return self._limits[channel]
        inside = [ValueRange.of(self.plane(channel, k)[box[1:]]) for k in range(box[0].start, box[0].stop)]
        return ValueRange(min(one.low for one in inside), max(one.high for one in inside))


def _wider(limits: tuple[ValueRange, ...], others: tuple[ValueRange, ...]) -> tuple[ValueRange, ...]:
    return tuple(one.and_(other) for one, other in zip(limits, others, strict=True)) if limits else others


class PassingVolume:
    """What a model's windows see of a passed stack, as often as it is asked for. zoom: of its planes.

    Raises InputError for values that a channel's scheme does not take.
    """

    def __init__(self, passed: PassedStack, model: NnUNet, zoom: Zoom = overshot) -> None:
        self._passed, self._model, self._zoom = passed, model, zoom
        stack, box, shape = passed.stack, passed.box(), passed.stack.shape
        axes = plans_axes(reader_axes(stack, shape, model), model)
        self._order, self._flipped = axes.order, axes.flipped
        z, y, x = axes.order
        turned = (_turned(box[axis], shape[axis], flip) for axis, flip in zip(axes.order, axes.flipped, strict=True))
        spacing = tuple(map(float, spacing_of(stack, axes, model)))
        self.grids = Grids.of((shape[z], shape[y], shape[x]), _box(*turned), spacing, model)
        self._limits = [passed.limits(number) for number in range(len(model.channels))]

    def planes(self) -> Iterator[Tensor]:
        """(channels, y, x) in single on the network's grid, one after the other."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="prepare") as pool:
            for planes in zip(*(self._channel(pool, number) for number in range(len(self._limits))), strict=True):
                yield torch.from_numpy(np.stack(planes))

    def _channel(self, pool: ThreadPoolExecutor, number: int) -> Iterator[Array]:
        grids, order = self.grids, self._model.image.order
        count, size = grids.cropped[0], grids.shape[1:]
        if grids.shape == grids.cropped:
            yield from ahead(pool, lambda n: self._normalised(number, n), range(count))
        elif separate_axis(self._model.image, grids.spacing_mm, grids.model_mm) is None:
            flat = ahead(pool, lambda n: self._in_plane(number, n), range(count))
            low, high = self._between(number)
            for plane in along(flat, count, grids.shape[0], order):
                yield np.clip(plane, low, high).astype(np.float32)
        else:
            chosen = nearest_slices(count, grids.shape[0]).tolist()
            slices = list(dict.fromkeys(chosen))
            flat = ahead(pool, lambda n: zoomed(self._double(number, n), size, order, self._zoom), slices)
            for n, plane in zip(slices, flat, strict=True):
                yield from [plane.astype(np.float32)] * chosen.count(n)

    def _in_plane(self, number: int, n: int) -> Array:
        plane, size = self._double(number, n), self.grids.shape[1:]
        return plane if plane.shape == size else self._zoom(plane, size, self._model.image.order)

    def _double(self, number: int, n: int) -> Array:
        return self._normalised(number, n).astype(np.float64)

    def _normalised(self, number: int, n: int) -> Array:
        """Plane n of the box."""
        z, y, x = self.grids.box
        plane = self._passed.plane(number, self.slice_of(z.start + n))
        rows, columns = self._turns()
        plane = (plane if self._order[1] == 1 else plane.T)[rows, columns][y, x]
        plane = np.array(plane, order="C")
        normalise_part(plane, self._model.channels[number], *self._limits[number])
        return plane

    def _between(self, number: int) -> tuple[float, float]:
        """What a channel's lowest and highest value are once they are normalised."""
        ends = np.array(self._limits[number], np.float32)
        normalise_part(ends, self._model.channels[number], *self._limits[number])
        return float(ends.min()), float(ends.max())

    def slice_of(self, n: int) -> int:
        """The slice of the stack that plane n of the whole volume is."""
        return self.grids.whole[0] - 1 - n if self._flipped[0] else n

    def back(self, labels: Array) -> Array:
        """A plane in the plans' axes as rows and columns of the stack; a view."""
        rows, columns = self._turns()
        turned = labels[rows, columns]
        return turned if self._order[1] == 1 else turned.T

    def _turns(self) -> tuple[slice, slice]:
        rows, columns = (slice(None, None, -1 if flipped else 1) for flipped in self._flipped[1:])
        return rows, columns


def _turned(part: slice, size: int, flipped: bool) -> slice:
    return slice(size - part.stop, size - part.start) if flipped else part


def _box(z: slice, y: slice, x: slice) -> Box:
    return z, y, x


def ahead(pool: ThreadPoolExecutor, make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What is made of items, in their order; a few of the next ones are being made meanwhile."""
    coming: deque[Future[T]] = deque()
    for item in items:
        coming.append(pool.submit(make, item))
        if len(coming) > AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _no_room(error: OSError) -> OutputNotWritable:
    why = f"{error.strerror or error}, for planes that wait for the network"
    return OutputNotWritable(Path(tempfile.gettempdir()), why)
