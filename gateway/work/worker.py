"""The worker: claims a job, keeps it, segments its series, files the result.

claim ── read ── plan ── run, stack by stack ── freeze ── finish: job done, result and deliveries, one commit
  │  └── follow: where the series is still arriving; when it is complete, its job says for which revision
  └── a thread renews the lease; once it cannot, the job is somebody else's and the work stops

A series that is arriving keeps the worker for as long as its sender takes, so its job gives way to any that could run:
it is dropped and begun again. That costs what was computed, and no result: what is complete never waits for what is
not, one process holds one job in memory, and who catches up computes faster than a sender sends.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sqlalchemy import Connection

from gateway import retry
from gateway.files import RESULTS
from gateway.ledger import jobs as jobs_rows
from gateway.ledger import patients, reasons, results, study_jobs, withdrawals
from gateway.ledger import series as series_rows
from gateway.ledger.claims import Claim
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import JobRow
from gateway.ledger.states import ResultKind
from gateway.ledger.withdrawals import Withdrawn
from gateway.retry import Effort
from gateway.settings.model import Mode, Rule
from gateway.work import inputs
from gateway.work.beside import Beside
from gateway.work.coverage import LessComplete, Sources, lacks, replaced
from gateway.work.freeze import freeze
from gateway.work.inputs import Images
from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle, installed
from medseg.errors import DoesNotFit, Interrupted, MedsegError, UsageError
from medseg.inference.arriving.shared import Share
from medseg.inference.settings import Settings
from medseg.job.folder import RECORD, Format
from medseg.job.follow import Followed
from medseg.job.plan import Job, StudyPlan
from medseg.job.run import Outcome, key_settings, run
from medseg.progress import Cancelled
from medseg.results.identity import ResultKey, stack_key
from medseg.results.provenance import Predecessor
from medseg.results.seg import read_tables
from medseg.results.statement import STATEMENT_CLASS

logger = logging.getLogger(__name__)

LEASE_S = 30.0
POLL_S = 0.2
LOOK_S = 0.5  # whether another job waits for this one to give way
WHEN_COMPLETE = 1e10  # a time that does not come; completion makes a job ready at once
SILENCE_S = 30.0  # a series of which nothing comes for so long is not followed where another waits


class WorkerContext(Images, Protocol):
    """What the worker asks of the other rooms."""

    def rule(self, job: JobRow) -> Rule:
        """The rule that a job was made by, as it was then."""
        ...

    def destinations(self, db: Connection, job: JobRow, rule: Rule) -> Iterable[str]:
        """Where the result goes."""
        ...

    def failed(self, db: Connection, claim: Claim, error: BaseException, now: float) -> bool:
        """An attempt ended in an error."""
        ...


class Lease:
    """Keeps a claim alive from a thread of its own.

    lost: somebody else has the job, or nobody wants it; or more came before all of its series was read.
    yields_until: its series is still arriving, and it is to give way to another job, and not to be claimed before then.
    """

    def __init__(self, ledger: Ledger, claim: Claim) -> None:
        self._ledger, self._claim = ledger, claim
        self._over = threading.Event()
        self.lost = threading.Event()
        self.came = threading.Event()  # all of the series was read
        self.yields_until: float | None = None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _renew(self) -> None:
        renewed_s = time.monotonic()
        while not self._over.wait(LOOK_S):
            try:
                if time.monotonic() - renewed_s >= LEASE_S / 10:
                    renewed_s = time.monotonic()
                    if not self._ledger.write(jobs_rows.renew_job, self._claim, time.time() + LEASE_S):
                        self.lost.set()
                        return
                if not self.came.is_set():
                    with self._ledger.read() as db:
                        self._look(db, time.time())
            except MedsegError as error:
                logger.warning("lease not renewed: %s", error, extra={"event": "job.unrenewed", "job": self._claim.id})

    def _look(self, db: Connection, now: float) -> None:
        """Give way to a job whose series is complete; if nothing comes of ours, to any. Stop where our study is."""
        job = jobs_rows.job_under(db, self._claim)
        if job is None or _has_changed(db, job):
            self.lost.set()
        elif patients.is_stopped(db, job.study_uid) or (
            job.revision == 0 and jobs_rows.awaited(db, now, arriving=False)
        ):
            self.yields_until = now
        elif job.revision == 0 and _is_silent(db, job, now) and jobs_rows.awaited(db, now, arriving=True, but=job):
            self.yields_until = WHEN_COMPLETE


def _has_changed(db: Connection, job: JobRow) -> bool:
    """Whether a job is for other images than there are by now."""
    if job.series_uid is None:
        return study_jobs.has_changed(db, job.id)
    return job.revision not in (0, series_rows.series_row(db, job.study_uid, job.series_uid).revision)


def _is_silent(db: Connection, job: JobRow, now: float) -> bool:
    """Whether nothing came of a series for long."""
    assert job.series_uid is not None  # those of a study follow none that arrives
    return now - series_rows.series_row(db, job.study_uid, job.series_uid).last_at > SILENCE_S


class PutOff(Exception):
    """What has come of a series is nothing to begin with: its job is done when all has. why: as far as is known yet."""

    def __init__(self, why: MedsegError) -> None:
        super().__init__(str(why))
        self.why = why


class Worker:
    """Does jobs, one after another, until `stop`; keeps the bundles that it has loaded."""

    def __init__(self, ledger: Ledger, spool: Path, desk: WorkerContext, stop: threading.Event, *, owner: str) -> None:
        self._ledger, self._spool, self._desk, self._stop, self._owner = ledger, spool, desk, stop, owner
        self._bundles: dict[str, tuple[Bundle, ...]] = {}
        self._beside = Beside()

    def run(self) -> None:
        read_tables()
        while not self._stop.is_set():
            if not self.step():
                self._stop.wait(POLL_S)

    def step(self) -> bool:
        """Do one job, whatever comes of it, and the others on the same images; False where none is to be done.

        Each has a claim and a lease of its own: one that fails, or dies with us, leaves the others as they are.
        """
        now = time.time()
        claim = self._ledger.write(jobs_rows.claim_job, self._owner, now, now + LEASE_S)
        if claim is None:
            return False
        while claim is not None:
            claim = self._next_beside(claim) if self._claimed(claim) and not self._stop.is_set() else None
        self._beside.forget()
        return True

    def _next_beside(self, after: Claim) -> Claim | None:
        with self._ledger.read() as db:
            job = jobs_rows.find_job(db, after.id)
        now = time.time()
        if job is None or not job.revision:
            return None
        return self._ledger.write(jobs_rows.claim_beside, job, self._owner, now, now + LEASE_S)

    def _claimed(self, claim: Claim) -> bool:
        """Do a job that was claimed; False where it was dropped for now, or is not there any more."""
        with self._ledger.read() as db:
            job = jobs_rows.job_under(db, claim)
            others = job is not None and jobs_rows.has_others(db, job)
        if job is None:  # its study was purged at this very moment
            return False
        share = self._beside.begin(job, others=others)
        facts = {"job": job.id, "attempt": job.attempt, "study": job.study_uid, "series": job.series_uid}
        logger.info("job %d claimed", job.id, extra={"event": "job.claimed"} | facts)
        try:
            with Lease(self._ledger, claim) as lease:
                done = self._do(job, claim, lease, share)
        except (Interrupted, PutOff) as error:
            until = WHEN_COMPLETE if isinstance(error, PutOff) else lease.yields_until
            if until is None:
                self._fail(claim, error)
            else:
                why = error.why if isinstance(error, PutOff) else None
                self._ledger.write(jobs_rows.give_way, claim, until, why)
            logger.info("job %d dropped for now", job.id, extra={"event": "job.dropped"} | facts)
            return False
        except (MedsegError, OSError, MemoryError, RuntimeError) as error:
            mine = self._fail(claim, error)
            logger.warning("job %d: %s", job.id, error, extra={"event": "job.error", "current": mine} | facts)
        else:
            logger.info("job %d %s", job.id, "done" if done else "not wanted", extra={"event": "job.ended"} | facts)
        return True

    def _fail(self, claim: Claim, error: BaseException) -> bool:
        now = time.time()
        return self._ledger.write(self._desk.failed, claim, error, now)

    def _do(self, job: JobRow, claim: Claim, lease: Lease, share: Share | None) -> bool:
        def cancelled() -> bool:
            return self._stop.is_set() or lease.lost.is_set() or lease.yields_until is not None

        rule = self._desk.rule(job)
        settings = _settings(rule, retry.effort(job.error_code, job.failures))
        bundles = self._bundles_of(job.bundle)
        if job.series_uid is None:
            read = inputs.of_study(job, self._desk, bundles[0], rule, cancelled)
        else:
            read = inputs.of_series(job, self._desk, bundles, rule, settings, _put_off, cancelled, self._beside, share)
        if read is None:
            return self._keep(claim)
        done = read.done
        lease.came.set()
        if not done.plan.jobs:
            raise _reason(done.plan)
        sources = [Sources.of(planned.stack, read.patient_of(planned.stack)) for planned in done.plan.jobs]
        predecessors = self._predecessors(job, done.plan.jobs, sources)
        formats = frozenset(Format(kind) for kind in rule.results)
        outcomes = [
            self._segment(planned, done, formats, settings, before, cancelled)
            for planned, before in zip(done.plan.jobs, predecessors, strict=True)
        ]
        result = freeze(outcomes, sources, done.plan.jobs[0].bundle, self._spool)

        def finish(db: Connection) -> bool:
            mine = jobs_rows.job_under(db, claim)
            if mine is None or not read.holds(db, mine):
                return False
            to = self._desk.destinations(db, job, rule) if job.mode is Mode.ON else ()
            now = time.time()
            done = results.finish_job(db, claim, result, to, now)
            if done and job.mode is Mode.ON:
                reasons.answer(db, mine, now)
            return done

        filed = self._ledger.write(finish)
        if not filed:
            self._drop_purged(job.id, outcomes)
            self._keep(claim)
        return filed

    def _keep(self, claim: Claim) -> bool:
        """The series has changed: its job is done later, unless another job is made of that. Always False."""
        self._ledger.write(jobs_rows.keep_job, claim, time.time())
        return False

    def _drop_purged(self, job_id: int, outcomes: Iterable[Outcome]) -> None:
        """Nothing stays of a result whose study was purged while it was made."""
        with self._ledger.read() as db:
            purged = not jobs_rows.has_job(db, job_id)
        for outcome in outcomes if purged else ():
            if not self._is_filed(f"{RESULTS}/{outcome.folder.name}/"):
                shutil.rmtree(outcome.folder)

    def _segment(
        self,
        job: Job,
        done: Followed,
        formats: frozenset[Format],
        settings: Settings,
        predecessors: tuple[Predecessor, ...],
        cancelled: Cancelled,
    ) -> Outcome:
        """A result in the folder named for its key.

        One that the ledger knows is frozen, and is taken as it is; one that it does not know may never have been
        synced, and goes.
        """
        key = stack_key(job.stack, job.bundle.digest, key_settings(job.bundle, settings), done.digest).digest
        folder = self._spool / RESULTS / key
        if folder.exists():
            if self._is_filed(f"{RESULTS}/{key}/"):
                self._refuse_withdrawn(job, f"{RESULTS}/{key}/")
                return Outcome(folder, json.loads((folder / RECORD).read_text("utf-8")), up_to_date=True)
            shutil.rmtree(folder)
        return run(
            replace(job, folder=key),
            self._spool / RESULTS,
            formats,
            settings=settings,
            predecessors=predecessors,
            found=done.found,
            digest=done.digest,
            cancelled=cancelled,
        )

    def _refuse_withdrawn(self, job: Job, folder: str) -> None:
        """Raises Withdrawn where a result that is asked for again was withdrawn."""
        with self._ledger.read() as db:
            if withdrawals.is_withdrawn_in(db, folder):
                series = job.stack.series
                raise Withdrawn(series.study_uid, series.series_uid, job.bundle.name)

    def _predecessors(
        self, of: JobRow, jobs: Sequence[Job], sources: Sequence[Sources]
    ) -> list[tuple[Predecessor, ...]]:
        """What each stack's result takes the place of. Raises LessComplete, unless a person has allowed that."""
        with self._ledger.read() as db:
            before = results.current_result(db, of.study_uid, of.series_uid, jobs[0].bundle.name)
            rows = reasons.answered_by(db, of)
            if before is not None and before.kind is ResultKind.WITHDRAWAL:
                rows, before = [*rows, before], None
            told = [source for row in rows for source in json.loads(row.sources)]
        why = [tuple(_of_reason(source) for source in told if _is_of(source, one)) for one in sources]
        if before is None:
            return why
        records = json.loads(before.facts)
        known = [Sources.from_record(record) for record in json.loads(before.sources)]
        if len(known) != len(records):  # made by a version of medseg that did not write down of what
            numbers = [list(range(len(records))) for _ in jobs]
        else:
            if not of.may_lack and (less := lacks(known, sources)):
                raise LessComplete(of.study_uid, of.series_uid, less)
            numbers = replaced(known, sources)
        return [(*(_predecessor(records[n]) for n in some), *told) for some, told in zip(numbers, why, strict=True)]

    def _is_filed(self, folder: str) -> bool:
        with self._ledger.read() as db:
            return results.has_object_in(db, folder)

    def _bundles_of(self, name: str) -> tuple[Bundle, ...]:
        """The bundle of that name or folder; all that are installed for an empty one."""
        if name not in self._bundles:
            self._bundles[name] = (find_bundle(name),) if name else tuple(installed())
        return self._bundles[name]


