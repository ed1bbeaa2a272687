"""What we call senders for: to report on storage commitment, and to ask how many instances there are.

    ledger ──due?──> one thread per peer ──> N-EVENT-REPORT (PS3.4 J.3.3), C-FIND (PS3.4 C.6.2.1) ──> ledger

Who is asked: a peer that sends the series itself, unless its settings say `query = false`; and every peer with
`query = true`, of the study as a whole too. A peer that does not answer is asked again after a pause that doubles, and
holds up nobody else.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from gateway import retry
from gateway.complete import commitment
from gateway.complete.arrivals import AGREE_S
from gateway.dimse import scu
from gateway.dimse.commitment import COMMIT
from gateway.dimse.scu import FIND, Link, Miss, NoAssociation, Proposal, RequestorTimeouts
from gateway.ledger import commitments, counts, series
from gateway.ledger.commitments import Report
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.series import UndecidedSeries
from gateway.retry import Fault, RetryAt
from gateway.settings.current import Live
from gateway.settings.model import Deliver, Destination, GatewaySettings, Peer

logger = logging.getLogger(__name__)

LOOK_S = 0.2
AGAIN_S = AGREE_S + 0.1  # the next question after an answer, at the earliest
LONGEST_S = 30.0  # between two questions
MOST_PEERS = 16  # that are called at once
CALL = RequestorTimeouts(connect_s=10, acse_s=30, dimse_s=30)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is counted: a series, or a study (series_uid None)."""

    study_uid: str
    series_uid: str | None


@dataclass(frozen=True, slots=True)
class Pace:
    """When a peer is asked again. instances: how many were here when it was asked last."""

    due_s: float = 0.0
    pause_s: float = AGAIN_S
    instances: int = -1


def paced(pace: Pace, instances: int, now_s: float) -> Pace:
    """The pace after an answer: at once where something came since the last, else ever slower."""
    pause_s = AGAIN_S if instances != pace.instances else min(2 * pace.pause_s, LONGEST_S)
    return Pace(now_s + pause_s, pause_s, instances)


def subjects(peer: Peer, arriving: Sequence[UndecidedSeries]) -> dict[Subject, int]:
    """What a peer is to be asked about, with how many instances of it are here."""
    wanted: dict[Subject, int] = defaultdict(int)
    for undecided in arriving:
        if peer.query or (peer.query is None and peer.ae_title in undecided.senders):
            wanted[Subject(undecided.study_uid, undecided.series_uid)] = undecided.instances
        if peer.query:
            wanted[Subject(undecided.study_uid, None)] += undecided.instances
    return wanted


