"""What runs in each process of `medseg serve`. Each is told to stop by SIGTERM, and stops when its parent is gone.

receiver   listens and files; never sees torch
director   completes series and makes jobs
worker     segments; the only one that loads torch
sender     delivers results
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import Connection, Row

from gateway import moves, outbox_rows
from gateway.decide import jobs, rules
from gateway.ledger import Ledger
from gateway.rows import Claim
from gateway.settings import CALLED_AE, GatewaySettings, Rule
from medseg.dicom.series import Series
from medseg.errors import UsageError
from medseg.progress import Cancelled

if TYPE_CHECKING:
    from gateway.dimse.commitment import CommitmentReport

logger = logging.getLogger(__name__)

LOOK_S = 0.1
GRACE_S = 10.0  # for associations, at a stop
ORPHAN_S = 5.0  # for a process without its supervisor
WORKER = "worker"


def receiver(settings: GatewaySettings, stop: threading.Event) -> None:
    from gateway.dimse.scp import Limits, StorageScp
    from gateway.receive.spool import Spool

    gateway, limits = settings.gateway, settings.limits
    titles = {pattern.text for rule in settings.rules for one in rule.when if one.subject == CALLED_AE
              for pattern in one.wanted}  # fmt: skip
    with Ledger(gateway.database) as ledger:
        scp = StorageScp(
            Spool(gateway.spool, ledger, watermark(settings)),
            ae_titles=[gateway.ae_title, *sorted(titles - {gateway.ae_title})],
            host=gateway.host,
            port=gateway.port,
            callers=None if gateway.allow_any_caller else list(_callers(settings)),
            limits=Limits(limits.associations, limits.per_caller),
            reported=partial(_take_report, ledger, settings),
        )
        scp.start()
        stop.wait()
        scp.stop(GRACE_S)


def _take_report(ledger: Ledger, settings: GatewaySettings, report: CommitmentReport) -> None:
    """A peer's storage commitment report (PS3.4 J.3.3), which may come on an association of its own."""
    facts = (report.transaction_uid, report.committed, report.failed, time.time(), settings.deliver, random.random())
    ledger.write(lambda db: outbox_rows.take_report(db, *facts))


def director(settings: GatewaySettings, stop: threading.Event) -> None:
    from gateway.director import Director

    with Ledger(settings.gateway.database) as ledger:
        directs = Director(ledger, settings.gateway.spool, settings)
        while not stop.wait(LOOK_S):
            directs.step(time.monotonic(), time.time())


def worker(settings: GatewaySettings, stop: threading.Event) -> None:
    from gateway.work.worker import Worker

    with Ledger(settings.gateway.database) as ledger:
        Worker(ledger, settings.gateway.spool, Desk(ledger, settings), stop, owner=WORKER).run()


def sender(settings: GatewaySettings, stop: threading.Event) -> None:
    from gateway.deliver import outbox

    outbox.run(settings, stop)


class Desk:
    """What the worker asks of the other rooms (`gateway.work.worker.Desk`)."""

    def __init__(self, ledger: Ledger, settings: GatewaySettings) -> None:
        self._ledger, self._settings = ledger, settings

    def rule(self, job: Row[Any]) -> Rule:
        for one in self._settings.rules:
            if one.name == job.rule:
                return one
        raise UsageError(f"job {job.id}: there is no rule {job.rule!r} any more")

    def destinations(self, db: Connection, job: Row[Any], rule: Rule) -> Iterable[str]:
        caller = moves.calling_ae(db, job.study_uid, job.series_uid)
        return [peer.name for peer in rules.destinations(rule, caller, self._settings.peers)]

    def read(self, job: Row[Any], cancelled: Cancelled) -> Series | None:
        from gateway.receive.source import read_series

        spool = self._settings.gateway.spool
        return read_series(self._ledger, spool, job.study_uid, job.series_uid, job.revision, cancelled)

    def failed(self, db: Connection, claim: Claim, error: BaseException, now: float) -> bool:
        return jobs.failed(db, claim, error, now, self._settings.deliver)


def watermark(settings: GatewaySettings) -> Any:
    from gateway.receive.spool import Watermark

    return Watermark(settings.limits.disk_used_percent, int(settings.limits.disk_free_gb * 1e9))


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


def enter(name: str, main: Callable[[GatewaySettings, threading.Event], None], settings: GatewaySettings) -> None:
    """Run one of the above as a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the supervisor says who stops when
    stop = stopped_by(signal.SIGTERM)
    log(name)
    threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    with hold(settings.gateway.spool, fcntl.LOCK_SH):
        main(settings, stop)


def stopped_by(*numbers: signal.Signals) -> threading.Event:
    """An event that is set when one of these signals comes.

    A thread sets it: a handler runs wherever the main thread is, and that may hold the lock of the event.
    """
    stop = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)

    def wait_for_one() -> None:
        os.read(reading, 1)
        stop.set()

    threading.Thread(target=wait_for_one, name="signals", daemon=True).start()
    return stop


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


def log(name: str) -> None:
    """Log to stderr, each line with its process."""
    form = f"%(asctime)s {name}[{os.getpid()}] %(levelname)s %(message)s"
    logging.basicConfig(format=form, level=logging.INFO)
    for chatty in ("alembic", "highdicom", "pynetdicom"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
