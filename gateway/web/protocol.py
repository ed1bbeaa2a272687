"""uvicorn's HTTP, for whoever connects: what is no HTTP is told of with its address and not each time, and a connection
that does not bring its request to an end has to go.

`H11Protocol` (uvicorn 0.34 and later) waits for ever for the end of a request that was begun, and counts each such
connection against the limit, so that a few silent ones would have health answered with 503.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.dimse.noise import Noise

logger = logging.getLogger(__name__)

REQUEST_S = 5.0  # for a request to be whole
NOISE = Noise()


class Http(H11Protocol):
    """A connection."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waits is not None:
            self._waits.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._note("it is no HTTP, or too long")
        super().send_400_response(msg)

    def _wait(self) -> None:
        """Look after a while whether there is a request: data that come meanwhile make that no later."""
        if self._waits is None:
            self._waits = self.loop.call_later(REQUEST_S, self._look)

    def _look(self) -> None:
        self._waits = None
        begun, _ = self.conn.trailing_data
        if self.cycle is not None and (not self.cycle.response_complete or not begun):
            return  # it is being answered, or was: how long it may be idle then, uvicorn knows
        if not self.transport.is_closing():
            self._note(f"it made no request in {REQUEST_S:.0f} s")
            self.transport.close()

    def _note(self, why: str) -> None:
        now, host = time.monotonic(), str(self.client[0]) if self.client else ""
        facts: dict[str, Any] = {"event": "connection.refused"}
        for noisy, count in NOISE.due(now):
            logger.warning("%d more connections to the pages ended", count, extra=facts | {"host": noisy})
        if NOISE.heard(host, now):
            logger.warning("connection to the pages ended: %s", why, extra=facts | {"host": host})
