"""The SCP: Verification (PS3.4 Annex A) and Storage (PS3.4 Annex B) on one port.

Who may come in is decided before anything is negotiated (PS3.8 9.3.4): who is unknown is rejected for good, who comes
while there is no room is asked to try again. What is stored goes to a `Store` and is answered when that says so.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, cast

from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity

from gateway.dimse import meanings
from gateway.dimse.association import ReceivingAssociation
from gateway.dimse.commitment import CommitmentReport, CommitmentRequest, CommitmentResult
from gateway.dimse.negotiation import APPLICATION_CONTEXT, Request
from gateway.dimse.pdata import STORE_ERRORS, Begin
from gateway.dimse.reactor.server import BACKLOG, Server
from gateway.dimse.store import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    AssociationInfo,
    AssociationLimits,
    Ending,
    Incoming,
    RefusedCaller,
    Store,
    StoreRefusal,
    StoreRequest,
)
from gateway.retry import meaning

if TYPE_CHECKING:
    from gateway.dimse.command import StoreCommand
    from gateway.dimse.door import Guest
    from gateway.dimse.reactor.acceptor import AcceptorAssociation
    from gateway.dimse.status import StoreRefused

logger = logging.getLogger(__name__)

MAXIMUM_PDU = 131072
Caller: TypeAlias = tuple[str, str | None]
"""Who may call: an AE title, compared exactly, and the host address it must call from (None: any)."""


@dataclass(frozen=True, slots=True)
class AcceptorTimeouts:
    """acse_s: a connection without an association, and a PDU that was begun. dimse_s: a pause inside a message.
    network_s: an association without a message."""

    acse_s: float = 30
    dimse_s: float = 60
    network_s: float = 120


class Rejection(Enum):
    """A-ASSOCIATE-RJ: result, source, reason (PS3.8 table 9-21). Result 1 is permanent, 2 transient."""

    PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)
    APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
    CALLING_AE_NOT_RECOGNIZED = (1, 1, 3)
    CALLED_AE_NOT_RECOGNIZED = (1, 1, 7)
    TEMPORARY_CONGESTION = (2, 3, 1)
    LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


class Admission:
    """Who is let in."""

    def __init__(self, called: Collection[str], callers: Collection[Caller] | None) -> None:
        """called: our own AE titles. callers: None lets anybody in."""
        self._called = frozenset(called)
        self._callers = None if callers is None else frozenset(callers)

    def refuse(self, peer: AssociationInfo) -> Rejection | None:
        """Why a peer is not let in, however much room there is."""
        if peer.called_ae not in self._called:
            return Rejection.CALLED_AE_NOT_RECOGNIZED
        if self._callers is not None and not self._callers & {(peer.calling_ae, None), (peer.calling_ae, peer.host)}:
            return Rejection.CALLING_AE_NOT_RECOGNIZED
        return None


class StorageScp:
    """Listens, admits, receives. `start` and `stop` it once; also a context manager.

    ae_titles: the titles it answers to; the first is its own.
    port: 0 picks a free one, see `port`.
    callers: None lets anybody in.
    listener: a bound socket, from which several processes may accept; else one of its own is made.
    limits: for all processes that share the store's ledger.
    reported: takes the storage commitment reports that peers send on associations of their own.
    asked: takes their own requests for storage commitment; see `report`.
    noted: takes what was not let in, or not taken.
    """

    def __init__(
        self,
        store: Store,
        *,
        ae_titles: Collection[str],
        host: str,
        port: int,
        callers: Collection[Caller] | None,
        limits: AssociationLimits,
        timeouts: AcceptorTimeouts = AcceptorTimeouts(),
        maximum_pdu: int = MAXIMUM_PDU,
        listener: socket.socket | None = None,
        reported: Callable[[CommitmentReport], object] | None = None,
        asked: Callable[[CommitmentRequest], object] | None = None,
        noted: Callable[[StoreRefusal], object] = lambda _: None,
    ) -> None:
        self._store, self.reported, self.asked, self._noted = store, reported, asked, noted
        self._address, self._listener = (host, port), listener
        self._ae = ApplicationEntity(next(iter(ae_titles)))
        self._ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        self._ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        self._ae.maximum_pdu_size = maximum_pdu
        self._ae.acse_timeout, self._ae.dimse_timeout = timeouts.acse_s, timeouts.dimse_s
        self._ae.network_timeout = timeouts.network_s
        self._connections: set[ReceivingAssociation] = set()
        self._admitted = 0
        self._lock = threading.Lock()
        self.admit_by(ae_titles=ae_titles, callers=callers, limits=limits)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def admit_by(
        self, *, ae_titles: Collection[str], callers: Collection[Caller] | None, limits: AssociationLimits
    ) -> None:
        """Let in by other rules from now on; the associations that are open stay."""
        self._admission, self._limits = Admission(ae_titles, callers), limits
        self.connection_limit = 2 * limits.associations + BACKLOG  # more than are let in, so that the others are told
        self._ae.maximum_associations = self.connection_limit  # the store keeps the real limits

    def start(self) -> None:
        """Bind and listen. Raises OSError where the port is taken."""
        self._server = Server(self, self._ae, self._address, self._listener)
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
            assoc.stop("the receiver stops")
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
        """Associations that are open in this process."""
        with self._lock:
            return self._admitted

    @property
    def inside(self) -> int:
        """Connections that have asked for an association."""
        with self._lock:
            return len(self._connections)

    @property
    def connections(self) -> int:
        """Connections that are open, with or without an association."""
        server = self._server
        return self.inside + (server.door.waiting if server is not None else 0)

    def association(self, ae: ApplicationEntity, guest: Guest) -> ReceivingAssociation:
        """Of a connection that asks for one."""
        return ReceivingAssociation(self, ae, guest)

    def came(self, assoc: AcceptorAssociation) -> None:
        """A connection was made."""
        with self._lock:
            self._connections.add(cast(ReceivingAssociation, assoc))

    def admit(self, assoc: ReceivingAssociation) -> Rejection | None:
        """Whether an association that is asked for may be: the store knows of it before it is accepted."""
        request = assoc.asked
        peer = AssociationInfo(
            id=uuid.uuid4().hex,
            calling_ae=request.calling_ae,
            called_ae=request.called_ae,
            host=assoc.requestor.address or "",
        )
        rejection = _unheard_of(request) or self._admission.refuse(peer) or self._open(peer)
        if rejection is None:
            with self._lock:
                self._admitted += 1
            assoc.peer = peer
            logger.info("association opened", extra={"event": "association.opened"} | peer.facts())
        else:
            why = meanings.reject(*rejection.value)
            facts = {"event": "association.rejected", "why": rejection.name} | peer.who()
            logger.warning("association rejected: %s", why, extra=facts)
            self._noted(StoreRefusal(RefusedCaller.ASSOCIATION, peer.calling_ae, peer.host, why))
        return rejection

    def turned_away(self, host: str, why: str, count: int) -> None:
        """Connections of an address asked for no association."""
        many = "connection" if count == 1 else f"{count} more connections"
        logger.warning("%s ended: %s", many, why, extra={"event": "connection.refused", "host": host})
        self._noted(StoreRefusal(RefusedCaller.CONNECTION, "", host, why, count=count))

    def refused(
        self, assoc: ReceivingAssociation, command: StoreCommand, refused: StoreRefused, cause: BaseException
    ) -> None:
        """An instance is answered with a failure."""
        peer, what = assoc.peer, meaning(refused.status)
        assert peer is not None
        facts = {
            "event": "instance.refused",
            "sop_instance": command.sop_instance_uid,
            "status": f"{refused.status:04X}",
        }
        detail = refused.comment if cause is refused else cause
        logger.warning("instance refused: %s: %s", what, detail, extra=facts | peer.facts())
        reason = f"{what}: {refused.comment}"
        self._noted(StoreRefusal(RefusedCaller.INSTANCE, peer.calling_ae, peer.host, reason, command.sop_instance_uid))

    def answered(self, assoc: ReceivingAssociation) -> None:
        """An instance was answered."""
        assert assoc.peer is not None
        self._store.make_ready(assoc.peer)

    def left(self, assoc: ReceivingAssociation) -> None:
        """A connection is over."""
        try:
            if assoc.peer is not None:
                self._leave(assoc, assoc.peer)
        finally:
            with self._lock:
                self._connections.discard(assoc)

    def report(self, association_id: str, result: CommitmentResult) -> bool:
        """Tell a peer of a storage commitment on the association on which it asked; whether it took the report."""
        return any(assoc.report(result) for assoc in self._of(association_id))

    def is_open(self, association_id: str) -> bool:
        """Whether there still is an association of this id."""
        return any(assoc.is_established for assoc in self._of(association_id))

    def _of(self, association_id: str) -> list[ReceivingAssociation]:
        with self._lock:
            return [assoc for assoc in self._connections if assoc.peer is not None and assoc.peer.id == association_id]

    def _leave(self, assoc: ReceivingAssociation, peer: AssociationInfo) -> None:
        ending = Ending.RELEASED if assoc.is_released else Ending.ABORTED
        if ending is Ending.RELEASED:
            logger.info("association released", extra={"event": "association.released"} | peer.facts())
        else:
            why = assoc.ending
            logger.warning("association aborted: %s", why, extra={"event": "association.aborted"} | peer.facts())
        try:
            self._store.closed(peer, ending)
        except STORE_ERRORS:
            logger.exception("end of association not recorded", extra={"event": "association.unrecorded"})
        finally:
            with self._lock:
                self._admitted -= 1

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

    def _open(self, peer: AssociationInfo) -> Rejection | None:
        """Have the store know of an association; or why there is no room for it."""
        try:
            if not self._store.has_room():
                return Rejection.TEMPORARY_CONGESTION
            return None if self._store.opened(peer, self._limits) else Rejection.LOCAL_LIMIT_EXCEEDED
        except STORE_ERRORS:
            logger.exception("association not recorded", extra={"event": "association.unrecorded"})
            return Rejection.TEMPORARY_CONGESTION


def _unheard_of(request: Request) -> Rejection | None:
    """Why nobody would be let in who asks like this: only bit 0 of the version is tested (PS3.8 9.3.2)."""
    if not request.protocol_version & 1:
        return Rejection.PROTOCOL_VERSION_NOT_SUPPORTED
    if request.application_context != APPLICATION_CONTEXT:
        return Rejection.APPLICATION_CONTEXT_NOT_SUPPORTED
    return None
