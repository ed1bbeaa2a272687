"""DICOMweb as an application of its own, mounted beside the pages: FastAPI, whose OpenAPI clients and testers read."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.ledger.ledger import LedgerUnavailable
from gateway.web.dicomweb import problems, retrieve, search, show, store
from gateway.web.site import Site
from medseg import __version__
from medseg.errors import InputError


def make_dicomweb(site: Site, stow: store.Stow) -> FastAPI:
    """No page of FastAPI's own: these load scripts from elsewhere."""
    app = FastAPI(
        title="medseg DICOMweb",
        version=__version__,
        description="QIDO-RS, WADO-RS and STOW-RS (PS3.18 chapter 10) over what the gateway has.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            problems.Problem: problems.problem,
            RequestValidationError: problems.invalid,
            HTTPException: problems.refused,
            LedgerUnavailable: problems.unavailable,
            InputError: _not_acceptable,
        },
    )
    app.state.site, app.state.stow = site, stow
    for part in (search, retrieve, show, store):
        app.include_router(part.router)
    return app


async def _not_acceptable(_: Request, error: Exception) -> Response:
    """An object that cannot be read, or decoded, is here all the same: it may be asked for as it is."""
    return problems.answer(406, f"{error}: ask for application/dicom with transfer-syntax=* to have it as it is stored")
