"""pynetdicom's upper layer, which reads what peers mean; of both sides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from pynetdicom import evt
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC
from pynetdicom.timer import Timer

from gateway.dimse import meanings, negotiation
from gateway.dimse.negotiation import ABORT, ASSOCIATE_AC, ASSOCIATE_RJ, HEADER, MalformedPdu

if TYPE_CHECKING:
    from pynetdicom.pdu import _PDUType
    from pynetdicom.transport import AssociationSocket

LONGEST_SENT = 1 << 20  # a PDU of ours, whatever a peer takes: pynetdicom makes each in memory


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


class LenientUpperLayer(DULServiceProvider):
    """An upper layer that reads what peers mean.

    ending: how the association came to its end, where somebody knows: the first reason counts. titles: of the request
    that is answered. rejected: result, source and reason of an A-ASSOCIATE-RJ that came. stored_as: the Affected SOP
    Instance UID of the last C-STORE response.
    """

    ending: str | None = None
    titles: bytes | None = None
    rejected: tuple[int, int, int] | None = None
    stored_as: str | None = None

    def because(self, why: str) -> None:
        """Remember why the association ends, unless something else came first."""
        self.ending = self.ending or why

    def _decode_pdu(self, bytestream: bytearray) -> tuple[_PDUType, str]:
        pdu = bytes(bytestream)
        try:
            pdu = self._as_meant(pdu)
        except MalformedPdu as error:
            self.because(f"we aborted: the peer sent {error}")
            raise
        return super()._decode_pdu(bytearray(pdu))

    def _as_meant(self, pdu: bytes) -> bytes:
        if pdu[0] == ASSOCIATE_AC:
            asked = {
                cast(int, context.context_id): tuple(map(str, context.transfer_syntax))
                for context in self.assoc.requestor.requested_contexts
            }
            return negotiation.read_acceptance(pdu, asked).limited(LONGEST_SENT).encode()
        if pdu[0] == ASSOCIATE_RJ:
            self.rejected = negotiation.read_rejection(pdu)
            return negotiation.rejection(*self.rejected)
        if pdu[0] == ABORT:
            source, reason = negotiation.read_abort(pdu)
            self.because(f"the peer aborted: {meanings.abort(source, reason)}")
            return negotiation.abort(source, reason)
        return pdu

    def _send(self, pdu: _PDUType) -> None:
        if isinstance(pdu, A_ABORT_RQ):
            self.because("we aborted: the peer sent what has no place there")
        if not isinstance(pdu, A_ASSOCIATE_AC) or self.titles is None:
            super()._send(pdu)
            return
        encoded = bytearray(pdu.encode())
        start = HEADER.size + 4  # protocol version, and two bytes that are reserved
        encoded[start : start + len(self.titles)] = self.titles
        cast("AssociationSocket", self.socket).send(bytes(encoded))
        evt.trigger(self.assoc, evt.EVT_PDU_SENT, {"pdu": pdu})
