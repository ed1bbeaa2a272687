"""The door: where a connection waits until it has said who it is, before it costs a thread.

    accept ──> waiting ──whole A-ASSOCIATE-RQ──> handed on, to pynetdicom's association
                  │
                  ├── anything else ──> A-ABORT (PS3.8 9.2.3, AA-1) ──> leaving ──> closed
                  └── nothing in time, or more than LONGEST_REQUEST ──> closed

Who knocks is unknown: nobody gets more than LONGEST_REQUEST bytes, the ACSE timeout and a line of the log
(`gateway.dimse.noise`), nothing that follows a wrong start is parsed, and at most WAITING connections wait in a
process; when there are more, whoever has waited longest goes, since a peer that means it asks as soon as it is
connected. One thread waits for all of them.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gateway.dimse import negotiation
from gateway.dimse.negotiation import ABORT, ASSOCIATE_RQ, HEADER, MalformedPdu, Request
from gateway.dimse.noise import Noise, protocol

logger = logging.getLogger(__name__)

LONGEST_REQUEST = 1 << 18
WAITING = 128
LEAVE_S = 1.0  # for a peer to read our A-ABORT, while what it still sends is thrown away
TICK_S = 1.0
PIECE = 1 << 16


class NotAnAssociation(Exception):
    """What a connection began with is no association request."""


class Gone(Exception):
    """A connection ended in a way that is worth no word."""


@dataclass(frozen=True)
class Guest:
    """A connection that may become an association. rest: what came after its request."""

    socket: socket.socket
    address: Any
    request: Request
    rest: bytes


@dataclass(eq=False)
class _Visit:
    """A connection at the door.

    since_s: when it came. needed: bytes that it must have said before it is looked at again. leaving: we have aborted,
    and only its end matters; dropped: bytes that came since.
    """

    socket: socket.socket
    address: Any
    since_s: float
    until_s: float
    said: bytearray = field(default_factory=bytearray)
    needed: int = 1
    dropped: int = 0
    leaving: bool = False

    @property
    def host(self) -> str:
        return str(self.address[0])


def judge(said: bytes) -> tuple[Request, bytes] | int:
    """The request that a connection began with, and what follows it; or how many bytes it takes to say more. Raises
    NotDicom for anything else, Gone for an A-ABORT (AA-2)."""
    if not said:
        return 1
    if said[0] != ASSOCIATE_RQ:
        _is_no_request(said)
    if len(said) < HEADER.size:
        return HEADER.size
    _, length = HEADER.unpack_from(said)
    end = HEADER.size + length
    if end > LONGEST_REQUEST:
        raise NotAnAssociation(f"it began with a PDU of {length} bytes, where a request has at most {LONGEST_REQUEST}")
    if len(said) < end:
        return int(end)
    try:
        return negotiation.read_request(said[:end]), said[end:]
    except MalformedPdu as error:
        raise NotAnAssociation(f"it began with {error}") from error


def _is_no_request(said: bytes) -> NoReturn:
    kind = said[0]
    if kind == ABORT:
        raise Gone
    _, length = HEADER.unpack_from(said.ljust(HEADER.size, b"\0"))
    if ASSOCIATE_RQ < kind < ABORT and not said[1] and length < LONGEST_REQUEST:
        raise NotAnAssociation(f"it began with a PDU of type {kind:02X}H, where an association request is due")
    raise NotAnAssociation(f"it is no DICOM but {protocol(said)}")


class Door:
    """Take connections; those that ask for an association are handed on, in the door's own thread."""

    def __init__(
        self, enter: Callable[[Guest], object], timeout_s: float, refused: Callable[[str, str, int], object]
    ) -> None:
        """timeout_s: for a connection to ask. refused: called with address, reason and number of connections."""
        self._enter, self._timeout_s, self._refused = enter, timeout_s, refused
        self._noise = Noise()
        self._new: deque[tuple[socket.socket, Any]] = deque()
        self._visits: dict[int, _Visit] = {}
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dicom door", daemon=True)

    @property
    def waiting(self) -> int:
        """Connections that have not said yet who they are, or are about to be closed."""
        return len(self._new) + len(self._visits)

    def open(self) -> None:
        self._thread.start()

    def take(self, connection: socket.socket, address: Any) -> None:
        """A connection was accepted."""
        self._new.append((connection, address))
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close whatever waits."""
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._tell(float("inf"))
        self._selector.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closed:
            now = time.monotonic()
            ends = min((visit.until_s for visit in self._visits.values()), default=now + TICK_S)
            for key, _ in self._selector.select(max(0.0, min(ends - now, TICK_S))):
                if key.data is None:
                    os.eventfd_read(self._wake)
                else:
                    self._heard(key.data)
            self._let_in()
            self._end_waits(time.monotonic())
            self._tell(time.monotonic())
        for visit in list(self._visits.values()):
            self._close(visit)
        while self._new:
            self._new.popleft()[0].close()

    def _let_in(self) -> None:
        while self._new:
            connection, address = self._new.popleft()
            connection.setblocking(False)
            if len(self._visits) >= WAITING:
                oldest = min(self._visits.values(), key=lambda visit: visit.since_s)
                self._end(oldest, f"it was the oldest of {WAITING} connections that asked for no association")
            now = time.monotonic()
            visit = _Visit(connection, address, now, now + self._timeout_s)
            self._visits[connection.fileno()] = visit
            self._selector.register(connection, selectors.EVENT_READ, visit)
            self._heard(visit)

    def _heard(self, visit: _Visit) -> None:
        """Read what a connection says, once."""
        try:
            self._read(visit)
        except Exception:
            # This thread is the only way in: whatever goes wrong with one connection, the others come in.
            logger.exception("connection not taken in", extra={"event": "connection.failed", "host": visit.host})
            if visit in self._visits.values():
                self._close(visit)

    def _read(self, visit: _Visit) -> None:
        try:
            piece = visit.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if visit.leaving:
            visit.dropped += len(piece)
            if not piece or visit.dropped > LONGEST_REQUEST:
                self._close(visit)
            return
        visit.said += piece
        if piece and len(visit.said) < visit.needed:
            return
        try:
            asked = judge(bytes(visit.said))
            if not isinstance(asked, int):
                self._hand_on(visit, *asked)
            elif piece:
                visit.needed = asked
            else:
                raise NotAnAssociation("it ended inside its association request") if visit.said else Gone
        except NotAnAssociation as error:
            self._turn_away(visit, str(error), answer=bool(piece))
        except Gone:
            self._close(visit)

    def _hand_on(self, visit: _Visit, request: Request, rest: bytes) -> None:
        self._forget(visit)
        self._enter(Guest(visit.socket, visit.address, request, rest))

    def _turn_away(self, visit: _Visit, why: str, *, answer: bool) -> None:
        """One A-ABORT, and time to read it; neither for who comes again and again."""
        if not answer or self._noise.repeated(visit.host):
            self._end(visit, why)
            return
        self._note(visit.host, why)
        visit.leaving, visit.until_s, visit.dropped = True, time.monotonic() + LEAVE_S, len(visit.said)
        visit.said.clear()
        with suppress(OSError):
            visit.socket.send(negotiation.abort(0, 0))
            visit.socket.shutdown(socket.SHUT_WR)

    def _end_waits(self, now: float) -> None:
        for visit in [visit for visit in self._visits.values() if visit.until_s <= now]:
            if visit.leaving:
                self._close(visit)
            else:
                said = "stopped inside its association request" if visit.said else "asked for no association"
                self._end(visit, f"it {said} for {self._timeout_s:.0f} s")

    def _end(self, visit: _Visit, why: str) -> None:
        if not visit.leaving:
            self._note(visit.host, why)
        self._close(visit)

    def _note(self, host: str, why: str) -> None:
        if self._noise.heard(host, time.monotonic()):
            self._refused(host, why, 1)

    def _tell(self, now: float) -> None:
        for host, count in self._noise.due(now):
            self._refused(host, "they asked for no association, as those before", count)

    def _close(self, visit: _Visit) -> None:
        self._forget(visit)
        visit.socket.close()

    def _forget(self, visit: _Visit) -> None:
        self._selector.unregister(visit.socket)
        del self._visits[visit.socket.fileno()]
