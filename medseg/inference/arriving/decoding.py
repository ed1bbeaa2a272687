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
    """Decodes slices in threads; an error of one comes up where that one is taken."""

    def __init__(self) -> None:
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
        for one in slices:
            if id(one) not in self._coming and id(one) not in self._kept:
                self._coming[id(one)] = one, self._pool.submit(one.read)

    def keep(self, one: Slice) -> None:
        """Decode it now; it waits on disk until it is taken. Waits itself while too many are being decoded."""
        while len(self._keeping) >= AHEAD:
            wait([self._keeping.popleft()])
        if self._store is None:
            try:
                self._store = PlaneStore()
            except OSError:  # no room for temporary files: it is decoded when it is taken
                return
        store = self._store
        kept = self._pool.submit(_keep, one, store)
        self._kept[id(one)] = one, kept
        self._keeping.append(kept)

    def take(self, one: Slice) -> Pixels:
        """A plane, decoded once."""
        if id(one) not in self._kept:
            self.ahead([one])
            return self._coming.pop(id(one))[1].result()
        where = self._kept[id(one)][1].result()
        if where is None or self._store is None:
            return one.read()
        return self._store.get(where, (one.plane.rows, one.plane.columns))


def _keep(one: Slice, store: PlaneStore) -> tuple[int, int, str] | None:
    """Where the plane was put; None where the disk had no room: it is decoded again when it is taken."""
    plane: Any = one.read()
    try:
        return store.put(plane)
    except OSError:
        return None
