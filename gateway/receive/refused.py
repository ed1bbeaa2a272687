"""What a receiver does not take is written down once a second, however much it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gateway.dimse.noise import OTHERS
from gateway.dimse.store import RefusedCaller, StoreRefusal
from gateway.ledger import refusals
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.refusals import MOST, RefusedPeer
from gateway.logs import printable

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
LONGEST = 64  # of what a peer says of itself


class Refusals:
    """Gathers what was not taken. note: from any thread; step: now and then, from one."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger, self._clock = ledger, clock
        self._noted: dict[tuple[RefusedCaller, str, str], RefusedPeer] = {}
        self._lock = threading.Lock()
        self._next_at = 0.0

    def note(self, refusal: StoreRefusal) -> None:
        """Something was not taken."""
        now = self._clock()
        uid = refusal.sop_instance_uid
        said = RefusedPeer(
            refusal.what, _shown(refusal.calling_ae), _shown(refusal.host), refusal.count, now, now,
            refusal.reason, None if uid is None else _shown(uid),
        )  # fmt: skip
        with self._lock:
            self._add(said)

    def step(self) -> None:
        """Write down what was noted."""
        now = self._clock()
        if not self._noted or now < self._next_at:
            return
        self._next_at = now + PAUSE_S
        with self._lock:
            noted, self._noted = self._noted, {}
        try:
            self._ledger.write(refusals.add, noted.values())
        except LedgerUnavailable as error:
            logger.warning("what was refused is not recorded: %s", error, extra={"event": "refusals.unrecorded"})

    def _add(self, said: RefusedPeer) -> None:
        key = (said.what, said.calling_ae, said.host)
        if key not in self._noted and len(self._noted) >= MOST:
            key = (said.what, "", OTHERS)
        before = self._noted.get(key)
        count, first_at = (0, said.first_at) if before is None else (before.count, before.first_at)
        self._noted[key] = RefusedPeer(
            *key, said.count + count, first_at, said.last_at, said.reason, said.sop_instance_uid
        )  # fmt: skip


def _shown(text: str) -> str:
    return printable(text)[:LONGEST]
