"""The SCP: Verification (PS3.4 Annex A) and Storage (PS3.4 Annex B) on one port.

Who may come in is decided before anything is negotiated (PS3.8 9.3.4): who is unknown is rejected for good, who comes
while there is no room is asked to try again. What is stored goes to a `Store` and is answered when that says so.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationServer, RequestHandler

from gateway.dimse import contexts
from gateway.dimse.association import ReceivingAssociation
from gateway.dimse.commitment import CommitmentReport, commitment_context, on_event_report
from gateway.dimse.pdata import STORE_ERRORS, Begin
from gateway.dimse.storing import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Ending,
    Incoming,
    Peer,
    Store,
    StoreRequest,
)

if TYPE_CHECKING:
    from gateway.dimse.command import StoreCommand

logger = logging.getLogger(__name__)

MAXIMUM_PDU = 131072
BACKLOG = 128
Caller: TypeAlias = tuple[str, str | None]
"""Who may call: an AE title, compared exactly, and the host address it must call from (None: any)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many associations may be open at once, in all and per calling AE."""

    associations: int = 25
    per_caller: int = 10


@dataclass(frozen=True, slots=True)
class Timeouts:
    """acse_s: a connection without an association, and a PDU that was begun. dimse_s: a pause inside a message.
    network_s: an association without a message."""

    acse_s: float = 30
    dimse_s: float = 60
    network_s: float = 120


class Rejection(Enum):
    """A-ASSOCIATE-RJ: result, source, reason (PS3.8 table 9-21). Result 1 is permanent, 2 transient."""

    CALLING_AE_NOT_RECOGNIZED = (1, 1, 3)
    CALLED_AE_NOT_RECOGNIZED = (1, 1, 7)
    TEMPORARY_CONGESTION = (2, 3, 1)
    LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


class Admission:
    """Who is let in, and how many are."""

    def __init__(self, called: Collection[str], callers: Collection[Caller] | None, limits: Limits) -> None:
        """called: our own AE titles. callers: None lets anybody in."""
        self._called = frozenset(called)
        self._callers = None if callers is None else frozenset(callers)
        self._limits = limits
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, peer: Peer) -> Rejection | None:
        """Count the peer in, or say why not."""
        if peer.called_ae not in self._called:
            return Rejection.CALLED_AE_NOT_RECOGNIZED
        if self._callers is not None and not self._callers & {(peer.calling_ae, None), (peer.calling_ae, peer.host)}:
            return Rejection.CALLING_AE_NOT_RECOGNIZED
        with self._lock:
            if self._open.total() >= self._limits.associations:
                return Rejection.LOCAL_LIMIT_EXCEEDED
            if self._open[peer.calling_ae] >= self._limits.per_caller:
                return Rejection.LOCAL_LIMIT_EXCEEDED
            self._open[peer.calling_ae] += 1
        return None

    def leave(self, peer: Peer) -> None:
        with self._lock:
            self._open[peer.calling_ae] -= 1
            self._open += Counter()  # drops what is down to zero

    @property
    def open(self) -> int:
        """Associations that are in."""
        with self._lock:
            return self._open.total()


class _Gate(ACSE):
    """pynetdicom's association control, behind `StorageScp.admit`."""

    def _negotiate_as_acceptor(self) -> None:
        assoc = cast(ReceivingAssociation, self.assoc)
        scp = cast(_Server, assoc._server).scp
        request = assoc.requestor.primitive
        if not isinstance(request, A_ASSOCIATE):  # the connection broke first
            assoc.kill()
            return
        rejection = scp.admit(assoc, request)
        if rejection is None:
            supported = contexts.supported(request.presentation_context_definition_list)
            if scp.reported is not None:
                supported.append(commitment_context())
                assoc.bind(evt.EVT_N_EVENT_REPORT, on_event_report, [scp.reported])
            assoc.acceptor.supported_contexts = supported
            super()._negotiate_as_acceptor()
        else:
            self.send_reject(*rejection.value)
            evt.trigger(assoc, evt.EVT_REJECTED, {})
            assoc.kill()


class _Handler(RequestHandler):
    """Makes the association of a new connection."""

    server: _Server

    def _create_association(self) -> ReceivingAssociation:
        assoc = ReceivingAssociation(self.ae, self.request, self.server.scp.beginner, _Gate, self.server.scp.left)
        assoc._server = self.server
        assoc.name = f"AcceptorThread@{uuid.uuid4().hex}"  # the prefix is how pynetdicom knows its acceptors
        assoc.acceptor.maximum_length = self.ae.maximum_pdu_size
        assoc.acceptor.ae_title = self.server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = self.ae.implementation_version_name
        assoc.requestor.address_info = self.remote
        self.server.scp.came(assoc)
        return assoc


