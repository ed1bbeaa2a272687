"""`medseg serve`: starts the processes, starts again what dies, and ends them in order.

lock the spool ── reconcile spool and ledger ── what ran is queued again ── start receiver director worker sender
SIGTERM ── receiver ends its associations ── director, worker (its job is queued again), sender
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
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess

from gateway import moves, processes, rows
from gateway.decide import jobs
from gateway.ledger import Ledger, LedgerUnavailable
from gateway.receive.reconcile import reconcile
from gateway.receive.spool import Spool
from gateway.retry import Fault
from gateway.settings import GatewaySettings
from medseg.errors import UsageError

logger = logging.getLogger(__name__)

Main = Callable[[GatewaySettings, threading.Event], None]
MAINS: dict[str, Main] = {
    "receiver": processes.receiver,
    "director": processes.director,
    processes.WORKER: processes.worker,
    "sender": processes.sender,
}
WATCH_S = 0.1
DEADLINE_S = 3600.0  # of a job
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before a process that died is started again
STEADY_S = 60.0  # one that lived for so long starts without a history
PATIENCE_S = 30.0  # for a process to stop by itself


def serve(settings: GatewaySettings) -> None:
    """Run until SIGTERM or SIGINT. Raises UsageError where the spool is in use or the port taken."""
    processes.log("medseg")
    run(settings, processes.stopped_by(signal.SIGTERM, signal.SIGINT))


def run(settings: GatewaySettings, stop: threading.Event) -> None:
    """Run until told to stop; raises as `serve` does."""
    with locked(settings), Ledger(settings.gateway.database) as ledger:
        _check_port(settings)
        recover(settings, ledger)
        supervisor = Supervisor(settings, ledger)
        try:
            while not stop.wait(WATCH_S):
                try:
                    supervisor.watch()
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
    found = reconcile(Spool(settings.gateway.spool, ledger, processes.watermark(settings)), ledger)
    logger.info(
        "spool and ledger agree: %d adopted, %d quarantined, %d missing",
        len(found.adopted),
        len(found.quarantined),
        len(found.missing),
        extra={"event": "service.reconciled"},
    )
    _lose_jobs(settings, ledger, Fault.DRAINED)


def _check_port(settings: GatewaySettings) -> None:
    host, port = settings.gateway.host, settings.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}: change gateway.port") from error


def _lose_jobs(settings: GatewaySettings, ledger: Ledger, fault: Fault) -> None:
    """The worker is gone, and with it what it did."""
    now = time.time()
    with ledger.read() as db:
        running = moves.running_jobs(db)
    for job in running:
        ledger.write(lambda db, job=job: jobs.lost(db, job, fault, now, settings.deliver))  # type: ignore[misc]
        logger.warning("job %d: %s", job.id, fault.value, extra={"event": "job.lost", "job": job.id})


class Child:
    """A process that is started again when it dies, after a pause that doubles while it keeps dying."""

    def __init__(self, name: str, settings: GatewaySettings) -> None:
        self.name, self._settings = name, settings
        self._pause_s, self._due_s = FIRST_PAUSE_S, 0.0
        self.process = self._start()

    def _start(self) -> SpawnProcess:
        self._started_s, self.dead = time.monotonic(), False
        arguments = (self.name, MAINS[self.name], self._settings)
        process = multiprocessing.get_context("spawn").Process(target=processes.enter, args=arguments, name=self.name)
        process.start()
        return process

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


class Supervisor:
    """The processes of one service, started when made."""

    def __init__(self, settings: GatewaySettings, ledger: Ledger, deadline_s: float = DEADLINE_S) -> None:
        self._settings, self._ledger, self._deadline_s = settings, ledger, deadline_s
        self._since_s: dict[tuple[int, int], float] = {}
        self.children = [Child(name, settings) for name in MAINS]

    def watch(self) -> None:
        """Look after them once."""
        for child in self.children:
            if child.died():
                if child.name == "receiver":
                    self._ledger.write(lambda db: rows.lose_open_associations(db, time.time()))
                elif child.name == processes.WORKER:
                    _lose_jobs(self._settings, self._ledger, Fault.CRASHED)
        self._end_hung()

    def _end_hung(self) -> None:
        """Kill the worker where a job takes longer than its deadline."""
        now_s = time.monotonic()
        with self._ledger.read() as db:
            attempts = {(job.id, job.attempt) for job in moves.running_jobs(db)}
        self._since_s = {attempt: self._since_s.get(attempt, now_s) for attempt in attempts}
        if any(now_s - since_s > self._deadline_s for since_s in self._since_s.values()):
            worker = next(child for child in self.children if child.name == processes.WORKER)
            worker.process.kill()
            worker.process.join()
            _lose_jobs(self._settings, self._ledger, Fault.HUNG)

    def stop(self) -> None:
        """End them: who lets things in first."""
        receiver, *others = self.children
        receiver.stop()
        receiver.join(PATIENCE_S)
        for child in others:
            child.stop()
        for child in others:
            child.join(PATIENCE_S)
        _lose_jobs(self._settings, self._ledger, Fault.DRAINED)
