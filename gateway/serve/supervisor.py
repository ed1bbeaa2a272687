"""`medseg serve`: starts the processes, starts again what dies, and ends them in order.

lock the spool ── reconcile spool and ledger ── what ran is queued again ── start receivers director worker sender web
SIGHUP ── settings read again ── right: all take them as they go on ── wrong: all stays as it is, and the log says why
SIGTERM ── receivers end their associations ── director, worker (its job is queued again), sender, web
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.context import SpawnProcess

from gateway import heartbeat, logs
from gateway.decide import doubts, jobs
from gateway.heartbeat import Heart, Watched
from gateway.keep.deletion import sweep, sweep_results
from gateway.ledger import associations, events, waits
from gateway.ledger import jobs as jobs_rows
from gateway.ledger.deliveries import REPORT_WITHIN_S
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.states import JobState
from gateway.receive.reconcile import reconcile, remove_parts
from gateway.receive.spool import Spool
from gateway.retry import JITTER, Fault
from gateway.serve import processes
from gateway.serve.notify import READY, STOPPING, notify
from gateway.settings.current import Live
from gateway.settings.model import LOOPBACK, GatewaySettings
from gateway.settings.read import Reloaded
from medseg.errors import UsageError

logger = logging.getLogger(__name__)

Main = Callable[[Live, threading.Event], None]
Reload = Callable[[GatewaySettings], Reloaded]  # from the settings that are in force
RECEIVER = "receiver"
MAINS: dict[str, Callable[..., None]] = {
    RECEIVER: processes.receiver,
    "director": processes.director,
    processes.WORKER: processes.worker,
    "sender": processes.sender,
    processes.WEB: processes.web,
}
SERVICE = "medseg"  # the process that looks after the others
WATCH_S = 0.1
STEP_S = 1.0  # between two looks; a clock that is slewed moves by microseconds meanwhile
DEADLINE_S = 3600.0  # of a job
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before a process that died is started again
STEADY_S = 60.0  # one that lived for so long starts without a history
PATIENCE_S = 30.0  # for a process to stop by itself


def serve(settings: GatewaySettings, reload: Reload) -> None:
    """Run until SIGTERM or SIGINT, and reload at SIGHUP. Raises UsageError where the spool or the port is in use."""
    logs.configure(SERVICE)
    stop, changed = Watched(), threading.Event()
    processes.on_signals({signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: changed})
    run(settings, stop, changed, reload)


def run(settings: GatewaySettings, stop: Watched, changed: threading.Event, reload: Reload) -> None:
    """Run until told to stop; raises as `serve` does."""
    spool, database = settings.gateway.spool, settings.gateway.database
    with locked(settings), Ledger(database) as ledger:
        _check_ports(settings)
        recover(settings, ledger)
        heartbeat.expect(spool, [SERVICE, *_names(settings)])
        with Heart(spool, database, SERVICE, stop):
            _supervise(settings, ledger, stop, changed, reload)


def _supervise(
    settings: GatewaySettings, ledger: Ledger, stop: Watched, changed: threading.Event, reload: Reload
) -> None:
    supervisor = Supervisor(settings, ledger)
    try:
        while not stop.wait(WATCH_S):
            try:
                supervisor.watch()
                if changed.is_set():
                    changed.clear()
                    supervisor.reload(reload)
            except LedgerUnavailable as error:
                logger.error("%s", error, extra={"event": "service.ledger"})
    finally:
        supervisor.stop()


@contextmanager
def locked(settings: GatewaySettings) -> Iterator[None]:
    """Be the only service of a spool. Processes of a service that was killed are waited for."""
    spool = settings.gateway.spool
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            lock = processes.hold(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UsageError(f"{spool} is in use: another medseg serve is running") from None
            time.sleep(WATCH_S)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def recover(settings: GatewaySettings, ledger: Ledger) -> None:
    """Set right what the last end left: nothing runs now, and what ran was not at fault."""
    spool = settings.gateway.spool
    sweep(ledger, spool)
    sweep_results(ledger, spool)
    reconciled = reconcile(Spool(spool, ledger, processes.watermark(settings)), ledger)
    logger.info(
        "spool and ledger agree: %d adopted, %d quarantined, %d missing",
        len(reconciled.adopted),
        len(reconciled.quarantined),
        len(reconciled.missing),
        extra={"event": "service.reconciled"},
    )
    _lose_jobs(settings, ledger, Fault.DRAINED)
    longest_s = max(REPORT_WITHIN_S, settings.deliver.longest_retry_s * (1 + JITTER))
    ledger.write(waits.cap_waits, time.time() + longest_s)
    ledger.write(events.record_settings, (), (), time.time())


def _check_ports(settings: GatewaySettings) -> None:
    _check_port(settings.gateway.host, settings.gateway.port, "port")
    _check_port(LOOPBACK, settings.gateway.http_port, "http_port")


def _check_port(host: str, port: int, key: str) -> None:
    _bound(host, port, key).close()


def _bound(host: str, port: int, key: str) -> socket.socket:
    """A socket at that address, which does not listen yet. Raises UsageError."""
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        if bound is not None:
            bound.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}: change gateway.{key}") from error


def _names(settings: GatewaySettings) -> list[str]:
    """The processes: receiver, receiver-2, …, director, …"""
    more = [f"{RECEIVER}-{number}" for number in range(2, settings.gateway.receivers + 1)]
    return [RECEIVER, *more, *(name for name in MAINS if name != RECEIVER)]


def _lose_jobs(settings: GatewaySettings, ledger: Ledger, fault: Fault) -> None:
    """The worker is gone, and with it what it did."""
    now = time.time()
    with ledger.read() as db:
        running = jobs_rows.jobs_in(db, JobState.RUNNING)
    for job in running:
        ledger.write(jobs.lost, job, fault, now, settings.deliver)
        logger.warning("job %d: %s", job.id, fault.value, extra={"event": "job.lost", "job": job.id})


class Child:
    """A process that is started again when it dies, after a pause that doubles while it keeps dying."""

    def __init__(self, name: str, main: Main, settings: GatewaySettings) -> None:
        self.name, self._main, self._settings = name, main, settings
        self._context = multiprocessing.get_context("spawn")
        self._pause_s, self._due_s = FIRST_PAUSE_S, 0.0
        self.process = self._start()

    def _start(self) -> SpawnProcess:
        self._started_s, self.dead = time.monotonic(), False
        theirs, self._news = self._context.Pipe(duplex=False)
        arguments = (self.name, self._main, self._settings, theirs)
        process = self._context.Process(target=processes.enter, args=arguments, name=self.name)
        process.start()
        theirs.close()
        return process

    @property
    def receives(self) -> bool:
        return self.name.startswith(RECEIVER)

    def settle(self, settings: GatewaySettings) -> None:
        """Give it other settings."""
        self._settings = settings
        with suppress(OSError):  # it died: it starts again with them
            self._news.send(settings)

    def died(self) -> bool:
        """Whether it died since it was asked last; it is started again when its pause is over."""
        now = time.monotonic()
        if self.dead:
            if now >= self._due_s:
                self.process = self._start()
            return False
        if self.process.is_alive():
            return False
        self.dead = True
        self._pause_s = FIRST_PAUSE_S if now - self._started_s > STEADY_S else self._pause_s
        self._due_s = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        logger.error("%s died (%s)", self.name, self.process.exitcode, extra={"event": "process.died"})
        return True

    def stop(self) -> None:
        self.process.terminate()

    def join(self, timeout_s: float) -> None:
        self.process.join(timeout_s)
        if self.process.is_alive():
            logger.warning("%s did not stop: killed", self.name, extra={"event": "process.killed"})
            self.process.kill()
            self.process.join()


def _drift_s() -> float:
    """How far the wall clock is from the monotonic one, which nobody sets."""
    return time.time() - time.monotonic()


class Supervisor:
    """The processes of one service, started when made."""

    def __init__(self, settings: GatewaySettings, ledger: Ledger, deadline_s: float = DEADLINE_S) -> None:
        self._settings, self._ledger, self._deadline_s = settings, ledger, deadline_s
        self._since_s: dict[tuple[int, int], float] = {}
        self._looking: threading.Thread | None = None
        self._announced = False
        self._drift_s = _drift_s()
        # The first receiver that is ready lets it listen. It stays open while one is started again: who calls then
        # waits, and is not refused.
        self._listener = _bound(settings.gateway.host, settings.gateway.port, "port")
        receiver = partial(MAINS[RECEIVER], listener=self._listener)
        self.children = [
            Child(name, receiver if name.startswith(RECEIVER) else MAINS[name], settings) for name in _names(settings)
        ]
        self._doubt()

    def watch(self) -> None:
        """Look after them once."""
        self._announce()
        self._follow_clock()
        for child in self.children:
            if child.died():
                if child.receives or child.name == processes.WEB:
                    remove_parts(self._settings.gateway.spool, f"{child.process.pid}.*")
                    self._ledger.write(associations.lose_open_associations, time.time(), child.name)
                elif child.name == processes.WORKER:
                    _lose_jobs(self._settings, self._ledger, Fault.CRASHED)
        self._end_hung()

    def _announce(self) -> None:
        """Say once that every process runs: with that the port listens."""
        if self._announced:
            return
        with suppress(OSError, ValueError):  # a file that is being written
            beats = heartbeat.beats(self._settings.gateway.spool)
            self._announced = bool(beats) and all(beat.alive for beat in beats)
        if self._announced:
            notify(READY)
            logger.info("ready", extra={"event": "service.ready"})

    def _follow_clock(self) -> None:
        """Where the wall clock was set, what waits by it goes on waiting as long as it was to."""
        drift_s = _drift_s()
        step_s = drift_s - self._drift_s
        if abs(step_s) > STEP_S:
            self._ledger.write(waits.shift_waits, step_s)
            logger.warning("the wall clock was set by %.1f s", step_s, extra={"event": "service.clock"})
        self._drift_s = drift_s

    def _end_hung(self) -> None:
        """Kill the worker where a job takes longer than its deadline."""
        now_s = time.monotonic()
        with self._ledger.read() as db:
            # One whose series is still arriving waits for slices: its time counts from when that is complete.
            attempts = {(job.id, job.attempt) for job in jobs_rows.jobs_in(db, JobState.RUNNING) if job.revision}
        self._since_s = {attempt: self._since_s.get(attempt, now_s) for attempt in attempts}
        if any(now_s - since_s > self._deadline_s for since_s in self._since_s.values()):
            worker = next(child for child in self.children if child.name == processes.WORKER)
            worker.process.kill()
            worker.process.join()
            _lose_jobs(self._settings, self._ledger, Fault.HUNG)

    def reload(self, reload: Reload) -> None:
        """Read the settings again: right ones reach every process, wrong ones change nothing; the log says which."""
        reloaded = reload(self._settings)
        for problem in reloaded.problems:
            logger.error("settings not reloaded: %s", problem, extra={"event": "settings.refused"})
        for key in reloaded.kept:
            logger.warning("%s stays as it was until a restart", key, extra={"event": "settings.kept", "key": key})
        if not reloaded.problems:
            self._settings = reloaded.settings
            for child in self.children:
                child.settle(reloaded.settings)
            logger.info("settings reloaded", extra={"event": "settings.reloaded"})
            self._doubt()
        problems = list(map(str, reloaded.problems))
        self._ledger.write(events.record_settings, problems, reloaded.kept, time.time())

    def _doubt(self) -> None:
        """Look for what is allowed in the settings and cannot work, beside all else: bundles may be large to load."""
        settings, ledger, before = self._settings, self._ledger, self._looking

        def look() -> None:
            if before is not None:
                before.join()
            broken = [str(doubt) for doubt in doubts.doubts(settings, doubts.loading()) if doubt.broken]
            for doubt in broken:
                logger.warning("settings: %s", doubt, extra={"event": "settings.doubted"})
            with suppress(LedgerUnavailable):
                ledger.write(events.record_doubts, broken, time.time())

        self._looking = threading.Thread(target=look, name="doubts", daemon=True)
        self._looking.start()

    def stop(self) -> None:
        """End them: who lets things in first."""
        notify(STOPPING)
        self._listener.close()
        for receives in (True, False):
            some = [child for child in self.children if child.receives is receives]
            for child in some:
                child.stop()
            for child in some:
                child.join(PATIENCE_S)
        if self._looking is not None:
            self._looking.join(PATIENCE_S)
        _lose_jobs(self._settings, self._ledger, Fault.DRAINED)
