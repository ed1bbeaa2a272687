"""Label planes kept compressed in memory: a few kB each, so thousands are no burden."""

from __future__ import annotations

import os
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from threading import Lock
from typing import TypeAlias

import numpy as np

from medseg.bundle.bundle import Segment
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.inference.labels import LabelPlane

_Packed: TypeAlias = tuple[int, int, int]
"""The first row in which there is anything; where all from there to the last such row lies, compressed: begin, end."""


class PlaneSpool:
    """Planes one behind the other, all of one shape: (rows, columns), or (channels, rows, columns).

    Iterating yields them as they were given, as often as wanted. Channels are packed one by one, and what is all zeros
    takes no room, so that one of hundred channels can be had without the others. All of them are in one block: small
    ones that stay would part the memory that slices come and go in.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._planes: list[tuple[_Packed, ...]] = []
        self._shape: tuple[int, ...] = ()

    def put(self, plane: LabelPlane) -> None:
        self._shape = plane.shape
        self._planes.append(tuple(map(self._packed, plane if plane.ndim == 3 else plane[None])))

    def channel(self, k: int, channel: int) -> LabelPlane:
        """One channel (rows, columns) of plane k; channel 0 where there are none."""
        return self._unpacked(self._planes[k][channel])

    def __len__(self) -> int:
        return len(self._planes)

    def __getitem__(self, k: int) -> LabelPlane:
        channels = [self._unpacked(one) for one in self._planes[k]]
        return channels[0] if len(self._shape) == 2 else np.stack(channels)

    def __iter__(self) -> Iterator[LabelPlane]:
        return (self[k] for k in range(len(self)))

    def _packed(self, plane: LabelPlane) -> _Packed:
        rows = np.flatnonzero(plane.max(axis=1))
        if not rows.size:
            return 0, 0, 0
        first, begin = int(rows[0]), len(self._bytes)
        self._bytes += zlib.compress(np.ascontiguousarray(plane[first : rows[-1] + 1], np.uint8).tobytes(), 1)
        return first, begin, len(self._bytes)

    def _unpacked(self, packed: _Packed) -> LabelPlane:
        plane = np.zeros(self._shape[-2:], np.uint8)
        first, begin, end = packed
        if end > begin:
            rows = np.frombuffer(zlib.decompress(self._bytes[begin:end]), np.uint8).reshape(-1, self._shape[-1])
            plane[first : first + len(rows)] = rows
        return plane


class LabelSpool(PlaneSpool):
    """A LabelSink that keeps what the pipeline has let go of."""

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        self.stack, self.segments, self.exclusive = stack, segments, exclusive
        self._shape = stack.shape[1:] if exclusive else (len(segments), *stack.shape[1:])

    def plane(self, k: int, labels: LabelPlane) -> None:
        if k != len(self) or labels.shape != self._shape:
            raise ValueError(f"plane {k} of shape {labels.shape}: expected plane {len(self)} of {self._shape}")
        self.put(labels)

    def end(self) -> None:
        pass


class PlaneStore:
    """Planes in a file without a name: the same values out as in, gone when it is dropped or when we die.

    They are not compressed: that takes several times what it takes to read most slices again.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0, prefix="medseg-")  # noqa: SIM115 - closed when we are dropped
        weakref.finalize(self, self._file.close)
        self._end = 0
        self._lock = Lock()

    def put(self, plane: Pixels) -> tuple[int, int, str]:
        """Where the plane lies; for `get`. Safe to call from many threads. Raises OSError."""
        with np.errstate(invalid="ignore"):
            whole = plane.astype(np.int16)
        values = whole if np.array_equal(whole, plane) else plane  # as they mostly come: half of the bytes
        packed = values.tobytes()
        with self._lock:
            begin, self._end = self._end, self._end + len(packed)
        written = 0
        while written < len(packed):
            written += os.pwrite(self._file.fileno(), packed[written:], begin + written)
        return begin, len(packed), values.dtype.str

    def get(self, where: tuple[int, int, str], shape: tuple[int, int]) -> Pixels:
        begin, size, kind = where
        values = np.frombuffer(os.pread(self._file.fileno(), size, begin), kind)
        return values.reshape(shape).astype(np.float32)
