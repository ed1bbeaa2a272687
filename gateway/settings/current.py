"""The settings as they are now: a reload replaces them whole, in each process of the service.

Each loop looks at `now` once for a piece of work, and hands what it sees to `step(settings, …)`: settings that belong
together, and the ones before for what is being done. What is asked in the middle of it (whom a result goes to, how long
to wait after a failure) looks again.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from gateway.settings.model import GatewaySettings


class Live:
    """Settings that may be replaced at any moment."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.now = settings

    def follow(self, news: Connection) -> None:
        """Take what comes through a pipe, until its other end is closed."""
        while True:
            try:
                self.now = news.recv()
            except (EOFError, OSError):
                return
