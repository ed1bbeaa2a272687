"""Who comes to the port: odd requests that others take, and what is no DICOM at all, over real sockets."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from gateway.dimse import negotiation
from gateway.dimse.door import LONGEST_REQUEST, WAITING
from gateway.dimse.noise import LINES
from gateway.dimse.scp import AcceptorTimeouts
from gateway.dimse.store import RefusedCaller, StoreRefusal
from tests.gateway.dimse.test_negotiation import APPLICATION, PROPOSED, context, item, pdu, user
from tests.gateway.receiving import CT, RawPeer, Receiver, associate_request, encode, make_ct, receiving, store_message
from tests.ports import free_port
from tests.waiting import wait_for

EXPLICIT = str(ExplicitVRLittleEndian)
ABORTED = (7, bytes(4))  # by the service user, as AA-1 says (PS3.8 9.2.3)
TLS_HELLO = bytes.fromhex("160301020001fc0303") + bytes(500)


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "event", None) == event]


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("door")) as running:
        yield running


@pytest.fixture(scope="module")
def storescp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """DCMTK's receiver, on a port of its own."""
    port = free_port()
    folder = tmp_path_factory.mktemp("storescp")
    running = subprocess.Popen(["/usr/bin/storescp", "-od", str(folder), str(port)])
    try:
        wait_for("the port to be open", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        yield port
    finally:
        running.terminate()
        running.wait()


def answered(port: int, request: bytes) -> tuple[int | None, Any]:
    """A-ASSOCIATE-AC: result of each context by its id; of other answers their four bytes."""
    with RawPeer(port, request) as peer:
        kind, content = peer.answer_type, peer.answer
        if kind != 2:
            return kind, content
        asked = dict.fromkeys(range(256), (EXPLICIT,))
        read = negotiation.read_acceptance(struct.pack(">BxI", 2, len(content)) + content, asked)
        peer.release()
        return kind, {one.context_id: one.result for one in read.contexts}


HABITS: dict[str, bytes] = {
    "unknown items": pdu(APPLICATION, item(0x77, b"vendor"), PROPOSED, user(item(0x60, b"vendor"))),
    "titles padded by NUL": pdu(
        APPLICATION, PROPOSED, user(), called=b"MEDSEG" + bytes(10), calling=b"US1" + bytes(13)
    ),
    "a long version name": pdu(APPLICATION, PROPOSED, user(item(0x55, b"A" * 20))),
    "no user information": pdu(APPLICATION, PROPOSED),
    "empty user information": pdu(APPLICATION, PROPOSED, item(0x50, b"")),
    "no maximum length": pdu(APPLICATION, PROPOSED, item(0x50, item(0x52, b"1.2.3"))),
    "maximum length 0": pdu(APPLICATION, PROPOSED, user(maximum=bytes(4))),
    "maximum length 3": pdu(APPLICATION, PROPOSED, user(maximum=b"\0\0\0\3")),
    "other bits of the version": pdu(APPLICATION, PROPOSED, user(), version=0xFF03),
    "version 2": pdu(APPLICATION, PROPOSED, user(), version=2),
    "version 0": pdu(APPLICATION, PROPOSED, user(), version=0),
    "another application context": pdu(item(0x10, b"1.2.3"), PROPOSED, user()),
    "no application context": pdu(PROPOSED, user()),
    "an even context": pdu(APPLICATION, context(2, CT, EXPLICIT), user()),
    "context 0": pdu(APPLICATION, context(0, CT, EXPLICIT), user()),
    "256 contexts": pdu(APPLICATION, *(context(number, CT, EXPLICIT) for number in range(256)), user()),
    "reserved bytes": pdu(APPLICATION, context(1, CT, EXPLICIT, reserved=b"\1\2\3"), user(), reserved=b"\xff" * 32),
    "items in another order": pdu(user(), PROPOSED, APPLICATION),
    "UIDs padded by NUL": pdu(APPLICATION, context(1, CT + "\0", EXPLICIT + "\0"), user()),
    "NUL at the end": pdu(APPLICATION, PROPOSED, user(), bytes(4)),
}


@pytest.mark.parametrize("habit", HABITS)
def test_odd_requests_are_answered_as_by_dcmtk(receiver: Receiver, storescp: int, habit: str) -> None:
    assert answered(receiver.scp.port, HABITS[habit]) == answered(storescp, HABITS[habit])


def test_of_contexts_with_one_id_the_first_counts(receiver: Receiver) -> None:
    twice = pdu(APPLICATION, context(1, CT, EXPLICIT), context(1, "1.2.840.10008.1.1", EXPLICIT), user())
    instance = make_ct()
    with RawPeer(receiver.scp.port, twice) as peer:
        peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance)))
        assert peer.read_status() == 0
        peer.release()


