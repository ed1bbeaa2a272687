"""The pages: studies, the latest first, and one study. Made here, without script; every value is escaped."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway import heartbeat
from gateway.ledger import refusals
from gateway.ledger.states import LIVE, STORED, UNDECIDED, UNSENT, DeliveryState, JobState, SeriesState
from gateway.show import studies, totals
from gateway.show.text import counted, moment, seconds
from gateway.web.site import Site
from medseg.names import uid_name

TEMPLATES = Path(__file__).parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text("utf-8")
#: The one style sheet that a browser may use (CSP level 2, hash source).
STYLE_HASH = f"'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
SHOWN = 25  # studies on a page
REFRESH_S = 10

_MOODS = {
    "good": (SeriesState.COMPLETE, JobState.DONE, *STORED),
    "bad": (JobState.FAILED, DeliveryState.DEAD),
    "busy": (*UNDECIDED, *LIVE, *UNSENT),
}


def address(study_uid: str) -> str:
    """Where the page of a study is; what is no UID, such as `..`, would be taken for a place by a browser."""
    return f"/studies/{uid_name(study_uid)}"


def mood(state: str) -> str:
    """The style of a state; empty for one that is neither good nor bad."""
    return next((mood for mood, states in _MOODS.items() if state in states), "")


def routes(site: Site) -> list[Route]:
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"moment": moment, "seconds": seconds, "address": address, "mood": mood, "counted": counted}

    def page(name: str, request: Request, facts: dict[str, Any], status: int = 200) -> Response:
        common = {
            "style": Markup(STYLE),  # as it is: a browser compares its hash
            "now": time.time(),
            "every": REFRESH_S,
            "refresh": 0 if "refresh" in request.query_params or "before" in request.query_params else REFRESH_S,
            "beats": heartbeat.beats(site.spool),
        }
        return HTMLResponse(templates.get_template(name).render(common | facts), status)

    def all_studies(request: Request) -> Response:
        before = _moment_of(request.query_params.get("before", ""))
        with site.ledger.read() as db:
            latest = studies.latest(db, SHOWN, before)
            counts = totals.by_state(db)
            refused = [] if before else refusals.latest(db, time.time())
        gateway = site.live.now.gateway
        facts = {
            "studies": latest,
            "counts": counts,
            "refused": refused,
            "before": before,
            "older": latest[-1].heard_at if len(latest) == SHOWN else None,
            "ae_title": gateway.ae_title,
            "host": gateway.host,
            "port": gateway.port,
        }
        return page("studies.html", request, facts)

    def one_study(request: Request) -> Response:
        study_uid = request.path_params["study_uid"]
        with site.ledger.read() as db:
            study = studies.study(db, study_uid) or studies.named(db, study_uid)
        if study is None:
            return page("missing.html", request, {"study_uid": study_uid}, 404)
        return page("study.html", request, {"study": study})

    return [Route("/", all_studies), Route("/studies/{study_uid:path}", one_study)]


def _moment_of(text: str) -> float | None:
    """What `before` says; None where it says nothing that can be understood."""
    try:
        return float(text)
    except ValueError:
        return None
