"""Whether a peer has what it said it stored: by storage commitment (PS3.4 Annex J), else by C-FIND.

    ask ──> report on the same association ──┬──> confirmed, or lost: only what was lost is sent again
       └──> on one of the peer's own ────────┘    (`gateway.ledger.deliveries.take_report`, from the receiver)

A peer that accepts no storage commitment, or leaves three requests without a report, is asked by C-FIND. One that
answers neither is believed, and so is one that is no peer any more: its deliveries stay `stored`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.deliver.carriers import web_client
from gateway.dicomweb.client import WebClient
from gateway.dimse import scu
from gateway.dimse.commitment import COMMIT, ObjectReference
from gateway.dimse.scu import FIND, Link, NoAssociation, Proposal, RequestorTimeouts
from gateway.ledger import deliveries
from gateway.ledger.deliveries import FIND_AFTER_S, LAST_ASK, REPORT_WITHIN_S
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import DeliveryRow
from gateway.settings.model import Deliver, Destination, WebService
from medseg.errors import UnreadableInstance

logger = logging.getLogger(__name__)

MOST = 100  # objects in one request


@dataclass(frozen=True)
class Confirmer:
    """Asks one destination after the other."""

    ledger: Ledger
    spool: Path
    settings: Deliver
    clock: Callable[[], float]
    random: Callable[[], float]
    timeouts: RequestorTimeouts

    def ask(self, name: str, destination: Destination | WebService) -> bool:
        """Ask a destination after what waits for it; whether there was anything."""
        now = self.clock()
        waiting = self._claim(name, now, now + REPORT_WITHIN_S)
        if not waiting:
            return False
        if isinstance(destination, WebService):
            self._ask_service(destination, waiting)
            return True
        try:
            with scu.associate(destination, [Proposal(COMMIT), Proposal(FIND)], self.timeouts) as link:
                self._ask(link, waiting)
        except NoAssociation as error:
            claims, later = [out.claim for out in waiting], now + self.settings.longest_retry_s
            if error.miss is scu.Miss.NOTHING_ACCEPTED:
                self.ledger.write(deliveries.accept_unconfirmed, claims)
            else:
                logger.info("%s", error, extra={"event": "delivery.unasked", "destination": name})
                self.ledger.write(deliveries.ask_again, claims, later, counts=False)
        return True

    def accept_unconfirmed(self, name: str) -> None:
        """There is nobody of that name to ask."""
        now = self.clock()
        waiting = self._claim(name, now, now)
        if waiting:
            self.ledger.write(deliveries.accept_unconfirmed, [out.claim for out in waiting])
            facts = {"event": "delivery.believed", "destination": name}
            logger.warning("%d objects are not confirmed: no [[peer]] to ask", len(waiting), extra=facts)

    def _claim(self, name: str, now: float, until: float) -> tuple[DeliveryRow, ...]:
        return self.ledger.write(deliveries.claim_unconfirmed, name, now, until, MOST)

    def _ask(self, link: Link, waiting: Sequence[DeliveryRow]) -> None:
        commits = self.settings.commitment and COMMIT in link.accepted
        by_commitment = [out for out in waiting if commits and out.asked < LAST_ASK]
        if by_commitment and self._commit(link, by_commitment):
            by_find = [out for out in waiting if out not in by_commitment]
        else:
            by_find = list(waiting)
        if FIND in link.accepted or not link.alive:
            for out in by_find:
                self._find(link, out)
        else:
            self.ledger.write(deliveries.accept_unconfirmed, [out.claim for out in by_find])

    def _commit(self, link: Link, asked: Sequence[DeliveryRow]) -> bool:
        """Ask for commitment; whether the peer takes the request. Without a report here it comes later, elsewhere."""
        transaction = f"2.25.{uuid.uuid4().int}"
        self.ledger.write(deliveries.note_transaction, [out.claim for out in asked], transaction)
        answer = link.commit(transaction, [ObjectReference(out.sop_class_uid, out.sop_instance_uid) for out in asked])
        report = answer.report
        if report is not None:
            outcome = (report.transaction_uid, report.committed, report.failed)
            facts = (*outcome, self.clock(), self.settings, self.random())
            self.ledger.write(deliveries.take_report, *facts)
        return answer.status == 0x0000

    def _ask_service(self, service: WebService, waiting: Sequence[DeliveryRow]) -> None:
        """What the answer to a STOW request did not name as stored, or `query` wants to be asked for."""
        if service.query is False:
            self.ledger.write(deliveries.accept_unconfirmed, [out.claim for out in waiting])
            return
        for out in waiting:
            self._find(web_client(service, self.timeouts), out)

    def _find(self, link: Link | WebClient, out: DeliveryRow) -> None:
        try:
            file = scu.read_file(self.spool / out.path)
        except (OSError, UnreadableInstance) as error:
            logger.warning("cannot ask after a result: %s", error, extra={"event": "delivery.unasked"})
            self.ledger.write(deliveries.accept_unconfirmed, [out.claim])
            return
        found = link.find(file.study_uid, file.series_uid, out.sop_instance_uid)
        now, random = self.clock(), self.random()
        if found:
            self.ledger.write(deliveries.confirm, out.claim, now)
        elif out.asked < LAST_ASK:
            self.ledger.write(deliveries.ask_again, [out.claim], now + FIND_AFTER_S, counts=True)
        elif found is not None:
            why = f"{'C-FIND' if isinstance(link, Link) else 'QIDO-RS'} does not find it"
            self.ledger.write(deliveries.lose, out, now, self.settings, random, why)
