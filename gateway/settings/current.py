"""The settings as they are now: a reload replaces them whole, in each process of the service.

Who looks at `now` once for a piece of work sees settings that belong together.
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
