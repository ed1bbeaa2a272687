"""Where an association's reactor waits, and how others know that it does."""

from __future__ import annotations

import threading

from pynetdicom.association import Association


class Checkpoint(threading.Event):
    """Open unless somebody closed it, or the reactor is parked for want of work.

    waiting: whether the reactor is here. Whoever sends closes the checkpoint and goes on once this says so: the reactor
    cannot take an answer that somebody else waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._change = threading.Condition()
        self._parked = False
        self.waiting = False
        self.set()

    def park(self) -> None:
        """Keep the reactor here when it comes; nobody waits for it."""
        self._parked = True

    def unpark(self) -> None:
        with self._change:
            self._parked = False
            self._change.notify_all()

    def set(self) -> None:
        with self._change:
            self._parked = False
            super().set()
            self._change.notify_all()

    def clear(self) -> None:
        with self._change:
            super().clear()

    def hold(self, timeout_s: float) -> None:
        """Close it, and wait until the reactor is here: that of a lost association never comes."""
        with self._change:
            super().clear()
            self._change.wait_for(lambda: self.waiting, timeout_s)

    def wait(self, timeout: float | None = None) -> bool:
        with self._change:
            self.waiting = True
            self._change.notify_all()
            try:
                return self._change.wait_for(lambda: not self._parked and self.is_set(), timeout)
            finally:
                self.waiting = False


class PausingAssociation(Association):
    """pynetdicom's association, which knows whether its reactor waits.

    pynetdicom's own flag is lowered late, so that the reactor could still take the answer ("unexpected C-STORE service
    message"); it is up while the reactor serves a request, so that what is sent could come between the parts of its
    answer; and the thread that serves a report lowers it although the reactor waits, so that nobody could send any
    more.
    """

    _reactor_checkpoint: Checkpoint

    @property
    def _is_paused(self) -> bool:
        return self._reactor_checkpoint.waiting or not self.is_alive()

    @_is_paused.setter
    def _is_paused(self, _: bool) -> None:
        pass