class _Server(AssociationServer):
    """pynetdicom's listener."""

    request_queue_size = BACKLOG

    def __init__(self, scp: StorageScp, ae: ApplicationEntity, address: tuple[str, int], shared_port: bool) -> None:
        self.scp, self._shared_port = scp, shared_port
        self._collected = True
        super().__init__(ae, address, ae.ae_title, [build_context(Verification)], request_handler=_Handler)

    def server_bind(self) -> None:
        if self._shared_port:
            cast(socket.socket, self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def service_actions(self) -> None:
        """pynetdicom collects garbage here every 60 rounds, in the middle of whatever is received: only while idle."""
        if self.scp.connections:
            self._collected = False
        elif not self._collected:
            gc.collect()
            self._collected = True

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - as socketserver calls it
        """Whether one more connection is looked at: a flood is cut off before it costs threads."""
        return self.scp.connections < self.scp.connection_limit


class StorageScp:
    """Listens, admits, receives. `start` and `stop` it once; also a context manager.

    ae_titles: the titles it answers to; the first is its own.
    port: 0 picks a free one, see `port`.
    callers: None lets anybody in.
    shared_port: several processes may listen on the same port, and the kernel deals connections out (SO_REUSEPORT).
        Limits hold per process.
    reported: takes the storage commitment reports that peers send on associations of their own.
    """

    def __init__(
        self,
        store: Store,
        *,
        ae_titles: Collection[str],
        host: str,
        port: int,
        callers: Collection[Caller] | None,
        limits: Limits = Limits(),
        timeouts: Timeouts = Timeouts(),
        maximum_pdu: int = MAXIMUM_PDU,
        shared_port: bool = False,
        reported: Callable[[CommitmentReport], object] | None = None,
    ) -> None:
        self._store, self.reported = store, reported
        self._admission = Admission(ae_titles, callers, limits)
        self.connection_limit = 2 * limits.associations + BACKLOG
        self._address, self._shared_port = (host, port), shared_port
        self._ae = ApplicationEntity(next(iter(ae_titles)))
        self._ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_pdu_size = maximum_pdu
        self._ae.maximum_associations = self.connection_limit  # Admission keeps the real limits
        self._ae.acse_timeout, self._ae.dimse_timeout = timeouts.acse_s, timeouts.dimse_s
        self._ae.network_timeout = timeouts.network_s
        self._connections: set[ReceivingAssociation] = set()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind and listen. Raises OSError where the port is taken."""
        self._server = _Server(self, self._ae, self._address, self._shared_port)
        self._ae._servers.append(cast(Any, self._server))
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.1,), name="dicom listener", daemon=True)
        self._thread.start()
        logger.info("listening on %s:%d", self._address[0], self.port, extra={"event": "scp.listening"})

    def stop(self, grace_s: float = 10.0) -> None:
        """Let nobody in, let who is in finish for `grace_s`, abort who is left."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server = None
        deadline = time.monotonic() + grace_s
        while self.connections and time.monotonic() < deadline:
            time.sleep(0.02)
        with self._lock:
            left = list(self._connections)
        for assoc in left:
            assoc.abort()
        for assoc in left:
            assoc.join(timeout=5)

    def __enter__(self) -> StorageScp:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(grace_s=0)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._address[1] if self._server is None else int(self._server.server_address[1])

    @property
    def associations(self) -> int:
        """Associations that are open."""
        return self._admission.open

    @property
    def connections(self) -> int:
        """Connections that are open, with or without an association."""
        with self._lock:
            return len(self._connections)

    def came(self, assoc: ReceivingAssociation) -> None:
        """A connection was made."""
        with self._lock:
            self._connections.add(assoc)

    def admit(self, assoc: ReceivingAssociation, request: A_ASSOCIATE) -> Rejection | None:
        """Whether an association that is asked for may be: the store knows of it before it is accepted."""
        peer = Peer(
            id=uuid.uuid4().hex,
            calling_ae=request.calling_ae_title.strip(),
            called_ae=request.called_ae_title.strip(),
            host=assoc.requestor.address or "",
        )
        rejection = self._admission.enter(peer)
        if rejection is None and not self._opened(peer):
            self._admission.leave(peer)
            rejection = Rejection.TEMPORARY_CONGESTION
        if rejection is None:
            assoc.peer = peer
            assoc.acceptor.ae_title = peer.called_ae
        facts = {"calling_ae": peer.calling_ae, "called_ae": peer.called_ae, "host": peer.host}
        if rejection is None:
            logger.info("association opened", extra={"event": "association.opened", "association": peer.id} | facts)
        else:
            logger.warning(
                "association rejected", extra={"event": "association.rejected", "why": rejection.name} | facts
            )
        return rejection

    def left(self, assoc: ReceivingAssociation) -> None:
        """A connection is over."""
        try:
            if assoc.peer is not None:
                self._leave(assoc, assoc.peer)
        finally:
            with self._lock:
                self._connections.discard(assoc)

    def _leave(self, assoc: ReceivingAssociation, peer: Peer) -> None:
        self._admission.leave(peer)
        ending = Ending.RELEASED if assoc.is_released else Ending.ABORTED
        logger.info("association %s", ending, extra={"event": f"association.{ending}", "association": peer.id})
        try:
            self._store.closed(peer, ending)
        except STORE_ERRORS:
            logger.exception("end of association not recorded", extra={"event": "association.unrecorded"})

    def beginner(self, assoc: ReceivingAssociation) -> Begin:
        """What starts the instances of an association."""
        peer, store = assoc.peer, self._store
        assert peer is not None

        def begin(command: StoreCommand, transfer_syntax_uid: str) -> Incoming:
            return store.begin(
                StoreRequest(
                    peer, command.sop_class_uid, command.sop_instance_uid, transfer_syntax_uid, command.priority
                )
            )

        return begin

    def _opened(self, peer: Peer) -> bool:
        try:
            if not self._store.has_room():
                return False
            self._store.opened(peer)
        except STORE_ERRORS:
            logger.exception("association not recorded", extra={"event": "association.unrecorded"})
            return False
        return True