class Inquiry:
    """Calls peers; one in all processes."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        timeouts: RequestorTimeouts = CALL,
    ) -> None:
        """chance: from [0, 1)."""
        self._ledger, self._spool = ledger, spool
        self._clock, self._chance, self._timeouts = clock, chance, timeouts
        self._paces: dict[tuple[str, Subject], Pace] = {}
        self._failures: dict[str, int] = {}
        self._silent_until_s: dict[str, float] = {}
        self._busy: dict[str, Future[None]] = {}

    def run(self, live: Live, stop: threading.Event) -> None:
        """Until told to stop; who is called then is not waited for."""
        pool = ThreadPoolExecutor(MOST_PEERS, thread_name_prefix="inquiry")
        try:
            while not stop.wait(LOOK_S):
                try:
                    self.step(live.now, pool)
                except LedgerUnavailable as error:
                    logger.error("%s", error, extra={"event": "inquiry.ledger"})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def step(self, settings: GatewaySettings, pool: ThreadPoolExecutor) -> frozenset[str]:
        """Call whoever is to be called and is not being called; returns the names of all that are."""
        now = time.time()
        commitment.settle(self._ledger, self._spool, now)
        for name in [name for name, future in self._busy.items() if future.done()]:
            failure = self._busy.pop(name).exception()
            if failure is not None:
                logger.error("a call stopped short", exc_info=failure, extra={"event": "inquiry.failed"})
        with self._ledger.read() as db:
            asked = any(peer.query is not False for peer in settings.peers)
            arriving = series.arriving(db) if asked else []
            waiting = set(commitments.callers_to_report_to(db, now, now - commitment.ON_ASSOCIATION_S))
        self._forget(arriving)
        destinations = settings.destinations()
        for peer in settings.peers:
            destination = destinations.get(peer.name)
            if destination is None:  # by DICOMweb, results go to it alone
                continue
            reports = destination.ae_title in waiting
            waiting.discard(destination.ae_title)
            if peer.name not in self._busy:
                due = {one: here for one, here in subjects(peer, arriving).items() if self._is_due(peer, one, here)}
                if reports or due:
                    call = partial(self._call, settings.deliver, peer.name, destination, reports, due)
                    self._busy[peer.name] = pool.submit(call)
        for title in waiting:
            for report in self._claim(title):
                self._put_off(settings.deliver, report, Fault.NO_PEER)
        return frozenset(self._busy)

    def _is_due(self, peer: Peer, subject: Subject, here: int) -> bool:
        if self._clock() < self._silent_until_s.get(peer.name, 0.0):
            return False
        pace = self._paces.get((peer.name, subject), Pace())
        if here != pace.instances:  # something came: no slower than at first
            return self._clock() >= min(pace.due_s, pace.due_s - pace.pause_s + AGAIN_S)
        return self._clock() >= pace.due_s

    def _forget(self, arriving: Sequence[UndecidedSeries]) -> None:
        """Keep no pace of what is complete."""
        here = {(undecided.study_uid, undecided.series_uid) for undecided in arriving}
        studies = {study_uid for study_uid, _ in here}
        for key in list(self._paces):
            subject = key[1]
            if subject.study_uid not in studies or (
                subject.series_uid is not None and (subject.study_uid, subject.series_uid) not in here
            ):
                del self._paces[key]

    # ---- in a peer's own thread

    def _call(
        self, deliver: Deliver, name: str, destination: Destination, reports: bool, due: Mapping[Subject, int]
    ) -> None:
        """Report what is to be reported, then ask what is to be asked."""
        if reports:
            for report in self._claim(destination.ae_title):
                self._report(deliver, destination, report)
        if due:
            answered = self._ask(name, destination, due)
            self._failures[name] = 0 if answered else self._failures.get(name, 0) + 1
            if not answered:
                pause_s = retry.pause_s(self._failures[name], deliver, self._chance())
                self._silent_until_s[name] = self._clock() + pause_s

    def _claim(self, title: str) -> tuple[Report, ...]:
        now = time.time()
        within = (now, now + commitment.REPORT_WITHIN_S, now - commitment.ON_ASSOCIATION_S)
        return self._ledger.write(commitments.claim_reports_to, title, *within)

    def _report(self, deliver: Deliver, destination: Destination, report: Report) -> None:
        try:
            with scu.associate(destination, [Proposal(COMMIT)], self._timeouts, as_scp=True) as link:
                status = link.report(commitment.result_of(report))
        except NoAssociation as error:
            self._put_off(deliver, report, _fault(error))
            return
        if status == 0x0000:
            now = time.time()
            self._ledger.write(commitments.reported, report.claim, now)
        else:
            self._put_off(deliver, report, Fault.BROKEN if status is None else Fault.FAILED)

    def _put_off(self, deliver: Deliver, report: Report, fault: Fault) -> None:
        """Report later, or never, as `gateway.retry` decides."""
        now = time.time()
        then = retry.decide(fault, report.claim.attempt, now - report.known_at, deliver, self._chance())
        ready_at = now + then.delay_s if isinstance(then, RetryAt) else None
        self._ledger.write(commitments.report_later, report.claim, ready_at, fault.value)
        facts = {"event": "commitment.unreported", "calling_ae": report.calling_ae, "why": fault.value}
        logger.warning("storage commitment not reported%s", "" if ready_at else " at all", extra=facts)

    def _ask(self, name: str, destination: Destination, due: Mapping[Subject, int]) -> bool:
        """Whether the peer answered all of it."""
        try:
            with scu.associate(destination, [Proposal(FIND)], self._timeouts) as link:
                answers = [self._ask_about(name, link, subject, here) for subject, here in due.items()]
                return all(answers)
        except NoAssociation as error:
            logger.info("%s", error, extra={"event": "inquiry.unanswered", "destination": name})
            return False

    def _ask_about(self, name: str, link: Link, subject: Subject, here: int) -> bool:
        answer = link.count(subject.study_uid, subject.series_uid)
        if answer.value is not None:
            self._write_down(name, subject, answer.value)
        if answer.answered:
            self._paces[name, subject] = paced(self._paces.get((name, subject), Pace()), here, self._clock())
        return answer.answered

    def _write_down(self, name: str, subject: Subject, value: int) -> None:
        now = time.time()

        def write(db: Connection) -> None:
            since = counts.answer(db, subject.study_uid, subject.series_uid, name, value, now)
            if subject.series_uid is not None and now - since >= AGREE_S:
                series.expect(db, subject.study_uid, subject.series_uid, value)

        self._ledger.write(write)


def _fault(error: NoAssociation) -> Fault:
    if error.miss is Miss.REJECTED and error.reject is not None:
        return retry.reject_fault(*error.reject)
    return {Miss.UNREACHABLE: Fault.UNREACHABLE, Miss.NOTHING_ACCEPTED: Fault.NOT_ACCEPTED}.get(
        error.miss, Fault.BROKEN
    )
