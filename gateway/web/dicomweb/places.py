"""Addresses of what is here, as who asks reaches it; and what an answer may be made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import quote

from fastapi import Request

from gateway.dicomweb.media import Choice, Offer, choose
from gateway.web.dicomweb.holdings import Held
from gateway.web.dicomweb.problems import Problem
from gateway.web.site import Site

ROOT: Final = "/dicom-web"


def site_of(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


@dataclass(frozen=True)
class Place:
    """The service's root, without a last slash."""

    root: str

    @classmethod
    def of(cls, request: Request) -> Self:
        """By the Host header, which names this machine (`gateway.web.app`). Where it names no port, ours: some clients
        leave that out, whichever they call."""
        url = request.base_url
        if url.port is None:
            url = url.replace(port=request.scope["server"][1])
        return cls(str(url).rstrip("/") + ROOT)

    def study(self, study_uid: str) -> str:
        return f"{self.root}/studies/{quote(study_uid, safe='')}"

    def series(self, study_uid: str, series_uid: str) -> str:
        return f"{self.study(study_uid)}/series/{quote(series_uid, safe='')}"

    def instance(self, one: Held) -> str:
        return self.named(one.study_uid, one.series_uid, one.sop_instance_uid)

    def named(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> str:
        return f"{self.series(study_uid, series_uid)}/instances/{quote(sop_instance_uid, safe='')}"


def accepted(request: Request, offers: Sequence[Offer]) -> list[Choice]:
    """What of the offers is taken, by the `accept` parameter or the header (PS3.18 8.3.3.1). Raises Problem."""
    asked = request.query_params.get("accept") or ", ".join(request.headers.getlist("accept"))
    choices = choose(asked, offers)
    if not choices:
        kinds = " or ".join(f"multipart/related of {one.kind}" if one.multipart else one.kind for one in offers)
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"the Accept header takes nothing that is on offer: expected {kinds}")
    return choices
