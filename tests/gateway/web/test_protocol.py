"""Whoever connects to the pages' port: noise, DICOM, headers without end, and connections that say nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from gateway.dimse.noise import LINES, Noise
from gateway.web import protocol
from gateway.web.server import CONNECTIONS
from tests.gateway.receiving import associate_request
from tests.gateway.web.served import Served, served
from tests.waiting import wait_for


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(protocol, "NOISE", Noise())
    monkeypatch.setattr(protocol, "REQUEST_S", 0.5)
    with served(tmp_path) as running:
        yield running


def said(port: int, payload: bytes) -> bytes:
    """What comes back until the other side ends the connection."""
    with socket.create_connection(("127.0.0.1", port), 20) as peer:
        answer = b""
        try:
            peer.sendall(payload)
            while piece := peer.recv(65536):
                answer += piece
        except ConnectionError:
            pass
        return answer


@pytest.mark.parametrize(
    "payload",
    [
        b"A" * (1 << 20),
        b"\0" + os.urandom(65536),
        associate_request(),
        bytes.fromhex("160301020001fc0303") + bytes(500),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (1 << 20),
        b"GET / HTTP/1.1\r\nHo",
        b"",
    ],
)
def test_noise_ends_with_one_line(site: Served, caplog: pytest.LogCaptureFixture, payload: bytes) -> None:
    caplog.clear()
    answer = said(site.port, payload)
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    (line,) = [record for record in caplog.records if record.name == "gateway.web.protocol"]
    assert (line.event, line.host) == ("connection.refused", "127.0.0.1")  # type: ignore[attr-defined]


def test_noise_that_goes_on_is_told_together(site: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    for _ in range(4 * LINES):
        said(site.port, b"noise\r\n\r\n")
    assert len([record for record in caplog.records if record.name == "gateway.web.protocol"]) == LINES


def test_silent_connections_make_room(site: Served) -> None:
    silent = [socket.create_connection(("127.0.0.1", site.port), 20) for _ in range(CONNECTIONS + 20)]
    for number, peer in enumerate(silent):
        if number % 2:
            peer.sendall(b"GET / HTTP/1.1\r\nHo")
    wait_for("the site", lambda: site.get("/healthz").status == 200)
    for peer in silent:
        peer.close()


def test_a_connection_that_makes_requests_stays(site: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    connection = HTTPConnection("127.0.0.1", site.port, timeout=20)
    connection.connect()
    opened, began_s = connection.sock, time.monotonic()
    while time.monotonic() - began_s < 4 * protocol.REQUEST_S:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
    assert connection.sock is opened
    connection.close()
    assert not [record for record in caplog.records if record.name == "gateway.web.protocol"]
