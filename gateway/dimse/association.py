"""pynetdicom's association, with the fast path of `gateway.dimse.pdata` in its data transfer.

pynetdicom runs two threads for an association: the upper layer (DUL), which owns the socket and the state machine of
PS3.8 9.2, and the reactor, which serves DIMSE messages. Both poll every millisecond. Here

- `UpperLayer` waits on the socket instead of polling, and while the state is Sta6 feeds what arrives to a `Transfer`;
  what `Transfer` does not take is read again by pynetdicom's own code, message by message;
- the reactor is parked meanwhile (`Checkpoint`), and let go whenever there is something for it to do;
- `BufferedSocket` holds what was read and not yet used, so that both ways of reading see one stream;
- every wait has an end: a PDU that was begun must be whole within the ACSE timeout, a message may pause no longer than
  the DIMSE timeout, an idle association is aborted after the network timeout.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

from gateway.dimse.commitment import COMMIT, event_report
from gateway.dimse.pdata import Context, ProtocolError, StoreOutcome, Transfer
from gateway.dimse.reactor import Hearing

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.dimse_primitives import DimsePrimitiveType
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

    from gateway.dimse.command import StoreCommand
    from gateway.dimse.commitment import CommitmentResult
    from gateway.dimse.door import Guest
    from gateway.dimse.pdata import Begin
    from gateway.dimse.status import StoreRefused
    from gateway.dimse.store import AssociationInfo

logger = logging.getLogger(__name__)

BUFFER = 1 << 18
LONGEST_PDU = 1 << 22  # read whole by pynetdicom: association requests, commands and data sets that are not C-STOREs
LONGEST_MESSAGE = 1 << 26
LONGEST_FAREWELL = 1 << 22  # what may still come where only the end matters; before an association is accepted less
WAKE_S = 60.0  # a wait in data transfer ends at least so often, to look at the timers
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class MonotonicTimer(Timer):
    """pynetdicom's timer, deaf to steps of the wall clock."""

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1
        if self._start_time is None:
            return self.timeout
        return self.timeout - ((self._end_time or time.monotonic()) - self._start_time)


