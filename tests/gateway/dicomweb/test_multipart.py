"""Messages in parts: read in any pieces as they were written, also by the standard library; and what is none."""

from __future__ import annotations

from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dicomweb.multipart import (
    LONGEST_HEAD,
    LONGEST_PREAMBLE,
    MalformedMultipart,
    MultipartReader,
    PartBegins,
    PartData,
    written,
)

#: Bytes that look like a boundary, now and then.
CONTENT = st.lists(st.sampled_from([b"\r\n", b"--b", b"-", b"\r", b"\n", b"x", b"\r\n--c", b"--"]), max_size=12).map(
    b"".join
)


def read(pieces: Iterable[bytes], boundary: str = "bound") -> tuple[list[tuple[dict[str, str], bytes]], bool]:
    """The parts that came to their end, and whether the message did."""
    reader, parts, headers, content = MultipartReader(boundary), [], {}, b""
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, PartBegins):
                headers, content = dict(event.headers), b""
            elif isinstance(event, PartData):
                content += bytes(event.data)
            else:
                parts.append((headers, content))
    return parts, reader.closed


@given(st.lists(CONTENT, max_size=4), st.integers(1, 40), st.binary(max_size=20))
def test_what_was_written_is_read_in_any_pieces(contents: list[bytes], step: int, epilogue: bytes) -> None:
    message = (
        b"".join(written("bound", [({"Content-Type": "application/dicom"}, [one]) for one in contents])) + epilogue
    )
    pieces = [message[at : at + step] for at in range(0, len(message), step)]
    assert read(pieces) == ([({"content-type": "application/dicom"}, one) for one in contents], True)


def test_the_standard_library_reads_it() -> None:
    message = b"".join(written("bound", [({"Content-Type": "text/x"}, [b"a", b"b"]), ({}, [b"\r\n"])]))
    parsed = message_from_bytes(b'Content-Type: multipart/related; boundary="bound"\r\n\r\n' + message)
    parts = parsed.get_payload()
    assert [one.get_payload(decode=True) for one in parts if isinstance(one, Message)] == [b"ab", b"\r\n"]


def test_a_preamble_padding_and_no_headers() -> None:
    assert read([b"hello\r\n--bound \t\r\n\r\nA\r\n--bound\r\nX: y\r\n\r\n\r\n--bound--"]) == (
        [({}, b"A"), ({"x": "y"}, b"")],
        True,
    )


@pytest.mark.parametrize("cut", [3, 12, 25, 42])
def test_a_message_that_is_cut_is_not_closed(cut: int) -> None:
    message = b"".join(written("bound", [({"A": "b"}, [b"content of a part"])]))
    assert not read([message[:cut]])[1]


@pytest.mark.parametrize(
    "message",
    [
        b"x" * (LONGEST_PREAMBLE + 1),
        b"--boundless\r\n\r\n",
        b"--bound\r\nno colon\r\n\r\n",
        b"--bound\r\n" + b"A: b\r\n" * LONGEST_HEAD,
        b"--bound" + b" " * (LONGEST_HEAD + 1),
    ],
    ids=["no boundary", "another boundary", "no colon", "long headers", "long line"],
)
def test_what_is_no_message_in_parts(message: bytes) -> None:
    with pytest.raises(MalformedMultipart):
        read([message])


@pytest.mark.parametrize("boundary", ["", "é", "x" * 257, "a\nb"])
def test_what_is_no_boundary(boundary: str) -> None:
    with pytest.raises(MalformedMultipart):
        MultipartReader(boundary)
