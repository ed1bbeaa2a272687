"""The worker: claims a job, keeps it, segments its series, files the result.

claim ── read ── plan ── run, stack by stack ── freeze ── finish: job done, result and deliveries, one commit
  └── a thread renews the lease; once it cannot, the job is somebody else's and the work stops
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sqlalchemy import Connection, Row

from gateway import moves, rows
from gateway.ledger import Ledger
from gateway.rows import Claim
from gateway.settings import Rule
from gateway.work.results import RESULTS, freeze
from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle, installed
from medseg.dicom.series import Series
from medseg.errors import MedsegError
from medseg.inference.segment import Settings
from medseg.job import RECORD, Format, Job, Outcome, deciding, plan, run
from medseg.progress import Cancelled
from medseg.results.identity import stack_key

logger = logging.getLogger(__name__)

LEASE_S = 30.0
POLL_S = 0.2


class Desk(Protocol):
    """What the worker asks of the other rooms."""

    def rule(self, job: Row[Any]) -> Rule:
        """The rule that a job was made by. Raises UsageError where there is none of that name any more."""
        ...

    def destinations(self, db: Connection, job: Row[Any], rule: Rule) -> Iterable[str]:
        """Where the result goes."""
        ...

    def read(self, job: Row[Any], cancelled: Cancelled) -> Series | None:
        """The series of a job; None where it is not any more what the job was made for."""
        ...

    def failed(self, db: Connection, claim: Claim, error: BaseException, now: float) -> bool:
        """An attempt ended in an error."""
        ...


class Lease:
    """Keeps a claim alive from a thread of its own. lost: somebody else has the job, or nobody wants it."""

    def __init__(self, ledger: Ledger, claim: Claim) -> None:
        self._ledger, self._claim = ledger, claim
        self._over = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._over.wait(LEASE_S / 10):
            try:
                kept = self._ledger.write(lambda db: rows.renew_job(db, self._claim, time.time() + LEASE_S))
            except MedsegError as error:
                logger.warning("lease not renewed: %s", error, extra={"event": "job.unrenewed", "job": self._claim.id})
                continue
            if not kept:
                self.lost.set()
                return


class Worker:
    """Does jobs, one after another, until `stop`; keeps the bundles that it has loaded."""

    def __init__(self, ledger: Ledger, spool: Path, desk: Desk, stop: threading.Event, *, owner: str) -> None:
        self._ledger, self._spool, self._desk, self._stop, self._owner = ledger, spool, desk, stop, owner
        self._bundles: dict[str, tuple[Bundle, ...]] = {}

    def run(self) -> None:
        while not self._stop.is_set():
            if not self.step():
                self._stop.wait(POLL_S)

    def step(self) -> bool:
        """Do one job, whatever comes of it; False where none is to be done."""
        now = time.time()
        claim = self._ledger.write(lambda db: rows.claim_job(db, self._owner, now, now + LEASE_S))
        if claim is None:
            return False
        with self._ledger.read() as db:
            job = moves.job_row(db, claim.id)
        facts = {"job": job.id, "attempt": job.attempt, "series": job.series_uid}
        logger.info("job %d claimed", job.id, extra={"event": "job.claimed"} | facts)
        try:
            with Lease(self._ledger, claim) as lease:
                done = self._do(job, claim, lambda: self._stop.is_set() or lease.lost.is_set())
        except (MedsegError, OSError, MemoryError, RuntimeError) as error:
            mine = self._fail(claim, error)
            logger.warning("job %d: %s", job.id, error, extra={"event": "job.error", "current": mine} | facts)
        else:
            logger.info("job %d %s", job.id, "done" if done else "not wanted", extra={"event": "job.ended"} | facts)
        return True

    def _fail(self, claim: Claim, error: BaseException) -> bool:
        now = time.time()
        return self._ledger.write(lambda db: self._desk.failed(db, claim, error, now))

    def _do(self, job: Row[Any], claim: Claim, cancelled: Cancelled) -> bool:
        rule = self._desk.rule(job)
        series = self._desk.read(job, cancelled)
        now = time.time()
        if series is None:
            self._ledger.write(
                lambda db: rows.end_job(db, claim, "cancelled", now, code="series_changed", error=moves.LATER)
            )
            return False
        settings = Settings(assume_frame_of_reference=rule.assume_frame_of_reference)
        planned = plan(
            [series],
            self._bundles_of(job.bundle),
            explicit=bool(job.bundle),
            assume_frame_of_reference=rule.assume_frame_of_reference,
        )
        if not planned.jobs:
            raise planned.refused[0].error
        formats = frozenset(Format(kind) for kind in rule.results)
        outcomes = [self._segment(one, formats, settings, cancelled) for one in planned.jobs]
        result = freeze(outcomes, planned.jobs[0].bundle, self._spool)

        def finish(db: Connection) -> bool:
            to = self._desk.destinations(db, job, rule) if job.mode == "on" else ()
            return moves.finish_job(db, claim, result, to, time.time())

        return self._ledger.write(finish)

    def _segment(self, job: Job, formats: frozenset[Format], settings: Settings, cancelled: Cancelled) -> Outcome:
        """A result in the folder named for its key.

        One that the ledger knows is frozen, and is taken as it is; one that it does not know may never have been
        synced, and goes.
        """
        key = stack_key(job.stack, job.bundle.digest, deciding(job.bundle, settings)).digest
        folder = self._spool / RESULTS / key
        if folder.exists():
            if self._is_filed(f"{RESULTS}/{key}/"):
                return Outcome(folder, json.loads((folder / RECORD).read_text("utf-8")), up_to_date=True)
            shutil.rmtree(folder)
        return run(replace(job, folder=key), self._spool / RESULTS, formats, settings=settings, cancelled=cancelled)

    def _is_filed(self, folder: str) -> bool:
        with self._ledger.read() as db:
            return moves.has_object_in(db, folder)

    def _bundles_of(self, name: str) -> tuple[Bundle, ...]:
        """The bundle of that name or folder; all that are installed for an empty one."""
        if name not in self._bundles:
            self._bundles[name] = (find_bundle(name),) if name else tuple(installed())
        return self._bundles[name]