class Checkpoint(threading.Event):
    """Where the reactor waits: open unless somebody closed it, or it is parked for want of work.

    Closing it waits until the reactor is really there: pynetdicom asks a flag that the reactor lowers only after it has
    gone on, so it could still take an answer that somebody else waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._change = threading.Condition()
        self._free, self._there = True, False

    def park(self) -> None:
        self._free = False

    def free(self) -> None:
        with self._change:
            self._free = True
            self._change.notify_all()

    def set(self) -> None:
        with self._change:
            self._free = True
            super().set()
            self._change.notify_all()

    def clear(self) -> None:
        with self._change:
            super().clear()
            self._change.wait_for(lambda: self._there, timeout=1.0)  # the reactor of a lost association never comes

    def wait(self, timeout: float | None = None) -> bool:
        with self._change:
            self._there = True
            self._change.notify_all()
            try:
                return self._change.wait_for(lambda: self._free and self.is_set(), timeout)
            finally:
                self._there = False


class BufferedSocket(AssociationSocket):
    """A non-blocking socket and what was read from it and not yet used."""

    def __init__(self, assoc: Association, client_socket: socket.socket, read_timeout_s: float, read: bytes) -> None:
        """read: what was read from it before."""
        super().__init__(assoc, client_socket=client_socket)
        client_socket.setblocking(False)
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read_timeout_s = read_timeout_s
        self._ahead = read  # to be read before the buffer
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._farewell: int | None = None  # bytes that may still come and are thrown away

    def unused(self) -> memoryview:
        """What was read and not yet used."""
        return self._view[self._start : self._end]

    def use(self, count: int) -> None:
        self._start += count

    def unread(self, data: bytes) -> None:
        """Let `recv` return these bytes once more, first."""
        self._ahead += data

    def go_astray(self, most: int = LONGEST_FAREWELL) -> None:
        """The stream was left inside a PDU, or we have said our last word: what follows means nothing, and only its end
        matters."""
        if self._farewell is None:
            self._farewell, self._ahead = most, b""

    def fill(self) -> int:
        """Read what is there; 0 at the end of the stream. Raises one of WOULD_BLOCK, or OSError."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == BUFFER:
            rest = bytes(self.unused())
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = cast(socket.socket, self.socket).recv_into(self._view[self._end :])
        self._end += count
        return count

    @property
    def ready(self) -> bool:
        """Whether `recv` has something to say, be it the end of the stream."""
        if self.socket is None or not self._is_connected:
            return False
        try:
            if self._farewell is not None:
                while self._farewell > 0:  # unread bytes would make the close a reset, and our A-ABORT be lost with it
                    self._start = self._end = 0
                    count = self.fill()
                    if not count:
                        return False
                    self._farewell -= count
                return False
            if not self._ahead and self._start == self._end:
                self.fill()
        except WOULD_BLOCK:
            return False
        except OSError:
            self.event_queue.put("Evt17")
            return False
        return True

    def recv(self, nr_bytes: int) -> bytearray:
        """Exactly so many bytes, or fewer at the end of the stream. Raises TimeoutError, or OSError for too many."""
        if nr_bytes > LONGEST_PDU:
            raise OSError(f"a PDU of {nr_bytes} bytes where at most {LONGEST_PDU} are read")
        data = bytearray(self._ahead[:nr_bytes])
        self._ahead = self._ahead[nr_bytes:]
        deadline = time.monotonic() + self._read_timeout_s
        while len(data) < nr_bytes:
            if self._start == self._end:
                try:
                    if not self.fill():
                        break
                except WOULD_BLOCK:
                    self._wait(select.POLLIN, deadline)
                    continue
            piece = self.unused()[: nr_bytes - len(data)]
            data += piece
            self.use(len(piece))
        return data

    def send(self, bytestream: bytes) -> None:
        """All of it, or the event of a closed connection."""
        view, deadline = memoryview(bytestream), time.monotonic() + self._read_timeout_s
        try:
            while view:
                try:
                    view = view[cast(socket.socket, self.socket).send(view) :]
                except WOULD_BLOCK:
                    self._wait(select.POLLOUT, deadline)
        except OSError:
            self.event_queue.put("Evt17")

    def _wait(self, direction: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(cast(socket.socket, self.socket), direction)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the peer stopped inside a PDU")


class UpperLayer(Hearing):
    """The upper layer of an acceptor, with the fast path in Sta6."""

    def __init__(self, assoc: ReceivingAssociation) -> None:
        super().__init__(assoc)
        self.daemon = True
        self._idle_timer, self.artim_timer = MonotonicTimer(None), MonotonicTimer(None)
        self._transfer: Transfer | None = None
        self._slow = self._slow_begun = False  # the message under way is pynetdicom's
        self._held = threading.local()
        self._wake_lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def run_reactor(self) -> None:
        """pynetdicom's loop; however it ends, nobody is left waiting for this thread."""
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001
            # A thread's last boundary: pynetdicom raises anything at all on hostile PDUs. Only this association ends.
            self.because("we closed the connection: the peer sent a malformed PDU")
            self.warn("malformed PDU", error)
            self.state_machine.current_state = "Sta1"
        finally:
            if self._transfer is not None:
                self._transfer.abandon()
            self._kill_thread = True
            self.to_user_queue.put(cast(A_P_ABORT, None))  # ends a wait for an association request
            self.assoc._reactor_checkpoint.set()
            with self._wake_lock:
                os.close(self._wake_fd)
                self._wake_fd = -1

    def send_pdu(self, primitive: _PDUPrimitiveType) -> None:
        held = getattr(self._held, "fragments", None)
        if held is not None:
            held.append(primitive)
            return
        super().send_pdu(primitive)
        self._wake()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the calling thread sends meanwhile leaves at the end, and nothing comes between."""
        held: list[_PDUPrimitiveType] = []
        self._held.fragments = held
        try:
            yield
        finally:
            del self._held.fragments
        with self.to_provider_queue.mutex:
            self.to_provider_queue.queue.extend(held)
        self._wake()

    def kill_dul(self) -> None:
        super().kill_dul()
        self._wake()

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _is_transport_event(self) -> bool:
        sock = cast(BufferedSocket, self.socket)
        if self.state_machine.current_state == "Sta13":
            sock.go_astray(LONGEST_FAREWELL if cast(ReceivingAssociation, self.assoc).peer is not None else BUFFER)
            return super()._is_transport_event()
        if self.state_machine.current_state == "Sta3" or not self._recv_pdu.empty():
            return False  # a peer that asks waits for the answer: what it says meanwhile is read after an acceptance
        if self._slow and self._slow_begun and self.assoc.dimse.message is None:
            self._slow = self._slow_begun = False
        if self.state_machine.current_state != "Sta6":
            if self._transfer is not None and not self._transfer.between_pdus:
                sock.go_astray()
            return super()._is_transport_event()
        if self._slow:
            handled = super()._is_transport_event()
            self._slow_begun |= handled
            return handled
        if self._idle_timer.expired:
            self.because(f"we aborted: no message came for {self._idle_timer.timeout:.0f} s")
            return False  # the reactor aborts the association
        self._park_reactor()
        try:
            return self._receive(sock)
        finally:
            cast(Checkpoint, self.assoc._reactor_checkpoint).free()

    def _park_reactor(self) -> None:
        if self.to_user_queue.empty() and self.assoc.dimse.msg_queue.empty():
            cast(Checkpoint, self.assoc._reactor_checkpoint).park()

    def _receive(self, sock: BufferedSocket) -> bool:
        """Receive messages until there is something else to do; True where something was received."""
        assoc = cast(ReceivingAssociation, self.assoc)
        if self._transfer is None:
            self._transfer = assoc.new_transfer()
        transfer, received = self._transfer, False
        try:
            while True:
                fed = transfer.feed(sock.unused())
                sock.use(fed.consumed)
                if fed.outcome is StoreOutcome.ANSWER:
                    sock.send(fed.data)
                    self._idle_timer.restart()
                    assoc.answered()
                    self._park_reactor()
                    received = True
                    if not (self.to_provider_queue.empty() and self.event_queue.empty()):
                        return True
                elif fed.outcome is StoreOutcome.OTHER:
                    transfer.abandon()
                    sock.unread(fed.data)
                    self._slow, self._slow_begun = True, False
                    return received
                elif not self._more(sock, transfer):
                    return received
        except ProtocolError as error:
            self._break_off(sock, str(error))
        return True

    def _more(self, sock: BufferedSocket, transfer: Transfer) -> bool:
        """Wait for more bytes; False where there is something else to do first."""
        try:
            if sock.fill():
                return True
        except WOULD_BLOCK:
            return self._wait(sock, transfer)
        except OSError as error:
            self.because(f"the connection broke: {error.strerror}")
        transfer.abandon()
        sock.go_astray()
        self.event_queue.put("Evt17")
        return False

    def _wait(self, sock: BufferedSocket, transfer: Transfer) -> bool:
        timeout_s = self._idle_timer.remaining if self._idle_timer.timeout is not None else WAKE_S
        in_message = not transfer.between_messages
        if in_message and self.assoc.dimse_timeout is not None:
            timeout_s = min(timeout_s, self.assoc.dimse_timeout)
        poll = select.poll()
        poll.register(cast(socket.socket, sock.socket), select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        events = poll.poll(max(0.0, timeout_s) * 1000)
        if any(fd == self._wake_fd for fd, _ in events):
            os.eventfd_read(self._wake_fd)
            return False
        if events:
            self._idle_timer.restart()
            return True
        if in_message:
            raise ProtocolError(f"the peer stopped for {timeout_s:.0f} s inside a message")
        return False

    def _break_off(self, sock: BufferedSocket, why: str) -> None:
        """Abort as the provider (AA-8 of PS3.8 9.2.3)."""
        self.because(f"we aborted: {why}")
        if self._transfer is not None:
            self._transfer.abandon()
        sock.go_astray()
        self.event_queue.put("Evt19")

    def warn(self, what: str, error: Exception) -> None:
        """Tell of an error that is being handled, and on whose association."""
        peer = cast(ReceivingAssociation, self.assoc).peer
        facts = {} if peer is None else peer.facts()
        logger.warning("%s", what, exc_info=error, extra={"event": "association.malformed"} | facts)


class Dimse(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider, which ends the association where it would die of a malformed message."""

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Send a message whole: no answer to an instance comes between its command and its data set."""
        with cast(UpperLayer, self.dul).together():
            super().send_msg(primitive, context_id)

    def receive_primitive(self, primitive: P_DATA) -> None:
        try:
            super().receive_primitive(primitive)
            too_long = self.message is not None and self._size() > LONGEST_MESSAGE
        except Exception as error:  # noqa: BLE001
            # Decoders of hostile bytes raise anything; the state machine must still send its A-ABORT.
            cast(UpperLayer, self.dul).because("we aborted: the peer sent a malformed message")
            cast(UpperLayer, self.dul).warn("malformed DIMSE message", error)
            too_long = True
        if too_long:
            cast(UpperLayer, self.dul).because(f"we aborted: a message of more than {LONGEST_MESSAGE} bytes came")
            self.dul.event_queue.put("Evt19")

    def _size(self) -> int:
        assert self.message is not None
        data_set = self.message.data_set
        return self.message.encoded_command_set.tell() + (data_set.tell() if data_set is not None else 0)


class ReceivingAssociation(Association):
    """An acceptor's association whose C-STOREs go to `begin` by the fast path."""

    def __init__(
        self,
        ae: ApplicationEntity,
        guest: Guest,
        beginner: Callable[[ReceivingAssociation], Begin],
        acse: type[ACSE],
        *,
        answered: Callable[[ReceivingAssociation], None],
        left: Callable[[ReceivingAssociation], None],
        refused: Callable[[ReceivingAssociation, StoreCommand, StoreRefused, BaseException], object],
    ) -> None:
        """beginner: gives what starts its instances. answered: called whenever an instance was answered. left: called
        once, when it is over. refused: called for each instance that is answered with a failure."""
        super().__init__(ae, MODE_ACCEPTOR)
        self.peer: AssociationInfo | None = None  # once admitted
        self.asked = guest.request
        self._beginner, self._answered, self._left, self._refused = beginner, answered, left, partial(refused, self)
        self._reactor_checkpoint = Checkpoint()
        self._reactor_checkpoint.set()
        self._reporting = threading.Lock()
        self.acse, self.dul, self.dimse = acse(self), UpperLayer(self), Dimse(self)
        self.acse_timeout, self.network_timeout = ae.acse_timeout, ae.network_timeout  # sets the new timers
        self.dul.titles = guest.request.titles
        self._client_socket = guest.socket
        read = guest.request.encode() + guest.rest
        self.set_socket(BufferedSocket(self, guest.socket, ae.acse_timeout or WAKE_S, read))

    @property
    def ending(self) -> str:
        """How it came to its end, in words."""
        return cast(UpperLayer, self.dul).ending or "the peer closed the connection without a release"

    def stop(self, why: str) -> None:
        """Abort it, and say why."""
        cast(UpperLayer, self.dul).because(f"we aborted: {why}")
        self.abort()

    def run_reactor(self) -> None:
        """pynetdicom's loop; however it ends, its end is told of and the socket closed."""
        try:
            super().run_reactor()
        finally:
            self.dul.kill_dul()
            self.dul.join()
            self._client_socket.close()
            self._left(self)

    def _run_reactor(self) -> None:
        """pynetdicom's loop; a last A-ABORT leaves before the socket is closed."""
        super()._run_reactor()
        self.dul.join(self.acse_timeout)

    def report(self, result: CommitmentResult) -> bool:
        """Tell the peer of a storage commitment, one after the other; whether it took the report.

        A peer that wants to go meanwhile is let go, and not made to wait for its own answer.
        """
        with self._reporting:
            return self._report(result)

    def _report(self, result: CommitmentResult) -> bool:
        context = next((one for one in self.accepted_contexts if one.abstract_syntax == COMMIT), None)
        if context is None or not self.is_established:
            return False
        told = event_report(result, context.transfer_syntax[0])
        aside = []
        self._reactor_checkpoint.clear()
        try:
            self.dimse.send_msg(told, cast(int, context.context_id))
            deadline = time.monotonic() + (self.dimse_timeout or WAKE_S)
            while self.is_established and self.dul.to_user_queue.empty() and time.monotonic() < deadline:
                try:
                    found = self.dimse.msg_queue.get(timeout=0.05)
                except queue.Empty:
                    continue
                if isinstance(found[1], N_EVENT_REPORT) and found[1].MessageIDBeingRespondedTo == told.MessageID:
                    return bool(found[1].Status == 0x0000)
                aside.append(found)
            return False
        finally:
            for found in aside:
                self.dimse.msg_queue.put(found)
            self._reactor_checkpoint.set()

    def answered(self) -> None:
        """An instance was answered; its sender prepares the next."""
        self._answered(self)

    def new_transfer(self) -> Transfer:
        """The fast path for what was negotiated."""
        contexts = {
            context.context_id: Context(str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in self.accepted_contexts
            if context.context_id is not None and context.abstract_syntax is not None
        }
        return Transfer(contexts, self._beginner(self), self.requestor.maximum_length or 0, self._refused)
