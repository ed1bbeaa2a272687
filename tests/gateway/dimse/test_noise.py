"""How much is told of what is no DICOM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dimse.noise import HOSTS, LINES, OTHERS, WINDOW_S, Noise, protocol


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b"OPTIONS * HTTP/1.1\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "TLS, which is not spoken here"),
        (b"\x0bMSH|^~\\&|SENDER", "HL7 (MLLP)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
        (b"\r\n\r\n\0\r\nQUIT\n!\x11", "the PROXY protocol of a load balancer"),
        (b"\xfe\xfd", "something else"),
    ],
)
def test_names(first: bytes, name: str) -> None:
    assert protocol(first) == name


def test_the_first_are_told_and_the_others_at_the_end() -> None:
    noise = Noise()
    assert [noise.heard("a", 10.0 + at) for at in range(5)] == [True] * LINES + [False] * 2
    assert noise.repeated("a")
    assert noise.heard("b", 20.0)
    assert not noise.repeated("b")
    assert noise.due(10.0 + WINDOW_S - 1) == ()
    assert noise.due(10.0 + WINDOW_S) == (("a", 2),)
    assert noise.due(1000.0) == ()  # of b all is told
    assert not noise.repeated("a")
    assert noise.heard("a", 1000.0)


@given(st.lists(st.tuples(st.integers(0, 3 * HOSTS), st.floats(0, 50)), max_size=3 * HOSTS))
def test_nothing_is_forgotten_and_the_table_is_bounded(heard: list[tuple[int, float]]) -> None:
    noise = Noise()
    told = sum(noise.heard(f"192.0.2.{host}", at) for host, at in heard)
    assert told <= LINES * (HOSTS + 1)
    untold = noise.due(1e9)
    assert len(untold) <= HOSTS + 1
    assert told + sum(count for _, count in untold) == len(heard)


def test_more_addresses_are_counted_together() -> None:
    noise = Noise()
    assert all(noise.heard(str(host), 0.0) for host in range(HOSTS))
    assert [noise.heard(str(HOSTS + more), 0.0) for more in range(5)] == [True] * LINES + [False] * 2
    assert noise.due(WINDOW_S) == ((OTHERS, 2),)
