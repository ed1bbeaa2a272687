"""Work handed on to a thread beside, so that who hands it on need not wait for it.

with BackgroundConsumer(consume, size, room) as beside:        consume(items): takes them one by one, in the thread
    beside.put(item)                               waits while `room` is taken by items that wait
    beside.settle()                                waits until nothing waits
# consume has come to its end; what it raised was raised in one of these
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundConsumer(Generic[T]):
    """A thread that consumes what is put, in its order. size: of an item, in the unit of `room`."""

    def __init__(self, consume: Callable[[Iterator[T]], None], size: Callable[[T], int], room: int) -> None:
        self._consume, self._size, self._room = consume, size, room
        self._changed = Condition()
        self._waiting: deque[T] = deque()
        self._taken = 0
        self.busy_s = 0.0  # seconds that items took
        self._idle = self._ended = self._left = self._over = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="restore", daemon=True)

    def __enter__(self) -> BackgroundConsumer[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._ended, self._left = True, kind is not None
            self._changed.notify_all()
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, item: T) -> None:
        """Raises what `consume` raised."""
        size = self._size(item)
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._taken == 0 or self._taken + size <= self._room)
            self._raise()
            self._waiting.append(item)
            self._taken += size
            self._changed.notify_all()

    def settle(self) -> None:
        """Return once all that was put has been consumed, as far as that is possible without more. Raises what
        `consume` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or (self._idle and not self._waiting))
            self._raise()

    def lighten(self, most: int) -> None:
        """Return once no more than `most` of the room is taken by items that wait. Raises what `consume` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._taken <= most)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._consume(self._items())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _items(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ended or self._waiting)
                if self._left or not self._waiting:
                    return
                self._idle = False
                item = self._waiting.popleft()
                self._taken -= self._size(item)
                self._changed.notify_all()
            begin = time.perf_counter()
            yield item
            self.busy_s += time.perf_counter() - begin
