"""`/healthz`: this process lives and the ledger answers. `/readyz`: images that are sent now come back segmented."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway import heartbeat
from gateway.heartbeat import Beat
from gateway.ledger import associations, events, tallies
from gateway.ledger.ledger import LedgerUnavailable
from gateway.ledger.tallies import PROBES
from gateway.receive.spool import Watermark
from gateway.web.site import Site

PATIENCE_S = 3.0  # for an answer: who asks gives up soon after


@dataclass(frozen=True)
class HealthCheck:
    """What was looked at. found: in words."""

    ok: bool
    found: str


Checks = Mapping[str, HealthCheck]


def live(site: Site) -> Checks:
    """Whether this process can do its work."""
    try:
        with site.ledger.read() as db:
            associations.open_associations(db)
    except LedgerUnavailable as error:
        return {"ledger": HealthCheck(False, str(error))}
    return {"ledger": HealthCheck(True, "answers")}


def ready(site: Site) -> Checks:
    """Whether the whole service can do its work: every process beats, the disk has room, the ledger takes a commit."""
    return {"ledger": _ledger(site), "disk": _disk(site), "settings": _settings(site), **_processes(site)}


def _ledger(site: Site) -> HealthCheck:
    try:
        site.ledger.write(tallies.add, PROBES.plus())
    except LedgerUnavailable as error:
        return HealthCheck(False, str(error))
    return HealthCheck(True, "can be written")


def _settings(site: Site) -> HealthCheck:
    """What the last reload came to. With settings that were refused, or cannot work in part, the service goes on."""
    try:
        with site.ledger.read() as db:
            told = events.settings_recorded(db)
    except LedgerUnavailable as error:
        return HealthCheck(False, str(error))
    said = [f"not reloaded, those before are in force: {problem}" for problem in told["problems"]]
    said += [f"{key} stays as it was until a restart" for key in told["kept"]]
    said += told["doubts"]
    return HealthCheck(True, "; ".join(said) or "as they were read")


def _disk(site: Site) -> HealthCheck:
    limits = site.live.now.limits
    try:
        room = Watermark.of(limits).has_room(site.spool)
    except OSError as error:
        return HealthCheck(False, f"cannot be looked at: {error.strerror}")
    if room:
        return HealthCheck(True, "has room")
    return HealthCheck(
        False,
        f"{limits.disk_used_percent:g} % used or less than {limits.disk_free_gb:g} GB free: nothing more is received; "
        "make room, or change [limits]",
    )


def _processes(site: Site) -> Checks:
    try:
        beats = heartbeat.beats(site.spool)
    except OSError as error:
        return {"processes": HealthCheck(False, f"no heartbeats: {error.strerror}")}
    return {beat.process: HealthCheck(beat.alive, _said(beat)) for beat in beats} or {
        "processes": HealthCheck(False, "none")
    }


def _said(beat: Beat) -> str:
    if beat.alive:
        return "runs"
    return "starts" if math.isinf(beat.age_s) else f"has not been seen for {beat.age_s:.0f} s: it died or hangs"


class Asked:
    """Asks one question at a time in a thread, whoever wants to know; a question that hangs holds up nobody."""

    def __init__(self, what: str, question: Callable[[], Checks]) -> None:
        self._what, self._question = what, question
        self._pending: asyncio.Task[Checks] | None = None

    async def __call__(self, _: Request) -> Response:
        if self._pending is None or self._pending.done():
            self._pending = asyncio.create_task(asyncio.to_thread(self._question))
        done, _waiting = await asyncio.wait({self._pending}, timeout=PATIENCE_S)
        checks = self._pending.result() if done else {"ledger": HealthCheck(False, f"no answer in {PATIENCE_S:g} s")}
        ok = all(check.ok for check in checks.values())
        told = {self._what: ok, "checks": {name: asdict(check) for name, check in checks.items()}}
        return JSONResponse(told, 200 if ok else 503)


def routes(site: Site) -> list[Route]:
    return [
        Route("/healthz", Asked("healthy", partial(live, site)).__call__),
        Route("/readyz", Asked("ready", partial(ready, site)).__call__),
    ]
