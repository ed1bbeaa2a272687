"""The site as an ASGI application: each module brings its routes; who may ask, and what a browser may do, is said here.

The site is bound to the loopback address and asks nobody who they are, so that no other site's page may read it: the
Host header must name this machine (against DNS rebinding), and nothing is shared, framed, or loaded from elsewhere.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.ledger.ledger import LedgerUnavailable
from gateway.settings.model import LOOPBACK
from gateway.web import health, metrics, pages
from gateway.web.dicomweb.app import make_dicomweb
from gateway.web.dicomweb.places import ROOT
from gateway.web.dicomweb.store import Stow
from gateway.web.site import Site

HOSTS = (LOOPBACK, "localhost")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {pages.STYLE_HASH}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def make_app(site: Site, stow: Stow) -> Starlette:
    return Starlette(
        routes=[
            *health.routes(site),
            *metrics.routes(site),
            *pages.routes(site),
            Mount(ROOT, make_dicomweb(site, stow)),
        ],
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False),
        ],
        exception_handlers={LedgerUnavailable: _unavailable},
    )


class SecurityHeaders:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _unavailable(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 503)
