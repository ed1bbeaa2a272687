"""A thread beside the jobs that looks, again and again, at what the ledger says is due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from gateway.ledger.ledger import LedgerUnavailable
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings

logger = logging.getLogger(__name__)


def look_until(
    stop: threading.Event, step: Callable[[GatewaySettings, float], None], live: Live, *, every_s: float, event: str
) -> None:
    """Look until told to stop; never raises. step: takes the settings as they are and the time. event: of the log where
    the ledger is away."""
    while not stop.wait(every_s):
        try:
            step(live.now, time.time())
        except LedgerUnavailable as error:
            logger.error("%s", error, extra={"event": event})
