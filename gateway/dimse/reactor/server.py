"""The listener: pynetdicom's server and what makes an association of a connection.

accept ──> door (`gateway.dimse.door`) ──asked for an association──> `Handler` ──> thread of the association
"""

from __future__ import annotations

import gc
import logging
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any, Protocol, cast

from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationServer, RequestHandler, ThreadedAssociationServer

from gateway.dimse.door import Door, Guest

if TYPE_CHECKING:
    from gateway.dimse.reactor.acceptor import AcceptorAssociation

logger = logging.getLogger(__name__)

BACKLOG = 128
TURN_S, LONGEST_TURN_S = 0.002, 0.02
WAIT_S = 30.0  # for an association request, where nothing else is said


class Scp(Protocol):
    """Who listens.

    inside: connections that have asked for an association. connection_limit: how many of these there may be.
    """

    @property
    def inside(self) -> int: ...
    @property
    def connection_limit(self) -> int: ...
    def association(self, ae: ApplicationEntity, guest: Guest) -> AcceptorAssociation:
        """Of a connection that asks for one."""
        ...

    def came(self, assoc: AcceptorAssociation) -> None:
        """It is there; from now on it counts, until it has left."""
        ...

    def turned_away(self, host: str, why: str, count: int) -> None:
        """Connections of an address asked for no association."""
        ...


class Handler(RequestHandler):
    """Makes the association of a new connection."""

    server: Server

    def _create_association(self) -> AcceptorAssociation:
        assoc = self.server.scp.association(self.ae, cast(Guest, self.request))
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


class Server(AssociationServer):
    """pynetdicom's listener, behind a door.

    listener: a bound socket, from which several processes may accept; else one of its own is made.
    """

    request_queue_size = BACKLOG

    def __init__(
        self, scp: Scp, ae: ApplicationEntity, address: tuple[str, int], listener: socket.socket | None
    ) -> None:
        self.scp, self._listener = scp, listener
        self._collected = True
        super().__init__(ae, address, ae.ae_title, [build_context(Verification)], request_handler=Handler)
        self.door = Door(self._enter, ae.acse_timeout or WAIT_S, scp.turned_away)
        self.door.open()
        ae._servers.append(cast(ThreadedAssociationServer, self))  # `shutdown` takes it out

    def server_bind(self) -> None:
        if self._listener is None:
            super().server_bind()
            return
        cast(socket.socket, self.socket).close()
        self.socket = self._listener
        self.socket.setblocking(False)  # somebody else may accept what woke us
        self.server_address = self.socket.getsockname()

    def server_close(self) -> None:
        """Let go of the socket. pynetdicom shuts it down first, which would end it for all who share it."""
        if self._listener is None:
            super().server_close()
        else:
            self._listener.close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. Of several who accept from one socket, whoever has fewer connections is faster."""
        if self._listener is not None:
            time.sleep(min(self.scp.inside * TURN_S, LONGEST_TURN_S))
        return super().get_request()

    def service_actions(self) -> None:
        """pynetdicom collects garbage here every 60 rounds, in the middle of whatever is received: only while idle."""
        if self.scp.inside:
            self._collected = False
        elif not self._collected:
            gc.collect()
            self._collected = True

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - as socketserver calls it
        """Whether one more connection is looked at: a flood is cut off before it costs threads."""
        return self.scp.inside < self.scp.connection_limit

    def process_request(self, request: Any, client_address: Any) -> None:
        """A connection was accepted: it waits at the door until it has asked for an association."""
        self.door.take(request, client_address)

    def shutdown(self) -> None:
        super().shutdown()
        self.door.close()

    def _enter(self, guest: Guest) -> None:
        try:
            self.finish_request(cast(Any, guest), guest.address)
        except Exception:
            # A boundary: no thread to be had, for one. The connection ends, and the door stays open.
            facts = {"event": "connection.failed", "host": str(guest.address[0])}
            logger.exception("association not begun", extra=facts)
            guest.socket.close()
