"""An acceptor's association: pynetdicom's, with the fast path of `gateway.dimse.pdata` in its data transfer.

pynetdicom runs two threads for an association: the upper layer (DUL), which owns the socket and the state machine of
PS3.8 9.2, and the reactor, which serves DIMSE messages. Both poll every millisecond. Here

- `ReceivingUpperLayer` waits on the socket instead of polling, and while the state is Sta6 feeds what arrives to a
  `Transfer`; what `Transfer` does not take is read again by pynetdicom's own code, message by message;
- the reactor is parked meanwhile (`Checkpoint`), and let go whenever there is something for it to do;
- `BufferedSocket` holds what was read and not yet used, so that both ways of reading see one stream;
- every wait has an end: a PDU that was begun must be whole within the ACSE timeout, a message may pause no longer than
  the DIMSE timeout, an idle association is aborted after the network timeout.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from pynetdicom import evt
from pynetdicom.acse import ACSE
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import A_ASSOCIATE, A_P_ABORT, P_DATA

from gateway.dimse.pdata import ProtocolError, StoreOutcome, Transfer
from gateway.dimse.reactor.buffered_socket import BUFFER, LONGEST_FAREWELL, WOULD_BLOCK, BufferedSocket
from gateway.dimse.reactor.checkpoint import Checkpoint, PausingAssociation
from gateway.dimse.reactor.upper_layer import LenientUpperLayer, MonotonicTimer

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.dimse_primitives import DimsePrimitiveType
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

    from gateway.dimse.door import Guest
    from gateway.dimse.store import AssociationInfo

logger = logging.getLogger(__name__)

LONGEST_MESSAGE = 1 << 26
WAKE_S = 60.0  # a wait in data transfer ends at least so often, to look at the timers
PAUSE_S = 1.0  # for the reactor to come to its checkpoint: that of a lost association never does


class AcceptorAssociation(PausingAssociation, ABC):
    """pynetdicom's association on our upper layer, DIMSE provider and association control.

    peer: once admitted. Who is admitted and where instances go is for a subclass to say.
    """

    peer: AssociationInfo | None = None

    def __init__(self, ae: ApplicationEntity, guest: Guest) -> None:
        super().__init__(ae, "acceptor")
        self._reactor_checkpoint = Checkpoint()
        self.acse, self.dul, self.dimse = Gate(self), ReceivingUpperLayer(self), WholeMessages(self)
        self.acse_timeout, self.network_timeout = ae.acse_timeout, ae.network_timeout  # sets the new timers
        self.dul.titles = guest.request.titles
        self._guest_socket = guest.socket
        read = guest.request.encode() + guest.rest
        self.set_socket(BufferedSocket(self, guest.socket, ae.acse_timeout or WAKE_S, read))

    @abstractmethod
    def admit(self, request: A_ASSOCIATE) -> tuple[int, int, int] | None:
        """Let it in and set what it supports; or result, source and reason of its rejection (PS3.8 table 9-21)."""

    @abstractmethod
    def new_transfer(self) -> Transfer:
        """The fast path for what was negotiated."""

    @abstractmethod
    def answered(self) -> None:
        """An instance was answered; its sender prepares the next."""

    @abstractmethod
    def left(self) -> None:
        """It is over, and its connection closed: called once."""

    @property
    def ending(self) -> str:
        """How it came to its end, in words."""
        return cast(LenientUpperLayer, self.dul).ending or "the peer closed the connection without a release"

    def stop(self, why: str) -> None:
        """Abort it, and say why."""
        cast(LenientUpperLayer, self.dul).because(f"we aborted: {why}")
        self.abort()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The reactor takes no message meanwhile."""
        self._reactor_checkpoint.hold(PAUSE_S)
        try:
            yield
        finally:
            self._reactor_checkpoint.set()

    def run_reactor(self) -> None:
        """pynetdicom's loop; however it ends, its end is told of and the socket closed."""
        try:
            super().run_reactor()
        finally:
            self.dul.kill_dul()
            self.dul.join()
            self._guest_socket.close()
            self.left()

    def _run_reactor(self) -> None:
        """pynetdicom's loop; a last A-ABORT leaves before the socket is closed."""
        super()._run_reactor()
        self.dul.join(self.acse_timeout)


class Gate(ACSE):
    """pynetdicom's association control, behind `AcceptorAssociation.admit`."""

    def _negotiate_as_acceptor(self) -> None:
        assoc = cast(AcceptorAssociation, self.assoc)
        request = assoc.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):  # the connection broke first
            assoc.kill()
            return
        rejection = assoc.admit(request)
        if rejection is None:
            super()._negotiate_as_acceptor()
        else:
            self.send_reject(*rejection)
            evt.trigger(assoc, evt.EVT_REJECTED, {})
            assoc.kill()

    def send_accept(self) -> None:
        """Accept, and know of it before the peer does: its report may be served at once, by a thread of its own."""
        self.assoc.is_established = True
        super().send_accept()


class ReceivingUpperLayer(LenientUpperLayer):
    """The upper layer of an acceptor, with the fast path in Sta6."""

    def __init__(self, assoc: AcceptorAssociation) -> None:
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
            self._checkpoint.set()
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

    @property
    def _checkpoint(self) -> Checkpoint:
        return cast(AcceptorAssociation, self.assoc)._reactor_checkpoint

    def _is_transport_event(self) -> bool:
        sock = cast(BufferedSocket, self.socket)
        if self.state_machine.current_state == "Sta13":
            sock.go_astray(LONGEST_FAREWELL if cast(AcceptorAssociation, self.assoc).peer is not None else BUFFER)
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
            self._checkpoint.unpark()

    def _park_reactor(self) -> None:
        if self.to_user_queue.empty() and self.assoc.dimse.msg_queue.empty():
            self._checkpoint.park()

    def _receive(self, sock: BufferedSocket) -> bool:
        """Receive messages until there is something else to do; True where something was received."""
        assoc = cast(AcceptorAssociation, self.assoc)
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
        peer = cast(AcceptorAssociation, self.assoc).peer
        facts = {} if peer is None else peer.facts()
        logger.warning("%s", what, exc_info=error, extra={"event": "association.malformed"} | facts)


class WholeMessages(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider: messages leave whole, and a malformed one ends the association in good order."""

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Send a message whole: no answer to an instance comes between its command and its data set."""
        with cast(ReceivingUpperLayer, self.dul).together():
            super().send_msg(primitive, context_id)

    def receive_primitive(self, primitive: P_DATA) -> None:
        try:
            super().receive_primitive(primitive)
            too_long = self.message is not None and self._size() > LONGEST_MESSAGE
        except Exception as error:  # noqa: BLE001
            # Decoders of hostile bytes raise anything; the state machine must still send its A-ABORT.
            cast(ReceivingUpperLayer, self.dul).because("we aborted: the peer sent a malformed message")
            cast(ReceivingUpperLayer, self.dul).warn("malformed DIMSE message", error)
            too_long = True
        if too_long:
            cast(ReceivingUpperLayer, self.dul).because(
                f"we aborted: a message of more than {LONGEST_MESSAGE} bytes came"
            )
            self.dul.event_queue.put("Evt19")

    def _size(self) -> int:
        assert self.message is not None
        data_set = self.message.data_set
        return self.message.encoded_command_set.tell() + (data_set.tell() if data_set is not None else 0)
