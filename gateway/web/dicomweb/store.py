"""STOW-RS (PS3.18 10.5): what is sent is stored as C-STORE stores it, and answered once it is there for good.

A request is one association of the ledger: its end completes the series that it brought, unless another follows it at
once (`gateway.complete.decision`); one that breaks off is an association that was aborted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from gateway.dicomweb.dataset_json import Json, value
from gateway.dicomweb.media import DICOM, DICOM_JSON, JSON, MULTIPART, Offer, media_types
from gateway.dicomweb.multipart import MalformedMultipart
from gateway.dimse.pdata import STORE_ERRORS
from gateway.dimse.store import AssociationInfo, AssociationLimits, Ending, RefusedCaller, StoreRefusal
from gateway.ledger import associations
from gateway.ledger.ledger import Ledger
from gateway.receive.refused import Refusals
from gateway.receive.request import RequestReception, StoreOutcome, TooMany
from gateway.receive.spool import Spool, Watermark
from gateway.settings.current import Live
from gateway.web.dicomweb.places import Place, accepted
from gateway.web.dicomweb.problems import RETRY_AFTER_S, Problem

logger = logging.getLogger(__name__)
router = APIRouter(tags=["store"])

CALLER: Final = "DICOMWEB"  # stands where an AE title would: in rules, in `allow_callers`, on the page
PAUSE_S: Final = 60.0  # inside a request
THREADS: Final = 32
_PART: Final = {"type": "string", "format": "binary"}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "content": {f'{MULTIPART}; type="{DICOM}"': {"schema": _PART}}}
}


class Stow:
    """Takes requests; one of a process, which `step`s it now and then."""

    def __init__(self, ledger: Ledger, live: Live) -> None:
        ledger.write(associations.lose_open_associations, time.time(), associations.REQUESTS)  # of one that died
        self._live = live
        self.spool = Spool(live.now.gateway.spool, ledger, Watermark.of(live.now.limits), associations.REQUESTS)
        self.refusals = Refusals(ledger, time.time)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stow")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown()
        self.refusals.step()

    def step(self) -> None:
        """Go by the settings as they are now, and write down what was refused."""
        self.spool.watermark = Watermark.of(self._live.now.limits)
        self.refusals.step()

    def open(self, host: str) -> AssociationInfo:
        """Let a request in. Raises Problem, LedgerUnavailable."""
        gateway, limits = self._live.now.gateway, self._live.now.limits
        peer = AssociationInfo(uuid.uuid4().hex, CALLER, gateway.ae_title, host)
        if not gateway.admits(CALLER, host, _addresses):
            why = f'{CALLER} is not in gateway.allow_callers: add "{CALLER}" to take what comes by STOW-RS'
            self.refusals.note(StoreRefusal(RefusedCaller.ASSOCIATION, CALLER, host, why))
            raise Problem(HTTPStatus.FORBIDDEN, why)
        later = {"Retry-After": str(RETRY_AFTER_S)}
        if not self.spool.has_room():
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the disk is full: send again later", later)
        if not self.spool.opened(peer, AssociationLimits(limits.associations, limits.per_caller)):
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "as many requests as may be are open: send later", later)
        logger.info("STOW request begins", extra={"event": "request.opened"} | peer.facts())
        return peer

    def close(self, peer: AssociationInfo, outcome: StoreOutcome, *, whole: bool) -> None:
        """A request is over. whole: all of it came."""
        ending = Ending.RELEASED if whole and not outcome.may_come_again else Ending.ABORTED
        told = f"{len(outcome.stored)} stored, {len(outcome.refused)} refused{'' if whole else ', then it broke off'}"
        level = logging.INFO if whole else logging.WARNING
        logger.log(level, "STOW request over: %s", told, extra={"event": "request.closed"} | peer.facts())
        try:
            self.spool.closed(peer, ending)
        except STORE_ERRORS:
            logger.exception("end of request not recorded", extra={"event": "association.unrecorded"})


def _addresses(name: str) -> Collection[str]:
    with suppress(socket.gaierror):
        return {str(address[0]) for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    return ()


@router.post("/studies", openapi_extra=_BODY)
async def store(request: Request) -> Response:
    """Objects of any study are stored."""
    return await _stored(request, None)


@router.post("/studies/{study_uid}", openapi_extra=_BODY)
async def store_in_study(request: Request, study_uid: str) -> Response:
    """Objects of this study are stored; those of others are refused."""
    return await _stored(request, study_uid)


async def _stored(request: Request, study_uid: str | None) -> Response:
    stow: Stow = request.app.state.stow
    kind = accepted(request, [Offer(DICOM_JSON), Offer(JSON)])[0].offer.kind
    _from_here(request)
    boundary = _boundary(request.headers.get("content-type", ""))
    run, threads = asyncio.get_running_loop().run_in_executor, stow.threads
    peer = await run(threads, stow.open, request.client.host if request.client else "")
    whole, reception = False, None
    try:
        reception = RequestReception(stow.spool, stow.refusals, peer, boundary, study_uid)
        await _take(request, reception, threads)
        whole = reception.whole
        if not whole:
            raise Problem(HTTPStatus.BAD_REQUEST, "the body ends before its last boundary: send all of it again")
    except MalformedMultipart as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"no multipart/related body: {error}") from error
    except TooMany as error:
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
    finally:
        outcome = StoreOutcome() if reception is None else reception.outcome
        if reception is not None:
            await asyncio.shield(run(threads, reception.abandon))
        await asyncio.shield(run(threads, lambda: stow.close(peer, outcome, whole=whole)))
    if not (outcome.stored or outcome.refused):
        raise Problem(HTTPStatus.BAD_REQUEST, "a request without a part")
    return JSONResponse(response(outcome, Place.of(request), study_uid), _status(outcome), media_type=kind)


async def _take(request: Request, reception: RequestReception, threads: ThreadPoolExecutor) -> None:
    """The body, piece by piece; while one is written, no more is read."""
    loop, body = asyncio.get_running_loop(), request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(body, b""), PAUSE_S)
        except TimeoutError:
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"nothing came for {PAUSE_S:.0f} s") from None
        except ClientDisconnect:
            raise Problem(HTTPStatus.BAD_REQUEST, "the connection broke off") from None
        if not piece:
            return
        await loop.run_in_executor(threads, reception.feed, piece)


def _from_here(request: Request) -> None:
    """No page of another site writes here, whatever a browser lets it send. Raises Problem."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    elsewhere = origin is not None and urlsplit(origin).netloc != host
    if elsewhere or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Problem(HTTPStatus.FORBIDDEN, "a page of another site asks: it may not write here")