@pytest.mark.parametrize("context_id", [0, 2, 254])
def test_an_even_context_takes_instances(receiver: Receiver, context_id: int) -> None:
    echo = "1.2.840.10008.1.1"
    other = context_id + 1
    request = pdu(APPLICATION, context(context_id, CT, EXPLICIT), context(other, echo, EXPLICIT), user())
    instance = make_ct()
    with RawPeer(receiver.scp.port, request) as peer:
        peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance), context_id=context_id))
        assert peer.read_status() == 0
        peer.release()


def test_the_acceptance_sends_titles_and_reserved_bytes_back(receiver: Receiver) -> None:
    calling, reserved = b"odd\0title\xff".ljust(16, b"\1"), bytes(range(32))
    request = pdu(APPLICATION, PROPOSED, user(), calling=calling, reserved=reserved)
    with RawPeer(receiver.scp.port, request) as peer:
        assert peer.answer_type == 2
        assert peer.answer[4:68] == b"MEDSEG".ljust(16) + calling + reserved


@pytest.mark.parametrize(("maximum", "longest"), [(8, 8), (16, 16), (17, 16), (65, 64), (0, 1000)])
def test_answers_are_no_longer_than_the_peer_takes(receiver: Receiver, maximum: int, longest: int) -> None:
    instance = make_ct()
    request = pdu(APPLICATION, context(1, CT, EXPLICIT), user(maximum=struct.pack(">I", maximum)))
    with RawPeer(receiver.scp.port, request) as peer:
        peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance)))
        last, command = False, b""
        while not last:
            kind, content = peer.read_pdu()
            assert kind == 4
            assert len(content) <= longest
            assert len(content) % 2 == 0
            last, command = bool(content[5] & 2), command + content[6:]
        assert command.endswith(str(instance.SOPInstanceUID).encode() + b"\0" * (len(instance.SOPInstanceUID) % 2))
        peer.release()


@pytest.mark.parametrize(
    ("callers", "answer"), [(None, (2, {1: 0})), ([("CT01", None)], (3, bytes((0, 1, 1, 3)))), ([("", None)], None)]
)
def test_an_empty_calling_title_is_somebody_unknown(tmp_path: Path, callers: Any, answer: Any) -> None:
    request = pdu(APPLICATION, PROPOSED, user(), calling=b" " * 16)
    if answer is not None:
        with receiving(tmp_path, callers=callers) as running:
            assert answered(running.scp.port, request) == answer


