"""Media types: what an Accept header takes, and which of the things on offer it gets (RFC 9110 12.5.1, PS3.18 8.7).

multipart/related; type="application/dicom"; transfer-syntax=*; q=0.9
~~~~~~~~~~~~~~~~~        ~~~~~~~~~~~~~~~~~                  ~
in several parts         of this kind                       in any transfer syntax
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MULTIPART: Final = "multipart/related"
DICOM, DICOM_JSON, JSON = "application/dicom", "application/dicom+json", "application/json"
OCTETS, JPEG, PNG = "application/octet-stream", "image/jpeg", "image/png"
ANY: Final = "*"
_PIECE = re.compile(r'"(?:\\.|[^"\\])*"|[^",;]+|[,;]')
LONGEST: Final = 4096  # of a header that is looked at


@dataclass(frozen=True)
class MediaType:
    """One of a header. name, parameters' names: lower case."""

    name: str
    parameters: dict[str, str]

    @property
    def quality(self) -> float:
        """From 0, not wanted, to 1."""
        try:
            return min(max(float(self.parameters.get("q", "1")), 0.0), 1.0)
        except ValueError:
            return 0.0


@dataclass(frozen=True)
class Offer:
    """Something that could be answered with. multipart: in parts of that kind."""

    kind: str
    multipart: bool = False


@dataclass(frozen=True)
class Choice:
    """transfer_syntax: the one that is asked for, ANY, or None where nothing is said of it."""

    offer: Offer
    transfer_syntax: str | None = None


def media_types(header: str) -> list[MediaType]:
    """The media types of an Accept or Content-Type header, leniently: what is malformed is left out."""
    types: list[MediaType] = []
    pieces: list[str] = []
    texts = [""]
    for piece in _PIECE.findall(header[:LONGEST]):
        if piece == ",":
            types += _media_type([*pieces, texts[-1]])
            pieces, texts = [], [""]
        elif piece == ";":
            pieces.append(texts[-1])
            texts = [""]
        else:
            texts[-1] += piece
    return types + _media_type([*pieces, texts[-1]])


def _media_type(pieces: Sequence[str]) -> list[MediaType]:
    name, *rest = (piece.strip() for piece in pieces)
    if "/" not in name:
        return []
    parameters = {}
    for text in rest:
        key, equals, value = text.partition("=")
        if equals:
            parameters[key.strip().lower()] = _unquoted(value.strip())
    return [MediaType(name.lower(), parameters)]


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def choose(accept: str, offers: Sequence[Offer]) -> list[Choice]:
    """What of the offers is taken, best first: by quality, then in the order of the header, then of the offers.

    accept: empty takes anything.
    """
    ranges = media_types(accept) if accept.strip() else [MediaType("*/*", {})]
    wanted = sorted(((kind.quality, -place, kind) for place, kind in enumerate(ranges)), key=lambda one: one[:2])
    return [
        Choice(offer, kind.parameters.get("transfer-syntax"))
        for quality, _, kind in reversed(wanted)
        if quality > 0
        for offer in offers
        if _takes(kind, offer)
    ]


def _takes(kind: MediaType, offer: Offer) -> bool:
    if kind.name == "*/*":
        return True
    if kind.name in (MULTIPART, "multipart/*"):
        return offer.multipart and _matches(kind.parameters.get("type", "*/*").lower(), offer.kind)
    return not offer.multipart and _matches(kind.name, offer.kind)


def _matches(pattern: str, kind: str) -> bool:
    return pattern in ("*/*", kind) or (pattern.endswith("/*") and kind.startswith(pattern[:-1]))