def _boundary(content_type: str) -> str:
    kinds = media_types(content_type)
    if len(kinds) != 1 or kinds[0].name != MULTIPART or kinds[0].parameters.get("type", DICOM).lower() != DICOM:
        expected = f'expected Content-Type: {MULTIPART}; type="{DICOM}"; boundary=...'
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, expected)
    return kinds[0].parameters.get("boundary", "")


def _status(outcome: StoreOutcome) -> HTTPStatus:
    """PS3.18 table 10.5.3-1."""
    if not outcome.refused:
        return HTTPStatus.OK
    return HTTPStatus.ACCEPTED if outcome.stored else HTTPStatus.CONFLICT


def response(outcome: StoreOutcome, place: Place, study_uid: str | None) -> Json:
    """Store Instances Response Module (PS3.18 table I.2-1)."""
    studies = {one.study_uid for one in outcome.stored} | ({study_uid} if study_uid else set())
    stored = [
        _named(one.sop_class_uid, one.sop_instance_uid)
        | {"00081190": value("UR", place.named(one.study_uid, one.series_uid, one.sop_instance_uid))}
        for one in outcome.stored
    ]
    failed = [_named(*one.names) | _reason(one.reason) for one in outcome.refused if one.names]
    others = [_reason(one.reason) for one in outcome.refused if not one.names]
    told: Json = {"00081190": value("UR", place.study(studies.pop()))} if len(studies) == 1 else {}
    for name, items in (("00081198", failed), ("00081199", stored), ("0008119A", others)):
        if items:
            told[name] = value("SQ", *items)
    return told


def _named(sop_class_uid: str, sop_instance_uid: str) -> Json:
    return {"00081150": value("UI", sop_class_uid), "00081155": value("UI", sop_instance_uid)}


def _reason(reason: int) -> Json:
    return {"00081197": value("US", reason)}
