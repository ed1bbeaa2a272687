"""Slices that several bundles look at: each decoded once, whoever asks for it first.

SharedPlanes    of a series: planes wait on disk until nobody holds them any more
Share           one bundle's part in them, which counts what was decoded for it
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TypeAlias

from medseg.dicom.instance import Instance, Pixels, Slice
from medseg.dicom.series import SliceSource, SourceOf, Stack
from medseg.inference.planes import PlaneStore

_Place: TypeAlias = tuple[int, int, str] | None
"""Where a plane lies; None where the disk had no room: it is decoded again."""


class SharedPlanes:
    """Planes by the instance, as an object in memory, and the frame that they are of."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._store: PlaneStore | None = None
        # With the instance itself: its number goes to another once it is gone.
        self._places: dict[tuple[int, int | None], tuple[Instance, Future[_Place]]] = {}

    def share(self) -> Share:
        return Share(self)

    def read(self, slice_: Slice) -> tuple[Pixels, bool]:
        """A plane, and whether it was decoded for this. Raises what decoding it raises, to all who wait for it."""
        assert slice_.instance is not None
        key, mine = (id(slice_.instance), slice_.frame), Future[_Place]()
        with self._lock:
            _, place = self._places.setdefault(key, (slice_.instance, mine))
        if place is not mine:
            where = place.result()
            if where is None or self._store is None:
                return slice_.read(), True
            return self._store.get(where, (slice_.plane.rows, slice_.plane.columns)), False
        try:
            plane = slice_.read()
            mine.set_result(self._put(plane))
        except BaseException as error:
            with self._lock:
                del self._places[key]  # who asks later may have more luck, as with memory
            mine.set_exception(error)
            raise
        return plane, True

    def _put(self, plane: Pixels) -> _Place:
        try:
            with self._lock:
                self._store = self._store or PlaneStore()
            return self._store.put(plane)
        except OSError:
            return None


class Share:
    """decoded: how many planes were decoded because this bundle asked first."""

    def __init__(self, planes: SharedPlanes) -> None:
        self._planes, self._lock = planes, Lock()
        self.decoded = 0

    def stack(self, stack: Stack) -> Stack:
        """The same with slices that are shared; one of several channels as it is."""
        return stack if stack.channels else replace(stack, slices=tuple(map(self.slice, stack.slices)))

    def slice(self, slice_: Slice) -> Slice:
        return slice_ if slice_.instance is None else replace(slice_, read=partial(self._read, slice_))

    def _read(self, slice_: Slice) -> Pixels:
        plane, is_new = self._planes.read(slice_)
        with self._lock:
            self.decoded += is_new
        return plane


class SharedSource(SourceOf):
    """A source whose slices are shared."""

    def __init__(self, source: SliceSource, share: Share) -> None:
        super().__init__(source)
        self._share = share

    def __iter__(self) -> Iterator[Slice | None]:
        return (None if one is None else self._share.slice(one) for one in self._source)
