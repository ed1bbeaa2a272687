"""Messages in parts (RFC 2046 5.1, RFC 2387), read as they come and written piece by piece: no part is ever held whole.

--boundary CRLF  headers CRLF CRLF  content  CRLF --boundary CRLF  headers ...  CRLF --boundary--
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

LONGEST_HEAD: Final = 1 << 14  # bytes: headers of a part
LONGEST_PREAMBLE: Final = 1 << 16
LONGEST_BOUNDARY: Final = 256  # RFC 2046 5.1.1 says 70, and Orthanc uses 73


class MalformedMultipart(ValueError):
    """Bytes that are no message in parts."""


@dataclass(frozen=True)
class PartBegins:
    """headers: names in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True)
class PartData:
    """Bytes of the content; the view is valid until more is fed."""

    data: memoryview


@dataclass(frozen=True)
class PartEnds:
    """The part is whole."""


PartEvent: TypeAlias = PartBegins | PartData | PartEnds


class MultipartReader:
    """Takes a message as it comes, and tells of its parts."""

    def __init__(self, boundary: str) -> None:
        """Raises MalformedMultipart where there can be no such boundary."""
        if not boundary or len(boundary) > LONGEST_BOUNDARY or not boundary.isascii() or not boundary.isprintable():
            raise MalformedMultipart(f"expected a boundary of 1 to {LONGEST_BOUNDARY} printable ASCII characters")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._held = bytearray(b"\r\n")  # as if a line had ended before the first boundary
        self._place = self._before_parts

    @property
    def closed(self) -> bool:
        """Whether the last boundary was seen."""
        return self._place == self._after_parts

    def feed(self, data: bytes) -> Iterator[PartEvent]:
        """More of the message. Iterate to the end before more is fed. Raises MalformedMultipart."""
        self._held += data
        while (events := self._place()) is not None:
            yield from events

    # Each place takes what it can from what is held: its events, or None where it needs more.

    def _before_parts(self) -> list[PartEvent] | None:
        at = self._held.find(self._delimiter)
        if at < 0:
            if len(self._held) > LONGEST_PREAMBLE:
                raise MalformedMultipart(f"no boundary in the first {LONGEST_PREAMBLE} bytes")
            return None
        del self._held[: at + len(self._delimiter)]
        self._place = self._behind_boundary
        return []

    def _behind_boundary(self) -> list[PartEvent] | None:
        if len(self._held) < 2:
            return None
        if self._held[:2] == b"--":
            self._place = self._after_parts
            return []
        end = self._held.find(b"\r\n")
        if end < 0 and len(self._held) <= LONGEST_HEAD:
            return None
        if end < 0 or self._held[:end].strip(b" \t"):
            raise MalformedMultipart("something else than a line's end behind a boundary")
        del self._held[:end]  # the line's end stays: with it a head without headers is an empty line
        self._place = self._in_head
        return []

    def _in_head(self) -> list[PartEvent] | None:
        end = self._held.find(b"\r\n\r\n")
        if (len(self._held) if end < 0 else end) > LONGEST_HEAD:
            raise MalformedMultipart(f"headers of a part of more than {LONGEST_HEAD} bytes")
        if end < 0:
            return None
        headers = {}
        for line in bytes(self._held[:end]).decode("latin-1").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
            elif line:
                raise MalformedMultipart("a header of a part without a colon")
        del self._held[: end + 2]  # the empty line's end stays, for a part without content
        self._place = self._at_content
        return [PartBegins(headers)]

    def _at_content(self) -> list[PartEvent] | None:
        """A part without content has its boundary at once, behind the empty line's end."""
        if len(self._held) < len(self._delimiter):
            return None
        if self._held.startswith(self._delimiter):
            return self._end_of_part(0, [])
        del self._held[:2]
        self._place = self._in_content
        return []

    def _in_content(self) -> list[PartEvent] | None:
        at = self._held.find(self._delimiter)
        if at >= 0:
            events: list[PartEvent] = [PartData(memoryview(bytes(self._held[:at])))] if at else []
            return self._end_of_part(at, events)
        safe = len(self._held) - len(self._delimiter) + 1
        if safe <= 0:
            return None
        data = bytes(self._held[:safe])
        del self._held[:safe]
        return [PartData(memoryview(data))]

    def _end_of_part(self, at: int, events: list[PartEvent]) -> list[PartEvent]:
        del self._held[: at + len(self._delimiter)]
        self._place = self._behind_boundary
        return [*events, PartEnds()]

    def _after_parts(self) -> None:
        self._held.clear()  # an epilogue says nothing


def new_boundary() -> str:
    """One that is in no content."""
    return f"medseg-{secrets.token_hex(16)}"


def written(boundary: str, parts: Iterable[tuple[Mapping[str, str], Iterable[bytes]]]) -> Iterator[bytes]:
    """A message in parts: of each its headers, and its content piece by piece."""
    for headers, content in parts:
        yield head(boundary, headers)
        yield from content
        yield b"\r\n"
    yield tail(boundary)


def head(boundary: str, headers: Mapping[str, str]) -> bytes:
    """What comes before the content of a part."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"--{boundary}\r\n{lines}\r\n".encode("latin-1")


def tail(boundary: str) -> bytes:
    """What comes after the last part."""
    return f"--{boundary}--\r\n".encode("latin-1")
