"""An association whose peer sends us instances: who it is, what it may ask for, and how it hears of a commitment."""

from __future__ import annotations

import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, cast

from pynetdicom import evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from gateway.dimse import contexts
from gateway.dimse.commitment import COMMIT, commitment_context, event_report, on_action, on_event_report
from gateway.dimse.pdata import AcceptedContext, Transfer
from gateway.dimse.reactor.acceptor import WAKE_S, AcceptorAssociation

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.pdu_primitives import A_ASSOCIATE

    from gateway.dimse.commitment import CommitmentResult
    from gateway.dimse.door import Guest
    from gateway.dimse.scp import StorageScp


class ReceivingAssociation(AcceptorAssociation):
    """An acceptor's association whose C-STOREs go to a `StorageScp`'s store by the fast path."""

    def __init__(self, scp: StorageScp, ae: ApplicationEntity, guest: Guest) -> None:
        super().__init__(ae, guest)
        self.asked = guest.request
        self._scp = scp
        self._reporting = threading.Lock()

    def admit(self, request: A_ASSOCIATE) -> tuple[int, int, int] | None:
        """Let it in, for storage, verification and storage commitment, unless the SCP rejects it."""
        rejection = self._scp.admit(self)
        if rejection is not None:
            return rejection.value
        supported = contexts.supported(request.presentation_context_definition_list)
        reported, asked = self._scp.reported, self._scp.asked
        if reported is not None or asked is not None:
            supported.append(commitment_context())
        if reported is not None:
            self.bind(evt.EVT_N_EVENT_REPORT, on_event_report, [reported])
        if asked is not None:
            self.bind(evt.EVT_N_ACTION, on_action, [asked])
        self.acceptor.supported_contexts = supported
        return None

    def report(self, result: CommitmentResult) -> bool:
        """Tell the peer of a storage commitment, one after the other; whether it took the report.

        A peer that wants to go meanwhile is let go, and not made to wait for its own answer.
        """
        with self._reporting:
            return self._report(result)

    def _report(self, result: CommitmentResult) -> bool:
        context = next((each for each in self.accepted_contexts if each.abstract_syntax == COMMIT), None)
        if context is None or not self.is_established:
            return False
        request = event_report(result, context.transfer_syntax[0])
        with self.paused():
            self.dimse.send_msg(request, cast(int, context.context_id))
            return self._answer_to(request) == 0x0000

    def _answer_to(self, request: N_EVENT_REPORT) -> int | None:
        """The status of the answer; None where none came. What else came meanwhile is left for the reactor."""
        aside = []
        deadline = time.monotonic() + (self.dimse_timeout or WAKE_S)
        try:
            while self.is_established and self.dul.to_user_queue.empty() and time.monotonic() < deadline:
                try:
                    message = self.dimse.msg_queue.get(timeout=0.05)
                except queue.Empty:
                    continue
                answer = message[1]
                if isinstance(answer, N_EVENT_REPORT) and answer.MessageIDBeingRespondedTo == request.MessageID:
                    return answer.Status
                aside.append(message)
            return None
        finally:
            for message in aside:
                self.dimse.msg_queue.put(message)

    def answered(self) -> None:
        """An instance was answered; its sender prepares the next."""
        self._scp.answered(self)

    def left(self) -> None:
        """It is over."""
        self._scp.left(self)

    def new_transfer(self) -> Transfer:
        """The fast path for what was negotiated."""
        accepted = {
            context.context_id: AcceptedContext(str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in self.accepted_contexts
            if context.context_id is not None and context.abstract_syntax is not None
        }
        most = self.requestor.maximum_length or 0
        return Transfer(accepted, self._scp.beginner(self), most, partial(self._scp.refused, self))