def _reason(planned: StudyPlan) -> MedsegError:
    """Why nothing is done: that several bundles fit, else that none takes a volume, else why there is no volume."""
    errors = [one.error for one in planned.refused]
    ranks = UsageError, DoesNotFit, MedsegError
    return min(errors, key=lambda error: next(rank for rank, kind in enumerate(ranks) if isinstance(error, kind)))


def _predecessor(record: Mapping[str, Any]) -> Predecessor:
    outputs = record["outputs"]
    return Predecessor(ResultKey(record["result_key"]), seg="seg" in outputs, sr="sr" in outputs)


def _of_reason(source: Mapping[str, Any]) -> Predecessor:
    """What said that there was no result: it is a report alone."""
    return Predecessor(ResultKey(source["result_key"]), seg=False, sr=True, sr_class=STATEMENT_CLASS)


def _is_of(source: Mapping[str, Any], stack: Sources) -> bool:
    """Whether a report is on the patient of a stack."""
    return len(patients.groups((source["patient"], stack.patient))) <= 1


def _put_off(why: MedsegError) -> None:
    raise PutOff(why)


def _settings(rule: Rule, effort: Effort) -> Settings:
    return Settings(
        device="cpu" if effort is Effort.CPU else "auto",
        careful=effort is not Effort.SAME,
        assume_frame_of_reference=rule.assume_frame_of_reference,
    )
