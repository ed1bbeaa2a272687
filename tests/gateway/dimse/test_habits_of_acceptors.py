"""Peers to which we send, and their habits: what they answer to an association request, byte for byte by hand."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.acse import ACSE

from gateway.dimse import negotiation, scu
from gateway.dimse.command import p_data
from gateway.dimse.scu import Miss, NoAssociation, Proposal, RequestorTimeouts
from gateway.settings.model import Destination
from tests.gateway.dimse.test_negotiation import APPLICATION, answer, item, pdu, user
from tests.gateway.receiving import element, padded

VERIFY, EXPLICIT = scu.VERIFY, str(ExplicitVRLittleEndian)
QUICK = RequestorTimeouts(connect_s=5, acse_s=5, dimse_s=5)


def echo_response(*, disordered: bool) -> bytes:
    """The command set of a C-ECHO-RSP; disordered: without its group length, and elements in another order."""
    parts = [
        element(0x0002, padded(VERIFY)),
        element(0x0100, struct.pack("<H", 0x8030)),
        element(0x0120, struct.pack("<H", 1)),
        element(0x0800, struct.pack("<H", 0x0101)),
        element(0x0900, struct.pack("<H", 0)),
    ]
    if disordered:
        return b"".join(reversed(parts))
    return element(0, struct.pack("<I", len(b"".join(parts)))) + b"".join(parts)


@contextlib.contextmanager
def acceptor(reply: bytes, echo: bytes = b"") -> Iterator[int]:
    """A peer that answers an association request with these bytes, and a C-ECHO with those; -> its port."""

    def pdu_of(peer: socket.socket) -> bytes:
        header = peer.recv(6, socket.MSG_WAITALL)
        return header + peer.recv(negotiation.HEADER.unpack(header)[1], socket.MSG_WAITALL) if header else b""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            pdu_of(peer)
            peer.sendall(reply)
            while came := pdu_of(peer):
                if came[0] == negotiation.RELEASE_RQ:
                    peer.sendall(struct.pack(">BxIxxxx", 6, 4))
                elif came[0] == negotiation.P_DATA_TF:
                    peer.sendall(echo)
                else:
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield int(listener.getsockname()[1])
        serving.join(10)


def called(port: int, timeouts: RequestorTimeouts = QUICK) -> int | None:
    with scu.associate(Destination("PACS", "127.0.0.1", port), [Proposal(VERIFY, (EXPLICIT,))], timeouts) as link:
        return link.echo()


YES = answer(1, 0, EXPLICIT)


@pytest.mark.parametrize("disordered", [False, True])
@pytest.mark.parametrize(
    "items",
    [
        [APPLICATION, YES, user()],
        [APPLICATION, item(0x77, b"vendor"), YES, user(item(0x60, b"vendor"), item(0x55, b"A" * 40))],
        [user(), YES],
        [APPLICATION, YES],
        [APPLICATION, YES, item(0x50, b"")],
        [APPLICATION, answer(1, 0), user()],
        [APPLICATION, answer(1, 0, EXPLICIT + "\0"), user(maximum=bytes(4)), bytes(4)],
        [APPLICATION, YES, YES, answer(99, 0, EXPLICIT), user(maximum=b"\0\0\0\1")],
        [APPLICATION, YES, user(item(0x58, b"\0\0"), item(0x53, b""), item(0x54, b"\0\1"))],
        [item(0x10, b"1.2.3"), YES, user()],
    ],
)
def test_answers_that_leave_no_doubt_are_acceptances(items: list[bytes], disordered: bool) -> None:
    odd = pdu(*items, kind=2, version=3, called=bytes(16), calling=b"\xff" * 16, reserved=b"\1" * 32)
    echo = p_data(1, echo_response(disordered=disordered), 0)
    with acceptor(odd, echo) as port:
        assert called(port) == 0


@pytest.mark.parametrize(
    ("reply", "miss", "words"),
    [
        ((1, 1, 3), Miss.REJECTED, "rejected: calling AE title not recognized, for good"),
        ((1, 1, 7), Miss.REJECTED, "rejected: called AE title not recognized, for good"),
        ((2, 3, 2), Miss.REJECTED, "rejected: local limit exceeded, for now"),
        ((0, 9, 200), Miss.REJECTED, "rejected: a reason that the standard does not know (9, 200), for good"),
        (b"\3\0\0\0\0\0", Miss.REJECTED, "rejected: a reason that the standard does not know (0, 0), for good"),
        (struct.pack(">BxIxxBB", 7, 4, 0, 0), Miss.BROKEN, "the peer aborted: its application ended it"),
        (struct.pack(">BxIxxBB", 7, 4, 2, 1), Miss.BROKEN, "its network layer ended it: unrecognized PDU"),
        (struct.pack(">BxIxxBB", 7, 4, 9, 9), Miss.BROKEN, "the peer aborted: its application ended it"),
        (pdu(APPLICATION, YES, user()[:-1], kind=2), Miss.BROKEN, "we aborted: the peer sent an item 50H of 17 bytes"),
        (pdu(APPLICATION, answer(1, 3), user(), kind=2), Miss.NOTHING_ACCEPTED, "no presentation context accepted"),
        (pdu(APPLICATION, user(), kind=2), Miss.NOTHING_ACCEPTED, "no presentation context accepted"),
        (pdu(APPLICATION, answer(1, 0, "1.2.3"), user(), kind=2), Miss.NOTHING_ACCEPTED, "no presentation context"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Miss.BROKEN, "we aborted: the peer sent what has no place there"),
        (b"", Miss.BROKEN, "aborted or not answered"),
    ],
)
def test_other_answers_are_told_in_words(reply: bytes | tuple[int, int, int], miss: Miss, words: str) -> None:
    said = reply if isinstance(reply, bytes) else struct.pack(">BxIxBBB", 3, 4, *reply)
    timeouts = RequestorTimeouts(
        connect_s=5, acse_s=20 if reply else 1, dimse_s=5
    )  # an answer comes, however busy we are
    with acceptor(said) as port, pytest.raises(NoAssociation) as caught:
        called(port, timeouts)
    assert caught.value.miss is miss
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"PACS@127.0.0.1:{port}: ")


def test_a_rejection_counts_however_soon_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer has answered and closed before pynetdicom looks whether it is connected; the moment is made longer."""
    send_request = ACSE.send_request

    def sent_long_ago(acse: ACSE) -> None:
        send_request(acse)
        time.sleep(0.5)

    monkeypatch.setattr(ACSE, "send_request", sent_long_ago)
    with acceptor(struct.pack(">BxIxBBB", 3, 4, 2, 3, 2)) as port, pytest.raises(NoAssociation) as caught:
        called(port)
    assert caught.value.miss is Miss.REJECTED
    assert "local limit exceeded, for now" in str(caught.value)
