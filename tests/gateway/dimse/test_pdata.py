"""The fast path, fed by hand: what it takes, what it hands over, what it refuses."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RSP, DIMSEMessage
from pynetdicom.pdu import P_DATA_TF

from gateway.dimse.command import StoreCommand, elements, p_data
from gateway.dimse.pdata import AcceptedContext, Fed, ProtocolError, StoreOutcome, Transfer
from gateway.dimse.status import Status, StoreRefused
from tests.gateway.receiving import CT, element, pdu, pdv, store_message, store_request

MR = "1.2.840.10008.5.1.4.1.1.4"


@dataclass
class Taken:
    """A store that remembers."""

    command: StoreCommand
    data: bytearray = field(default_factory=bytearray)
    state: str = "open"
    fail: Exception | None = None

    def write(self, fragment: memoryview) -> None:
        assert self.state == "open"
        self.data += fragment

    def finish(self) -> None:
        assert self.state == "open"
        self.state = "finished"
        if self.fail is not None:
            raise self.fail

    def discard(self) -> None:
        self.state = "discarded"


class Peer:
    """A transfer and all that came of feeding it."""

    def __init__(self, maximum_length: int = 0, fail: Exception | None = None, refuse: Exception | None = None) -> None:
        self.taken: list[Taken] = []
        self.answers: list[bytes] = []
        self.fail, self.refuse = fail, refuse
        contexts = {1: AcceptedContext(CT, ExplicitVRLittleEndian), 3: AcceptedContext(MR, ExplicitVRLittleEndian)}
        self.refused: list[tuple[str, int]] = []
        self.transfer = Transfer(contexts, self.begin, maximum_length, self.was_refused)

    def was_refused(self, command: StoreCommand, refused: StoreRefused, _: BaseException) -> None:
        self.refused.append((command.sop_instance_uid, refused.status))

    def begin(self, command: StoreCommand, transfer_syntax: str) -> Taken:
        if self.refuse is not None:
            raise self.refuse
        self.taken.append(Taken(command, fail=self.fail))
        return self.taken[-1]

    def feed(self, stream: bytes, pieces: list[int] | None = None) -> tuple[Fed, bytes]:
        """Feed a stream in pieces of the given sizes, then the rest; -> the last step and what was not consumed."""
        rest, held = stream, b""
        sizes = iter(pieces or [])
        while True:
            size = next(sizes, None)
            size = len(rest) if size is None else size
            held, rest = held + rest[:size], rest[size:]
            fed = self.transfer.feed(memoryview(held))
            held = held[fed.consumed :]
            if fed.outcome is StoreOutcome.ANSWER:
                self.answers.append(fed.data)
            elif fed.outcome is StoreOutcome.OTHER or not rest:
                return fed, held + rest

    @property
    def statuses(self) -> list[int]:
        return [int.from_bytes(elements(answer[12:])[0x0900], "little") for answer in self.answers]


def decoded(answer: bytes) -> DIMSEMessage:
    """An answer as pynetdicom reads it."""
    message = DIMSEMessage()
    while answer:
        (length,) = struct.unpack_from(">I", answer, 2)
        part = P_DATA_TF()
        part.decode(answer[: 6 + length])
        message.decode_msg(part.to_primitive())
        answer = answer[6 + length :]
    return message


@settings(deadline=None, max_examples=60)
@given(
    data=st.binary(min_size=1, max_size=300),
    fragment=st.integers(1, 80),
    pieces=st.lists(st.integers(1, 40), max_size=60),
)
def test_bytes_arrive_as_sent_however_they_are_cut(data: bytes, fragment: int, pieces: list[int]) -> None:
    peer = Peer()
    fed, left = peer.feed(store_message(CT, "1.2.3", data, fragment=fragment) * 2, pieces)
    assert fed.outcome is StoreOutcome.MORE
    assert not left
    assert [(bytes(taken.data), taken.state) for taken in peer.taken] == [(data, "finished")] * 2
    assert peer.statuses == [0, 0]
    assert peer.transfer.between_messages


def test_pdvs_may_share_a_pdu_and_be_empty() -> None:
    command = store_request(CT, "1.2.3")
    stream = pdu(
        pdv(1, 1, command[:7]), pdv(1, 1, b""), pdv(1, 3, command[7:]), pdv(1, 0, b"ab"), pdv(1, 0, b""), pdv(1, 2, b"")
    )
    peer = Peer()
    peer.feed(stream)
    assert peer.taken[0].data == b"ab"
    assert peer.statuses == [0]


def test_a_pdu_without_pdvs_says_nothing() -> None:
    peer = Peer()
    peer.feed(pdu() + store_message(CT, "1.2.3", b"data"))
    assert peer.statuses == [0]


def test_the_answer_is_what_pynetdicom_reads() -> None:
    peer = Peer(fail=StoreRefused(Status.DATA_SET_MISMATCH, "no " * 40))
    peer.feed(store_message(CT, "1.2.3", b"data"))
    message = decoded(peer.answers[0])
    assert isinstance(message, C_STORE_RSP)
    assert message.context_id == 1
    answer = message.command_set
    assert (answer.Status, answer.MessageIDBeingRespondedTo, answer.CommandDataSetType) == (0xA900, 1, 0x0101)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert len(answer.ErrorComment) <= 64


@pytest.mark.parametrize("maximum", [7, 20, 64, 16384])
def test_the_answer_keeps_to_the_peers_pdu_length(maximum: int) -> None:
    peer = Peer(maximum_length=maximum)
    peer.feed(store_message(CT, "1.2.3", b"data"))
    answer = peer.answers[0]
    assert decoded(answer).command_set.Status == 0
    while answer:
        (length,) = struct.unpack_from(">I", answer, 2)
        assert length <= maximum
        answer = answer[6 + length :]


@pytest.mark.parametrize("split", range(0, 90, 7))
def test_another_service_is_handed_over_whole(split: int) -> None:
    body = element(0x0002, b"1.2.840.10008.1.1\0") + element(0x0100, b"\x30\x00") + element(0x0110, b"\x05\x00")
    body += element(0x0800, b"\x01\x01")
    echo = element(0, struct.pack("<I", len(body))) + body
    after = pdv(1, 2, b"its data set")
    peer = Peer()
    fed, left = peer.feed(pdu(pdv(1, 1, echo[:split]), pdv(1, 3, echo[split:]), after))
    assert fed.outcome is StoreOutcome.OTHER
    assert peer.transfer.between_messages
    assert fed.data + left == p_data(1, echo, 0) + pdu(after)


@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6, 7, 0, 8, 255])
def test_another_pdu_is_left_alone(kind: int) -> None:
    peer = Peer()
    release = struct.pack(">BxIxxxx", kind, 4)
    fed, left = peer.feed(store_message(CT, "1.2.3", b"data") + release)
    assert (fed.outcome, fed.data, left) == (StoreOutcome.OTHER, b"", release)


COMMAND = store_request(CT, "1.2.3")
STARTED = pdu(pdv(1, 3, COMMAND), pdv(1, 0, b"half of "))


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(pdu(pdv(1, 0, b"data")), id="data before its command"),
        pytest.param(pdu(pdv(5, 3, COMMAND)), id="a context that was not accepted"),
        pytest.param(STARTED + pdu(pdv(3, 2, b"it")), id="another context inside a data set"),
        pytest.param(STARTED + pdu(pdv(1, 3, COMMAND)), id="a command inside a data set"),
        pytest.param(STARTED + pdu(pdv(3, 3, COMMAND)), id="a message inside a message"),
        pytest.param(pdu(pdv(1, 1, COMMAND[:9])) + pdu(pdv(1, 2, b"data")), id="data inside a command"),
        pytest.param(struct.pack(">BxI", 4, 20) + struct.pack(">IBB", 17, 1, 3), id="a PDV longer than its PDU"),
        pytest.param(struct.pack(">BxI", 4, 20) + struct.pack(">IBB", 0xFFFFFFFF, 1, 3), id="a PDV without end"),
        pytest.param(struct.pack(">BxI", 4, 6) + struct.pack(">IBB", 1, 1, 3), id="a PDV too short for its header"),
        pytest.param(struct.pack(">BxI", 4, 3) + b"abc", id="a PDU too short for a PDV"),
        pytest.param(struct.pack(">BxI", 4, 11) + pdv(1, 1, b"") + b"xxxxx", id="bytes after the last PDV"),
        pytest.param(pdu(pdv(1, 3, b"not a command set at all")), id="a command set of garbage"),
        pytest.param(pdu(pdv(1, 3, element(0x0100, b"\x01\x00"))), id="a C-STORE without Message ID"),
        pytest.param(pdu(pdv(1, 1, bytes(60000))) * 2, id="a command set without end"),
    ],
)
def test_broken_rules_are_told(stream: bytes) -> None:
    peer = Peer()
    with pytest.raises(ProtocolError):
        peer.feed(stream)
    peer.transfer.abandon()
    assert all(taken.state == "discarded" for taken in peer.taken)
    assert not peer.answers


def test_a_refused_instance_is_read_to_its_end_and_the_next_is_taken() -> None:
    peer = Peer(refuse=OSError(28, "No space left on device"))
    stream = store_message(CT, "1.2.3", b"x" * 100, fragment=10)
    peer.feed(stream)
    peer.refuse = None
    peer.feed(stream)
    assert peer.statuses == [Status.OUT_OF_RESOURCES, 0]


@pytest.mark.parametrize(
    ("message", "status"),
    [
        pytest.param(
            store_message(MR, "1.2.3", b"data"), Status.SOP_CLASS_NOT_SUPPORTED, id="class of another context"
        ),
        pytest.param(store_message(CT, "", b"data"), Status.CANNOT_UNDERSTAND, id="no SOP Instance UID"),
        pytest.param(store_message("", "1.2.3", b"data"), Status.CANNOT_UNDERSTAND, id="no SOP Class UID"),
        pytest.param(
            p_data(1, store_request(CT, "1.2.3", data_set_type=0x0101), 0), Status.CANNOT_UNDERSTAND, id="no data set"
        ),
    ],
)
def test_what_cannot_be_stored_is_answered(message: bytes, status: Status) -> None:
    peer = Peer()
    peer.feed(message)
    assert peer.statuses == [status]
    assert not peer.taken


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), MemoryError(), OSError(5, "I/O error")])
def test_no_failure_stays_unanswered(error: Exception) -> None:
    peer = Peer(fail=error)
    peer.feed(store_message(CT, "1.2.3", b"data"))
    assert peer.statuses[0] in (Status.PROCESSING_FAILURE, Status.OUT_OF_RESOURCES)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 20), st.lists(st.integers(1, 50), max_size=20))
def test_garbage_never_breaks_it(noise: bytes, at: int, cut: int, pieces: list[int]) -> None:
    message = store_message(CT, "1.2.3", b"d" * 200, fragment=50)
    at %= len(message)
    peer = Peer()
    with contextlib.suppress(ProtocolError):
        peer.feed(message[:at] + noise + message[at + cut :], pieces)
    peer.transfer.abandon()
    assert all(taken.state in ("finished", "discarded") for taken in peer.taken)
