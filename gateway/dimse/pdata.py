"""The fast path of data transfer: P-DATA-TF PDUs in, whole C-STORE messages out, nothing copied or decoded between.

pynetdicom receives a C-STORE through two polling threads, three queues and an object per PDU, PDV and command element;
for CT slices that costs several times what the disk does. While an association is in data transfer (Sta6 of PS3.8 9.2)
this machine takes its place. It is fed bytes as they come from the socket, in pieces of any size:

    PDU    04 00 length │ PDV │ PDV │ …                        PS3.8 9.3.5
    PDV    length  context  control │ fragment                 PS3.8 9.3.5.1; control: command bit, last bit (E.2)

Fragments of a C-STORE's data set go straight to `Incoming.write`, and its end to `Incoming.finish`; the answer comes
back as bytes to send. Everything else is handed over untouched: any PDU but P-DATA-TF (release, abort, garbage) stays
unconsumed, and a command that is not a C-STORE-RQ (C-ECHO, N-ACTION …) is given back as one PDU, its elements in order,
so that pynetdicom's own state machine and services see what they always see.

What breaks the rules raises ProtocolError, for the caller to abort the association: a PDV longer than its PDU, a data
fragment before its command, a command fragment or another context inside a message (PS3.8 D.1: the fragments of one
message are not interleaved), a context that was not accepted.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

from gateway.dimse.command import (
    C_STORE_RQ,
    COMMAND,
    COMMAND_FIELD,
    LAST,
    P_DATA_TF,
    MalformedCommand,
    StoreCommand,
    elements,
    p_data,
    store_response,
    unsigned,
    written,
)
from gateway.dimse.status import Status, StoreRefused, refusal
from gateway.dimse.store import Incoming
from medseg.errors import MedsegError

logger = logging.getLogger(__name__)

LONGEST_COMMAND = 1 << 16
_PDU_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")
HEADER = 6  # bytes of either header
STORE_ERRORS = (MedsegError, OSError, MemoryError)


class ProtocolError(Exception):
    """The peer broke the rules of PS3.8; the association is to be aborted."""


class AcceptedContext(NamedTuple):
    """An accepted presentation context: SOP class and transfer syntax."""

    abstract_syntax: str
    transfer_syntax: str


class StoreOutcome(Enum):
    """Why `Transfer.feed` returned."""

    MORE = "all that could be used was used: more bytes are needed"
    ANSWER = "a C-STORE is over: send the bytes"
    OTHER = "the next message is not ours: read the bytes again before the rest"


class Fed(NamedTuple):
    """What `Transfer.feed` did: bytes consumed, and bytes to send (ANSWER) or to read again (OTHER)."""

    outcome: StoreOutcome
    consumed: int
    data: bytes = b""


Begin = Callable[[StoreCommand, str], Incoming]
Refused = Callable[[StoreCommand, StoreRefused, BaseException], object]


class Transfer:
    """Where an association's stream of P-DATA-TF PDUs stands."""

    def __init__(
        self, contexts: Mapping[int, AcceptedContext], begin: Begin, peer_maximum_length: int, refused: Refused
    ) -> None:
        """contexts: the accepted ones by id. begin: called with a C-STORE and its transfer syntax.
        peer_maximum_length: longest PDU the peer takes, 0 for any (PS3.8 D.1). refused: told of each C-STORE that is
        refused, with what it will be answered, and why."""
        self._contexts, self._begin, self._peer_maximum_length = contexts, begin, peer_maximum_length
        self._on_refused = refused
        self._pdu_left = 0  # bytes of the current PDU after the current fragment
        self._fragment_left = 0
        self._control = 0
        self._in_fragment = False
        self._context_id: int | None = None  # of the current message
        self._command_set = bytearray()
        self._command: StoreCommand | None = None  # set while its data set arrives
        self._incoming: Incoming | None = None
        self._refused: StoreRefused | None = None

    @property
    def between_pdus(self) -> bool:
        """Whether the next byte starts a PDU."""
        return not self._in_fragment and not self._pdu_left

    @property
    def between_messages(self) -> bool:
        """Whether the next byte starts a PDU and no message is under way."""
        return self.between_pdus and self._context_id is None

    def feed(self, data: memoryview) -> Fed:
        """Take as much of `data` as is useful, up to the end of one message; raises ProtocolError.

        What was not consumed must come again at the front of the next `data`.
        """
        position, end = 0, len(data)
        while True:
            if self._in_fragment:
                take = min(self._fragment_left, end - position)
                if take:
                    self._add(data[position : position + take])
                    position += take
                    self._fragment_left -= take
                if self._fragment_left:
                    return Fed(StoreOutcome.MORE, position)
                self._in_fragment = False
                if self._control & LAST:
                    fed = self._end_of_command(position) if self._control & COMMAND else self._answer(position)
                    if fed is not None:
                        return fed
                continue
            if end - position < HEADER:
                return Fed(StoreOutcome.MORE, position)
            if self._pdu_left:
                self._start_fragment(*_PDV_HEADER.unpack_from(data, position))
            else:
                pdu_type, length = _PDU_HEADER.unpack_from(data, position)
                if pdu_type != P_DATA_TF:
                    return Fed(StoreOutcome.OTHER, position)
                self._start_pdu(length)
            position += HEADER

    def abandon(self) -> None:
        """Forget the message under way: the association is ending."""
        if self._incoming is not None:
            self._incoming.discard()
        self._over()

    def _start_pdu(self, length: int) -> None:
        if 0 < length < HEADER:
            raise ProtocolError(f"P-DATA-TF of {length} bytes is too short for a PDV")
        self._pdu_left = length

    def _start_fragment(self, length: int, context_id: int, control: int) -> None:
        if length < 2 or length + 4 > self._pdu_left:
            raise ProtocolError(f"PDV of {length} bytes where its PDU has {self._pdu_left} left")
        if self._context_id is None:
            if not control & COMMAND:
                raise ProtocolError("a data set fragment came before its command")
            if context_id not in self._contexts:
                raise ProtocolError(f"presentation context {context_id} was not accepted")
            self._context_id = context_id
        elif context_id != self._context_id:
            raise ProtocolError(f"presentation context {context_id} inside a message of context {self._context_id}")
        elif bool(control & COMMAND) is (self._command is not None):
            raise ProtocolError("a command fragment inside a data set, or a data set fragment inside a command")
        self._pdu_left -= 4 + length
        if 0 < self._pdu_left < HEADER:
            raise ProtocolError(f"{self._pdu_left} bytes after the last PDV of a PDU")
        self._fragment_left, self._control, self._in_fragment = length - 2, control, True

    def _add(self, fragment: memoryview) -> None:
        if self._control & COMMAND:
            if len(self._command_set) + len(fragment) > LONGEST_COMMAND:
                raise ProtocolError(f"a command set of more than {LONGEST_COMMAND} bytes")
            self._command_set += fragment
        elif self._incoming is not None:
            try:
                self._incoming.write(fragment)
            except STORE_ERRORS as error:
                self._refuse(refusal(error), error)

    def _end_of_command(self, position: int) -> Fed | None:
        assert self._context_id is not None
        context = self._contexts[self._context_id]
        try:
            found = elements(bytes(self._command_set))
            if unsigned(found, COMMAND_FIELD) != C_STORE_RQ:
                return self._hand_over(position, written(found))
            command = StoreCommand.of(found)
        except MalformedCommand as error:
            raise ProtocolError(str(error)) from error
        self._command = command
        if not command.has_data_set:
            self._refuse(StoreRefused(Status.CANNOT_UNDERSTAND, "C-STORE without a data set"))
            return self._answer(position)
        if not command.sop_class_uid or not command.sop_instance_uid:
            self._refuse(StoreRefused(Status.CANNOT_UNDERSTAND, "SOP Class or Instance UID is missing"))
        elif command.sop_class_uid != context.abstract_syntax:
            comment = "SOP class differs from the presentation context's"
            self._refuse(StoreRefused(Status.SOP_CLASS_NOT_SUPPORTED, comment))
        else:
            try:
                self._incoming = self._begin(command, context.transfer_syntax)
            except STORE_ERRORS as error:
                self._refuse(refusal(error), error)
        return None

    def _hand_over(self, position: int, command_set: bytes) -> Fed:
        """The command in a PDU of its own, then a header for what is left of the PDU it came in."""
        assert self._context_id is not None
        again = p_data(self._context_id, command_set, 0)
        if self._pdu_left:
            again += _PDU_HEADER.pack(P_DATA_TF, self._pdu_left)
        self._pdu_left = 0
        self._over()
        return Fed(StoreOutcome.OTHER, position, again)

    def _answer(self, position: int) -> Fed:
        """Finish the instance and say how that went. The message is over, whatever happens."""
        command, context_id, incoming, self._incoming = self._command, self._context_id, self._incoming, None
        assert command is not None and context_id is not None
        if incoming is not None:
            try:
                incoming.finish()
            except STORE_ERRORS as error:
                self._refuse(refusal(error), error)
            except Exception as error:
                # The last boundary before the wire: whatever else went wrong, the sender hears of it and may go on.
                logger.exception("receiving failed", extra={"event": "instance.failed"})
                self._refuse(refusal(error), error)
        if self._refused is None:
            response = store_response(command, Status.SUCCESS)
        else:
            response = store_response(command, self._refused.status, self._refused.comment)
        self._over()
        return Fed(StoreOutcome.ANSWER, position, p_data(context_id, response, self._peer_maximum_length))

    def _refuse(self, refused: StoreRefused, cause: BaseException | None = None) -> None:
        """Remember the answer; what still comes of the data set is read and dropped."""
        assert self._command is not None
        self._refused, self._incoming = refused, None
        self._on_refused(self._command, refused, cause or refused)

    def _over(self) -> None:
        self._context_id = self._command = self._incoming = self._refused = None
        self._command_set.clear()
