"""What runs in each process of `medseg serve`. Each is told to stop by SIGTERM, and stops when its parent is gone.

What a reload changes comes through a pipe (`gateway.settings.current`), and is looked at between two pieces of work: no
association is dropped for it, no job begun anew, no model loaded again.

receiver   listens and files; never sees torch; there may be several, which accept from one socket
director   completes series and makes jobs; reports to senders and asks them; lets go of what was kept long enough
worker     segments; the only one that loads torch
sender     delivers results
web        answers what people and monitoring ask, on this machine only
"""

from __future__ import annotations

import fcntl
import logging
import math
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import Connection

from gateway import logs
from gateway.decide import jobs, rules
from gateway.heartbeat import STALL_S, Heart, Watched
from gateway.ledger import associations, deliveries, instances, study_jobs
from gateway.ledger.claims import Claim
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import JobChannelRow, JobRow
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings, Rule
from gateway.settings.when import CALLED_AE
from medseg.conditions.terms import conditions
from medseg.dicom.series import Series
from medseg.progress import Cancelled

if TYPE_CHECKING:
    from gateway.dimse.commitment import CommitmentReport
    from gateway.dimse.scp import StorageScp
    from gateway.receive.parts import PatientParts
    from gateway.receive.source import SpoolSource
    from gateway.receive.spool import Spool

logger = logging.getLogger(__name__)

LOOK_S = 0.1
GRACE_S = 10.0  # for associations, and what is looked at, at a stop
ORPHAN_S = 5.0  # for a process without its supervisor
WORKER = "worker"
WEB = associations.REQUESTS


def receiver(live: Live, stop: threading.Event, *, listener: socket.socket) -> None:
    from gateway.complete.commitment import Reporter
    from gateway.dimse.scp import StorageScp
    from gateway.receive.refused import Refusals
    from gateway.receive.spool import Spool

    settings, name = live.now, multiprocessing.current_process().name
    gateway = settings.gateway
    with Ledger(gateway.database) as ledger:
        ledger.write(associations.lose_open_associations, time.time(), name)  # of one that died under this name
        spool = Spool(gateway.spool, ledger, watermark(settings), name)
        refusals = Refusals(ledger, time.time)
        scp = StorageScp(
            spool,
            host=gateway.host,
            port=gateway.port,
            listener=listener,
            reported=partial(_take_report, ledger, live),
            asked=lambda request: reporter.asked(request),
            noted=refusals.note,
            **_admission(settings),
        )
        reporter = Reporter(ledger, scp.report, scp.is_open)
        scp.start()
        admitting = _Admitting(spool, scp, settings)
        while not stop.wait(LOOK_S):
            admitting.step(live.now)
            reporter.step()
            refusals.step()
        scp.stop(GRACE_S)
        refusals.step()


class _Admitting:
    """Who and what is let in."""

    def __init__(self, spool: Spool, scp: StorageScp, settings: GatewaySettings) -> None:
        self._spool, self._scp, self._settings = spool, scp, settings

    def step(self, settings: GatewaySettings) -> None:
        """Go by these settings from now on; host names are looked up where they changed."""
        if settings is not self._settings:
            self._settings = settings
            self._spool.watermark = watermark(settings)
            self._scp.admit_by(**_admission(settings))


def _admission(settings: GatewaySettings) -> dict[str, Any]:
    """Whom the SCP lets in, and how many."""
    from gateway.dimse.store import AssociationLimits

    gateway, limits = settings.gateway, settings.limits
    terms = [term for rule in settings.rules for term in rule.when]
    titles = {
        str(pattern.text)
        for condition in conditions(terms, negated=False)
        if condition.subject == CALLED_AE
        for pattern in condition.wanted
    }
    return {
        "ae_titles": [gateway.ae_title, *sorted(titles - {gateway.ae_title})],
        "callers": None if gateway.allow_any_caller else list(_callers(settings)),
        "limits": AssociationLimits(limits.associations, limits.per_caller),
    }


def _take_report(ledger: Ledger, live: Live, report: CommitmentReport) -> None:
    """A peer's storage commitment report (PS3.4 J.3.3), which may come on an association of its own."""
    facts = (report.transaction_uid, report.committed, report.failed, time.time(), live.now.deliver, random.random())
    ledger.write(deliveries.take_report, *facts)


def director(live: Live, stop: threading.Event) -> None:
    from gateway.complete.queries import Inquiry
    from gateway.keep.retention import Retention
    from gateway.receive.comparison import Comparison
    from gateway.serve.director import Director

    spool = live.now.gateway.spool
    with Ledger(live.now.gateway.database) as ledger:
        directs, retains = Director(ledger, spool), Retention(ledger, spool)
        inquiry = Inquiry(ledger, spool)
        threading.Thread(target=inquiry.run, args=(live, stop), name="inquiry", daemon=True).start()
        threading.Thread(target=Comparison(ledger, spool).run, args=(stop,), name="comparison", daemon=True).start()
        while not stop.wait(LOOK_S):
            settings = live.now
            directs.step(settings, time.monotonic(), time.time())
            retains.step(settings.retain, time.monotonic(), time.time())


