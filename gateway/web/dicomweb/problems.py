"""What a request is answered with that cannot be served: a status (PS3.18 8.5), and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from gateway.ledger.ledger import LedgerUnavailable

PROBLEM: Final = "application/problem+json"  # RFC 9457
RETRY_AFTER_S: Final = 10


class Problem(Exception):
    """Raised by whoever cannot serve a request."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


def not_here(what: str) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, f"{what} is not here")


def answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    told = {"status": int(status), "title": HTTPStatus(status).phrase, "detail": detail}
    return JSONResponse(told, status, headers=headers, media_type=PROBLEM)


async def problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return answer(error.status, error.detail, error.headers)


async def invalid(_: Request, error: Exception) -> Response:
    """What FastAPI found; what was given is not repeated, since it may name a patient."""
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return answer(HTTPStatus.BAD_REQUEST, wrong or "malformed request")


async def refused(_: Request, error: Exception) -> Response:
    """No such path, or no such method there."""
    assert isinstance(error, HTTPException)
    return answer(error.status_code, f"{HTTPStatus(error.status_code).phrase}: see openapi.json", error.headers)


async def unavailable(_: Request, error: Exception) -> Response:
    assert isinstance(error, LedgerUnavailable)
    return answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": str(RETRY_AFTER_S)})
