"""Storage commitment for senders (PS3.4 Annex J): what they asked for is written down, then known, then reported.

    N-ACTION ── written down, answered ── all here, or waited for long enough ── N-EVENT-REPORT
                                                on that association, else on one of ours (`receive.inquiry`)

Committed is what is stored for good: synced before it was acknowledged, counted by the ledger, its file there in full.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gateway.dimse.commitment import (
    CLASS_INSTANCE_CONFLICT,
    NO_SUCH_INSTANCE,
    CommitmentRequest,
    CommitmentResult,
    ObjectReference,
)
from gateway.files import is_whole
from gateway.ledger import commitments
from gateway.ledger.commitments import Item, Report
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.records import InstanceRow

logger = logging.getLogger(__name__)

WAIT_S = 60.0  # for instances that were named and have not come
REPORT_WITHIN_S = 90.0  # longer than a peer may take for its answer
ON_ASSOCIATION_S = 3.0  # how long a report is first tried on the association on which it was asked for


def result_of(report: Report) -> CommitmentResult:
    """A report as it is told."""
    reasons = {ObjectReference(item.sop_class_uid, item.sop_instance_uid): item.reason for item in report.items}
    return CommitmentResult(report.transaction_uid, reasons)


def failures(items: Iterable[Item], stored: Iterable[tuple[str, str]], *, overdue: bool) -> dict[str, int] | None:
    """Failure Reason of each item that fails, by SOP Instance UID; None while some may still come.

    stored: SOP Class and SOP Instance UIDs of what is here.
    """
    whole, uids = set(stored), set[str]()
    uids.update(uid for _, uid in whole)
    failed = {}
    for item in items:
        if (item.sop_class_uid, item.sop_instance_uid) in whole:
            continue
        if item.sop_instance_uid in uids:
            failed[item.sop_instance_uid] = CLASS_INSTANCE_CONFLICT
        elif overdue:
            failed[item.sop_instance_uid] = NO_SUCH_INSTANCE
        else:
            return None
    return failed


def settle(ledger: Ledger, spool: Path, now: float) -> None:
    """Decide on the commitments that can be decided upon."""
    with ledger.read() as db:
        waiting = commitments.waiting(db)
        for asked in waiting:
            items = commitments.items(db, asked.id)
            rows = commitments.stored(db, [item.sop_instance_uid for item in items])
            overdue = now >= asked.asked_at + WAIT_S
            if failures(items, [(row.sop_class_uid, row.sop_instance_uid) for row in rows], overdue=overdue) is None:
                continue  # before any file is looked at
            failed = failures(items, _in_full(rows, spool), overdue=overdue)
            if failed is not None:
                ledger.write(commitments.settle, asked.id, failed, now)
                facts = {"event": "commitment.known", "association": asked.association_id}
                logger.info("storage commitment: %d of %d failed", len(failed), len(items), extra=facts)


def _in_full(rows: Sequence[InstanceRow], spool: Path) -> Iterable[tuple[str, str]]:
    for row in rows:
        if is_whole(spool / row.path, row.offset_bytes + row.size_bytes):
            yield row.sop_class_uid, row.sop_instance_uid


class Reporter:
    """In a receiver: takes requests, and reports on the associations that they came on.

    tell: reports on an association by its id; whether the peer took it. is_open: whether there still is one.
    """

    def __init__(
        self, ledger: Ledger, tell: Callable[[str, CommitmentResult], bool], is_open: Callable[[str], bool]
    ) -> None:
        self._ledger, self._tell, self._is_open = ledger, tell, is_open
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def asked(self, request: CommitmentRequest) -> None:
        """Write a request down. Raises LedgerUnavailable."""
        items = [Item(of.sop_class_uid, of.sop_instance_uid) for of in request.objects]
        peer, now = request.peer, time.time()
        self._ledger.write(commitments.ask, peer.calling_ae, request.transaction_uid, peer.id, items, now)
        with self._lock:
            self._asked.add(peer.id)

    def step(self) -> None:
        """Report what is known by now, each on a thread of its own."""
        with self._lock:
            self._asked = {one for one in self._asked if self._is_open(one)}
            on = tuple(self._asked)
        if not on:
            return
        now = time.time()
        try:
            due = self._ledger.write(commitments.claim_reports_on, on, now, now + REPORT_WITHIN_S)
        except LedgerUnavailable as error:
            logger.error("%s", error, extra={"event": "commitment.ledger"})
            return
        for report in due:
            threading.Thread(target=self._report, args=(report,), name="commitment", daemon=True).start()

    def _report(self, report: Report) -> None:
        taken, now = self._tell(report.association_id, result_of(report)), time.time()
        if taken:
            self._ledger.write(commitments.reported, report.claim, now)
        else:
            why = "not taken on the association on which it was asked for"
            self._ledger.write(commitments.report_later, report.claim, now + ON_ASSOCIATION_S, why)
