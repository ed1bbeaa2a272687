"""Planes decoded while other work goes on: a little ahead, or kept on disk until their turn comes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

from medseg.dicom.instance import Pixels, Slice
from medseg.inference.planes import PlaneStore

READERS: Final = min(4, os.cpu_count() or 1)
AHEAD: Final = 2 * READERS


class Decoder:
    """Decodes slices in threads; an error of one comes up where that one is taken.

    keeps: all that is decoded waits on disk, so that it can be had again.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self._keeps = keeps
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="decode")
        # By identity, with the slice itself: its number goes to another once it is gone.
        self._coming: dict[int, tuple[Slice, Future[Pixels]]] = {}
        self._kept: dict[int, tuple[Slice, Future[tuple[int, int, str] | None]]] = {}
        self._keeping: deque[Future[tuple[int, int, str] | None]] = deque()
        self._store: PlaneStore | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ahead(self, slices: Iterable[Slice]) -> None:
        """Begin with these: they are taken soon, and wait in memory."""
        for slice_ in slices:
            if self._keeps and id(slice_) not in self._kept:
                self.keep(slice_)
            if id(slice_) not in self._coming and id(slice_) not in self._kept:
                self._coming[id(slice_)] = slice_, self._pool.submit(slice_.read)

    def keep(self, slice_: Slice) -> None:
        """Decode it now; it waits on disk until it is taken. Waits itself while too many are being decoded."""
        while len(self._keeping) >= AHEAD:
            wait([self._keeping.popleft()])
        if self._store is None:
            try:
                self._store = PlaneStore()
            except OSError:  # no room for temporary files: it is decoded when it is taken
                return
        store = self._store
        kept = self._pool.submit(_keep, slice_, store)
        self._kept[id(slice_)] = slice_, kept
        self._keeping.append(kept)

    def take(self, slice_: Slice) -> Pixels:
        """A plane, decoded once."""
        if id(slice_) not in self._kept:
            self.ahead([slice_])
        if id(slice_) in self._coming:
            return self._coming.pop(id(slice_))[1].result()
        return self.again(slice_)

    def again(self, slice_: Slice) -> Pixels:
        """A plane that was kept; any other is decoded by the thread that asks. Safe to call from many threads."""
        kept = self._kept.get(id(slice_))
        place = None if kept is None else kept[1].result()
        if place is None or self._store is None:
            return slice_.read()
        return self._store.get(place, (slice_.plane.rows, slice_.plane.columns))


def _keep(slice_: Slice, store: PlaneStore) -> tuple[int, int, str] | None:
    """Where the plane was put; None where the disk had no room: it is decoded again when it is taken."""
    plane: Any = slice_.read()
    try:
        return store.put(plane)
    except OSError:
        return None
