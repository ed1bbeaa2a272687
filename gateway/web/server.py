"""The web process: the site behind uvicorn, on the loopback address alone, until it is told to stop."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn

from gateway.ledger.ledger import Ledger
from gateway.settings.current import Live
from gateway.settings.model import LOOPBACK
from gateway.web.app import make_app
from gateway.web.dicomweb.store import Stow
from gateway.web.protocol import Http
from gateway.web.site import Site

logger = logging.getLogger(__name__)

LOOK_S = 0.2
GRACE_S = 3  # for answers under way, at a stop
CONNECTIONS = 64
HEADER_BYTES = 1 << 14


def run(live: Live, stop: threading.Event) -> None:
    """Serve until told to stop. Raises OSError where the port is taken."""
    gateway = live.now.gateway
    with (
        Ledger(gateway.database) as ledger,
        Stow(ledger, live) as stow,
        socket.create_server((LOOPBACK, gateway.http_port)) as listening,
    ):
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(Site(ledger, live), stow),
                log_config=None,
                access_log=False,
                http=Http,
                server_header=False,
                lifespan="off",
                ws="none",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=HEADER_BYTES,
            )
        )
        # In a thread: uvicorn would take the signals of a main one.
        serving = threading.Thread(target=server.run, args=([listening],), name="http", daemon=True)
        serving.start()
        logger.info("pages at http://%s:%d", LOOPBACK, gateway.http_port, extra={"event": "web.listening"})
        while not stop.wait(LOOK_S):
            if not serving.is_alive():
                raise RuntimeError("uvicorn ended by itself")
            stow.step()
        server.should_exit = True
        serving.join(2 * GRACE_S)
