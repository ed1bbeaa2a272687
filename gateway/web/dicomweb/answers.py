"""Answers that are sent piece by piece, and what goes wrong while they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from starlette.responses import StreamingResponse

from gateway.dicomweb.media import MULTIPART
from gateway.dicomweb.multipart import new_boundary, written
from gateway.web.dicomweb.pixels import PIECE

logger = logging.getLogger(__name__)

Part: TypeAlias = tuple[Mapping[str, str], Iterable[bytes]]


def in_parts(
    kind: str, parts: Iterable[Part], status: int = 200, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """A multipart/related answer. kind: of the parts."""
    boundary = new_boundary()
    content_type = f'{MULTIPART}; type="{kind}"; boundary={boundary}'
    return streamed(written(boundary, parts), content_type, status, headers)


def streamed(
    content: Iterable[bytes], content_type: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """An answer in pieces of about the same length, however it comes."""
    sent = {"Content-Type": content_type} | dict(headers or {})
    return StreamingResponse(_told(_gathered(content)), status, sent)


def _gathered(content: Iterable[bytes]) -> Iterator[bytes]:
    held, length = list[bytes](), 0
    for piece in content:
        held.append(piece)
        length += len(piece)
        if length >= PIECE:
            yield b"".join(held)
            held, length = [], 0
    if held:
        yield b"".join(held)


def _told(content: Iterator[bytes]) -> Iterator[bytes]:
    """What breaks an answer that has begun is logged; the connection ends without the answer's end."""
    try:
        yield from content
    except Exception:
        logger.exception("an answer broke off", extra={"event": "dicomweb.broken"})
        raise
