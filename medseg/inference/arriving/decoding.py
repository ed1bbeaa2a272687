"""Planes decoded while other work goes on: a little ahead, or kept on disk until their turn comes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, TypeAlias

from medseg.dicom.instance import Pixels, Slice
from medseg.inference.planes import PlaneStore

READERS: Final = min(4, os.cpu_count() or 1)
AHEAD: Final = 2 * READERS

_Place: TypeAlias = tuple[int, int, str] | None
"""Where a plane lies on disk; None where that had no room: it is decoded again."""


class Decoder:
    """Decodes slices in threads; an error of one comes up where that one is taken.

    keeps: all that is decoded lies on disk, too, so that it can be had again.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self._keeps = keeps
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="decode")
        # By identity, with the slice itself: its number goes to another once it is gone.
        self._coming: dict[int, tuple[Slice, Future[tuple[Pixels, _Place]]]] = {}
        self._kept: dict[int, tuple[Slice, Callable[[], _Place]]] = {}
        self._keeping: deque[Future[_Place]] = deque()
        self._store = _store()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ahead(self, slices: Iterable[Slice]) -> None:
        """Begin with these: they are taken soon, and wait in memory."""
        for slice_ in slices:
            if id(slice_) not in self._coming and id(slice_) not in self._kept:
                self._coming[id(slice_)] = slice_, self._pool.submit(self._decoded, slice_)

    def keep(self, slice_: Slice) -> None:
        """Decode it now; it waits on disk until it is taken. Waits itself while too many are being decoded."""
        while len(self._keeping) >= AHEAD:
            wait([self._keeping.popleft()])
        if self._store is None:  # it is decoded when it is taken
            return
        place = self._pool.submit(self._put, slice_)
        self._kept[id(slice_)] = slice_, place.result
        self._keeping.append(place)

    def take(self, slice_: Slice) -> Pixels:
        """A plane, decoded once."""
        if id(slice_) in self._kept:
            return self.again(slice_)
        self.ahead([slice_])
        plane, place = self._coming.pop(id(slice_))[1].result()
        if place is not None:
            self._kept[id(slice_)] = slice_, lambda: place
        return plane

    def again(self, slice_: Slice) -> Pixels:
        """A plane that was kept; any other is decoded by the thread that asks. Safe to call from many threads."""
        kept = self._kept.get(id(slice_))
        place = None if kept is None else kept[1]()
        if place is None or self._store is None:
            return slice_.read()
        return self._store.get(place, (slice_.plane.rows, slice_.plane.columns))

    def _decoded(self, slice_: Slice) -> tuple[Pixels, _Place]:
        plane = slice_.read()
        return plane, self._placed(plane) if self._keeps else None

    def _put(self, slice_: Slice) -> _Place:
        return self._placed(slice_.read())

    def _placed(self, plane: Pixels) -> _Place:
        try:
            return None if self._store is None else self._store.put(plane)
        except OSError:
            return None


def _store() -> PlaneStore | None:
    """None where there is no room for temporary files."""
    try:
        return PlaneStore()
    except OSError:
        return None