NOISE: dict[str, tuple[bytes, str]] = {
    "HTTP": (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: pacs.example\r\n\r\n", "HTTP"),
    "TLS": (TLS_HELLO, "TLS"),
    "HL7": (b"\x0bMSH|^~\\&|HIS|A|PACS|B|20260102||ADT^A01|1|P|2.3\rPID|||4711||Doe^Jane\r\x1c\r", "HL7"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
    "64 KiB of A": (b"A" * 65536, "something else"),
    "zeros": (bytes(1000), "zeros"),
    "an absurd length": (b"\1\0\xff\xff\xff\xf0" + bytes(5000), "4294967280 bytes"),
    "an endless P-DATA-TF": (b"\4\0\xff\xff\xff\xf0" + bytes(5000), "something else"),
    "P-DATA-TF first": (store_message(CT, "1.2.3", bytes(100)), "type 04H"),
    "a release first": (struct.pack(">BxIxxxx", 5, 4), "type 05H"),
    "a request cut short": (pdu(APPLICATION, PROPOSED, user()[:-1]), "50H of 17 bytes"),
    "a request of nothing": (struct.pack(">BxI", 1, 0), "at least 68"),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_ends_at_once_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    payload, word = NOISE[name]
    refusals: list[StoreRefusal] = []
    with receiving(tmp_path, noted=refusals.append) as running:
        caplog.clear()
        caplog.set_level(logging.INFO)
        with RawPeer(running.scp.port) as peer:
            peer.send(payload)
            assert peer.read_pdu() == ABORTED
            assert peer.read_pdu() == (None, b"")
        wait_for("the connections to end", lambda: not running.scp.connections)
        (line,) = caplog.records
        assert (line.event, line.host) == ("connection.refused", "127.0.0.1")  # type: ignore[attr-defined]
        assert word in line.getMessage()
        assert "Doe" not in line.getMessage()
    (refusal,) = refusals
    assert (refusal.what, refusal.host, refusal.count) == (RefusedCaller.CONNECTION, "127.0.0.1", 1)
    assert word in refusal.reason


def test_after_the_last_word_nothing_is_parsed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither after an A-ABORT of the door nor after a rejection."""
    caplog.set_level(logging.INFO)
    with receiving(tmp_path, callers=[]) as running:
        for request, event in ((b"noise!", "connection.refused"), (associate_request(), "association.rejected")):
            caplog.clear()
            with RawPeer(running.scp.port, request + b"A" * 100_000 + associate_request()) as peer:
                assert peer.answer_type in (3, 7)
                assert peer.read_pdu() == (None, b"")
            wait_for("the connections to end", lambda: not running.scp.connections)
            assert [record.event for record in caplog.records] == [event]  # type: ignore[attr-defined]


def test_nobody_gets_more_than_so_many_bytes(receiver: Receiver) -> None:
    with RawPeer(receiver.scp.port) as peer, pytest.raises(OSError):
        for _ in range(1000):
            peer.send(b"A" * LONGEST_REQUEST)


@pytest.mark.parametrize("sent", [b"", b"\1", associate_request()[:-1]])
def test_nobody_gets_more_than_the_acse_timeout(tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes) -> None:
    """However slowly a peer goes on, byte by byte."""
    with receiving(tmp_path, timeouts=AcceptorTimeouts(acse_s=0.4)) as running, RawPeer(running.scp.port) as peer:
        began_s = time.monotonic()
        peer.send(sent)
        peer.socket.setblocking(False)
        rest = iter(associate_request()[len(sent) : -1])

        def over() -> bool:
            try:
                peer.socket.send(bytes([next(rest, 0)])) if sent[1:] == b"" and sent else None
                return peer.socket.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        wait_for("the end", over)
        assert time.monotonic() - began_s > 0.3
        wait_for("the connections to end", lambda: not running.scp.connections)
        (line,) = lines(caplog, "connection.refused")
        assert "for 0 s" in line.getMessage()


def test_a_look_at_the_port_is_worth_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with receiving(tmp_path) as running:
        caplog.clear()
        for said in (b"", struct.pack(">BxIxxxx", 7, 4)):
            with RawPeer(running.scp.port) as peer:
                peer.send(said)
                peer.socket.shutdown(socket.SHUT_WR)
                assert peer.read_pdu() == (None, b"")
        wait_for("the connections to end", lambda: not running.scp.connections)
        assert not caplog.records


def test_repeated_noise_is_told_together_and_hinders_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusals: list[StoreRefusal] = []
    with receiving(tmp_path, noted=refusals.append) as running:
        for number in range(40):
            with RawPeer(running.scp.port) as peer:
                peer.send(b"GET / HTTP/1.1\r\n\r\n")
                assert peer.read_pdu()[0] == (7 if number < LINES else None)
            if number % 10 == 0:
                assert answered(running.scp.port, associate_request()) == (2, {1: 0})
        assert len(lines(caplog, "connection.refused")) == LINES
    assert len(lines(caplog, "connection.refused")) == LINES + 1  # at the end, for all that were not told of
    assert sum(refusal.count for refusal in refusals) == 40


def test_those_who_wait_longest_make_room(tmp_path: Path) -> None:
    """Slow peers hold as many places as there are, and who asks at once comes in all the same."""
    with receiving(tmp_path, timeouts=AcceptorTimeouts(acse_s=60)) as running:
        slow = []
        for number in range(WAITING + 20):
            slow.append(RawPeer(running.scp.port))
            slow[-1].send(b"\1\0")
            if number % 50 == 0:
                assert answered(running.scp.port, associate_request()) == (2, {1: 0})
        assert answered(running.scp.port, associate_request()) == (2, {1: 0})
        wait_for("the connections that wait", lambda: running.scp.connections == WAITING)
        assert slow[0].read_pdu() == (None, b"")
        for peer in slow:
            peer.socket.close()
        wait_for("the connections to end", lambda: not running.scp.connections)


def test_a_mebibyte_of_noise_costs_little(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway")
    with receiving(tmp_path) as running:
        before = os.times()
        for seed in range(16):
            with RawPeer(running.scp.port) as peer:
                try:
                    peer.send(bytes([seed + 8]) + os.urandom(65535))
                    while peer.read_pdu()[0] is not None:
                        pass
                except OSError:
                    pass
        after = os.times()
    assert sum(len(record.getMessage()) for record in caplog.records) < 2000
    assert after.user + after.system - before.user - before.system < 1  # ours and the sender's


def test_echoscu_comes_in_beside_noise(receiver: Receiver) -> None:
    with RawPeer(receiver.scp.port) as slow:
        slow.send(b"\1")
        with RawPeer(receiver.scp.port) as loud:
            loud.send(b"A" * 65536)
            command = ["/usr/bin/echoscu", "-aec", "MEDSEG", "127.0.0.1", str(receiver.scp.port)]
            assert subprocess.run(command, check=False, timeout=20).returncode == 0


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (struct.pack(">BxIxxBB", 7, 4, 0, 0), "the peer aborted: its application ended it"),
        (
            struct.pack(">BxIxxBB", 7, 4, 2, 6),
            "the peer aborted: its network layer ended it: invalid PDU parameter value",
        ),
        (struct.pack(">BxIxxBB", 7, 4, 1, 99), "the peer aborted: its application ended it"),
        (b"", "the peer closed the connection without a release"),
        (b"GET / HTTP/1.1\r\n\r\n", "we aborted"),
        (associate_request(), "we aborted"),
        (struct.pack(">BxI", 4, 12) + struct.pack(">IBB", 8, 99, 3) + bytes(6), "context 99 was not accepted"),
    ],
)
def test_who_aborted(tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: bytes, said: str) -> None:
    with receiving(tmp_path) as running:
        with RawPeer(running.scp.port, associate_request(calling="CT07")) as peer:
            peer.send(ending)
            peer.socket.shutdown(socket.SHUT_WR)
            while peer.read_pdu()[0] is not None:
                pass
        wait_for("the connections to end", lambda: not running.scp.connections)
        (line,) = lines(caplog, "association.aborted")
        assert said in line.getMessage()
        assert (line.calling_ae, line.called_ae, line.host) == ("CT07", "MEDSEG", "127.0.0.1")  # type: ignore[attr-defined]