def worker(live: Live, stop: threading.Event) -> None:
    from gateway.serve.gatherer import Gatherer
    from gateway.serve.reasoner import Reasoner
    from gateway.work.worker import Worker

    with Ledger(live.now.gateway.database) as ledger:
        gatherer = Gatherer(ledger, live.now.gateway.spool)
        gathering = threading.Thread(target=gatherer.run, args=(live, stop), name="gatherer", daemon=True)
        gathering.start()
        reasoner = Reasoner(ledger, live.now.gateway.spool)
        reasoning = threading.Thread(target=reasoner.run, args=(live, stop), name="reasoner", daemon=True)
        reasoning.start()
        Worker(ledger, live.now.gateway.spool, LedgerContext(ledger, live), stop, owner=WORKER).run()
        for looking in (gathering, reasoning):  # before the ledger is closed
            looking.join(GRACE_S)


def sender(live: Live, stop: threading.Event) -> None:
    from gateway.deliver import outbox

    outbox.run(live, stop)


def web(live: Live, stop: threading.Event) -> None:
    from gateway.web import server

    server.run(live, stop)


class LedgerContext:
    """What the worker asks of the other rooms (`gateway.work.worker.LedgerContext`)."""

    def __init__(self, ledger: Ledger, live: Live) -> None:
        self._ledger, self._live = ledger, live

    def rule(self, job: JobRow) -> Rule:
        return jobs.rule_of(job)

    def destinations(self, db: Connection, job: JobRow, rule: Rule) -> Iterable[str]:
        several = study_jobs.channels_of(db, job.id)
        caller = instances.calling_ae(db, job.study_uid, job.series_uid or several[0].series_uid)
        return rules.destinations(rule, caller, self._live.now.peers)

    def read(self, job: JobRow, cancelled: Cancelled) -> Series | None:
        assert job.series_uid is not None
        return self._read(job.study_uid, job.series_uid, job.revision, cancelled)

    def read_channel(self, channel: JobChannelRow, cancelled: Cancelled) -> Series | None:
        return self._read(channel.study_uid, channel.series_uid, channel.revision, cancelled)

    def _read(self, study_uid: str, series_uid: str, revision: int, cancelled: Cancelled) -> Series | None:
        from gateway.receive.source import read_series

        spool = self._live.now.gateway.spool
        return read_series(self._ledger, spool, study_uid, series_uid, revision, cancelled)

    def channels(self, job: JobRow) -> tuple[Sequence[JobChannelRow], bool]:
        with self._ledger.read() as db:
            return study_jobs.channels_of(db, job.id), jobs.assumes_registered(job)

    def parted(self, series: Series, cancelled: Cancelled) -> PatientParts | None:
        from gateway.receive.parts import parted

        return parted(self._ledger, self._live.now.gateway.spool, series, cancelled)

    def follow(self, job: JobRow, cancelled: Cancelled) -> SpoolSource:
        from gateway.receive.source import SpoolSource

        assert job.series_uid is not None
        spool = self._live.now.gateway.spool
        return SpoolSource(self._ledger, spool, job.study_uid, job.series_uid, cancelled=cancelled)

    def failed(self, db: Connection, claim: Claim, error: BaseException, now: float) -> bool:
        return jobs.failed(db, claim, error, now, self._live.now.deliver)


def watermark(settings: GatewaySettings) -> Any:
    from gateway.receive.spool import Watermark

    return Watermark.of(settings.limits)


def _callers(settings: GatewaySettings) -> Iterable[tuple[str, str | None]]:
    """Who may call, host names as the addresses that they have now."""
    for caller in settings.gateway.allow_callers:
        if caller.host is None:
            yield caller.ae_title, None
        else:
            with suppress(socket.gaierror):
                for *_, address in socket.getaddrinfo(caller.host, None, type=socket.SOCK_STREAM):
                    yield caller.ae_title, str(address[0])


# ---- a process and its end


def enter(
    name: str, main: Callable[[Live, threading.Event], None], settings: GatewaySettings, news: Pipe[Any, Any]
) -> None:
    """Run one of the above as a process. news: brings the settings that a reload changed."""
    for number in (signal.SIGINT, signal.SIGHUP):  # these reach all; the supervisor says who stops or changes when
        signal.signal(number, signal.SIG_IGN)
    stop, live = Watched(), Live(settings)
    on_signals({signal.SIGTERM: stop})
    logs.configure(name)
    threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    threading.Thread(target=live.follow, args=(news,), name="settings", daemon=True).start()
    # The worker's loop stands still while a model computes: how long it may, its jobs' deadlines say.
    stall_s = math.inf if name == WORKER else STALL_S
    gateway = settings.gateway
    with hold(gateway.spool, fcntl.LOCK_SH), Heart(gateway.spool, gateway.database, name, stop, stall_s):
        try:
            main(live, stop)
        except Exception:  # a process boundary: what Python would print might quote a data set
            logger.critical("%s ended by an error", name, exc_info=True, extra={"event": "process.failed"})
            sys.exit(1)


def on_signals(events: Mapping[signal.Signals, threading.Event]) -> None:
    """Have each of these events set whenever its signal comes.

    A thread sets them: a handler runs wherever the main thread is, and that may hold the lock of the event.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in events:
        signal.signal(number, lambda *_: None)

    def set_them() -> None:
        while True:
            (number,) = os.read(reading, 1)
            if number in events:
                events[signal.Signals(number)].set()

    threading.Thread(target=set_them, name="signals", daemon=True).start()


def _stop_with_parent(stop: threading.Event) -> None:
    """Whoever starts the service again waits for the last of us: not for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    stop.set()
    time.sleep(ORPHAN_S)
    os._exit(1)


def hold(spool: Path, how: int) -> IO[bytes]:
    """The spool's lock, as long as the file is open: shared by the processes of one service. Raises OSError."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (spool / "lock").open("ab")
    fcntl.flock(file, how)
    return file
