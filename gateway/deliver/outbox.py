"""The sender: claims deliveries, sends them, and has them confirmed; a bulkhead for each destination.

    ledger ──due?──> one worker thread per destination ──> claim, one association, C-STORE each, then ask after them

A destination that hangs holds up its own thread and nobody else's.

Each object of a result stands for itself: what a destination accepts is sent, whatever becomes of the others. One whose
SOP class it does not accept is a dead letter at once, that says so; a report arrives without the segmentation that it
names, and a segmentation without its report. No object is turned into one of another class for a destination: its bytes
were frozen, and are the same for all.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from gateway import logs, retry
from gateway.deliver.carriers import Carrier, Sent, carrier, class_of
from gateway.deliver.confirm import Confirmer
from gateway.dimse import scu
from gateway.dimse.scu import TIMEOUTS, Miss, NoAssociation, RequestorTimeouts, StoredFile
from gateway.ledger import deliveries
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.records import DeliveryRow
from gateway.retry import Fault
from gateway.settings.current import Live
from gateway.settings.model import Deliver, Destination, GatewaySettings, WebService
from medseg.errors import InputError, UnreadableInstance

logger = logging.getLogger(__name__)

MOST = 16  # deliveries over one association
MOST_AT_ONCE = 256  # destinations; a thread is only made for one that has something to do
ASK_AFTER_S = 5.0  # a peer is given time to file what it stored
POLL_S = 0.25


class StopEvent(Protocol):
    """An event of threading or multiprocessing."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Outbox:
    """What is to be sent, and the doing of it. One sender process per machine has one."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Path,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        timeouts: RequestorTimeouts = TIMEOUTS,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """chance: from [0, 1). stopping: asked between objects; what is not sent by then goes back into the queue."""
        self._ledger, self._spool = ledger, spool
        self._clock, self._chance, self._timeouts, self._stopping = clock, chance, timeouts, stopping
        self._owner = f"sender@{platform.node()}"
        self._lease_s = timeouts.connect_s + timeouts.acse_s + timeouts.dimse_s + 60
        self._busy: dict[str, Future[None]] = {}
        #: Destinations whose claims nobody works on; None: all, by a sender before this one.
        self._left: set[str | None] = {None}

    def step(self, settings: GatewaySettings, pool: ThreadPoolExecutor) -> None:
        """Have whatever is due served, each destination by one thread at a time; one that is busy ends by the settings
        with which it began."""
        try:
            for name in tuple(self._left):
                self.recover(name)
                self._left.remove(name)
            for due in sorted(self.due()):
                if due not in self._busy:
                    self._busy[due] = pool.submit(self.serve, settings, due)
        except LedgerUnavailable as error:
            logger.error("%s", error, extra={"event": "sender.ledger"})
        for name in [name for name, future in self._busy.items() if future.done()]:
            failure = self._busy.pop(name).exception()
            if failure is not None:
                facts = {"event": "sender.failed", "destination": name}
                logger.error("sending stopped short", exc_info=failure, extra=facts)
            if isinstance(failure, OSError | LedgerUnavailable):  # what nobody foresaw is not met again at once
                self._left.add(name)

    def recover(self, name: str | None = None) -> int:
        """Take back what a sender that died on this machine had claimed, or a `serve` of a destination that broke off.
        Returns how many deliveries."""
        return self._ledger.write(deliveries.drop_leases, self._owner, name)

    def due(self) -> frozenset[str]:
        """Destinations for which there is something to do."""
        with self._ledger.read() as db:
            return deliveries.destinations_due(db, self._clock())

    def serve(self, settings: GatewaySettings, name: str) -> None:
        """Send what waits for a destination, over one association; ask after what was sent before."""
        deliver = settings.deliver
        destination = settings.destinations().get(name) or settings.services().get(name)
        confirmer = Confirmer(self._ledger, self._spool, deliver, self._clock, self._chance, self._timeouts)
        batch = self._claim(name)
        if destination is None:
            for out in batch:
                self._fail(deliver, out, Fault.NO_PEER, f"no [[peer]] named {name}")
            confirmer.accept_unconfirmed(name)
            return
        if batch:
            self._send(deliver, destination, batch)
        if not self._stopping():
            confirmer.ask(name, destination)

    def _claim(self, name: str) -> tuple[DeliveryRow, ...]:
        now = self._clock()
        return self._ledger.write(deliveries.claim_outgoing, name, self._owner, now, now + self._lease_s, MOST)

    def _send(self, deliver: Deliver, destination: Destination | WebService, batch: Sequence[DeliveryRow]) -> None:
        files = {out: file for out in batch if (file := self._file(deliver, out)) is not None}
        if not files:
            return
        left = list(files)
        try:
            with carrier(destination, list(files.values()), self._timeouts) as carrying:
                while left and carrying.alive and not self._stopping():
                    out = left.pop(0)
                    if not self._send_one(deliver, carrying, out, files[out]):
                        left = self._without_companions(left, out)
        except NoAssociation as error:
            for out in left:
                self._fail(deliver, out, *_no_association(error, out))
            return
        for out in left:
            self._put_back(out)

    def _file(self, deliver: Deliver, out: DeliveryRow) -> StoredFile | None:
        """The object's file, as it was frozen; without it the delivery is a dead letter."""
        path = self._spool / out.path
        try:
            file = scu.read_file(path)
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != out.sha256:
                    raise UnreadableInstance(out.path, "not the bytes that were frozen")
        except (OSError, InputError) as error:
            self._fail(deliver, out, Fault.UNSENDABLE, logs.said(error))
            return None
        return file

    def _send_one(self, deliver: Deliver, carrying: Carrier, out: DeliveryRow, file: StoredFile) -> bool:
        """Send one object; False where it is to be sent again later."""
        until = self._clock() + self._lease_s
        if not self._ledger.write(deliveries.renew_delivery, out.claim, until):
            return True  # somebody else has it by now
        sent = carrying.send(out, file)
        if sent.fault is not None:
            return not self._fail(deliver, out, sent.fault, sent.detail, sent.status)
        self._ledger.write(_stored, out, sent, self._clock())
        self._log("delivery.stored", out, logging.INFO, sent.detail)
        return True

    def _without_companions(self, left: Sequence[DeliveryRow], failed: DeliveryRow) -> list[DeliveryRow]:
        """What goes with a segmentation waits with it; the rest."""
        if not failed.kind.is_segmentation:
            return list(left)
        for out in left:
            if out.result_id == failed.result_id:
                self._put_back(out)
        return [out for out in left if out.result_id != failed.result_id]

    def _fail(self, deliver: Deliver, out: DeliveryRow, fault: Fault, detail: str, status: int | None = None) -> bool:
        """Note a failure; whether the object is to be sent again."""
        now, chance = self._clock(), self._chance()
        again = self._ledger.write(deliveries.fail, out, fault, now, deliver, chance, status=status, detail=detail)
        self._log("delivery.failed" if again else "delivery.dead", out, logging.WARNING, f"{fault.value}: {detail}")
        return again

    def _put_back(self, out: DeliveryRow) -> None:
        self._ledger.write(deliveries.put_back_delivery, out.claim)

    def _log(self, event: str, out: DeliveryRow, level: int, message: str) -> None:
        facts = {"event": event, "delivery": out.id, "sop_instance": out.sop_instance_uid}
        logger.log(level, "%s %s", out.kind, message, extra=facts)


def run(live: Live, stop: StopEvent) -> None:
    """Send until told to stop; then each destination finishes the object it is at."""
    gateway = live.now.gateway
    with Ledger(gateway.database) as ledger:
        outbox = Outbox(ledger, gateway.spool, stopping=stop.is_set)
        with ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="sender") as pool:
            while not stop.is_set():
                outbox.step(live.now, pool)
                stop.wait(POLL_S)


def _stored(db: Connection, out: DeliveryRow, sent: Sent, now: float) -> None:
    """A destination said that it stored an object; perhaps, for good."""
    moved = deliveries.store(db, out, sent.status or 0, now, now + ASK_AFTER_S, sent.stored_as)
    if moved and sent.confirmed:
        deliveries.confirm(db, out.claim, now)


def _no_association(error: NoAssociation, out: DeliveryRow) -> tuple[Fault, str]:
    if error.miss is Miss.NOTHING_ACCEPTED:
        return Fault.NOT_ACCEPTED, f"no presentation context for {class_of(out)}"
    if error.miss is Miss.REJECTED and error.reject is not None:
        return retry.reject_fault(*error.reject), str(error)
    return Fault.UNREACHABLE if error.miss is Miss.UNREACHABLE else Fault.BROKEN, str(error)
