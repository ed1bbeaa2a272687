"""What a value in the settings may be, in words for the message and as a check that reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medseg.allowed import Allowed, NotInThisVersion, ae_title, integer, number, text


def host(value: Any) -> str:
    """A host name or address. Raises ValueError."""
    if re.search(r"[\s/@]", text(value)):
        raise ValueError(value)
    return text(value)


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not low <= integer(value) <= high:
            raise ValueError(value)
        return integer(value)

    return read


def _number(low: float, high: float = math.inf) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if not (low <= number(value) <= high and math.isfinite(value)):
            raise ValueError(value)
        return float(value)

    return read


def _database(value: Any) -> str:
    if re.match(r"postgres(ql)?(\+\w+)?:", text(value)):
        raise NotInThisVersion("a ledger on PostgreSQL is not in this version")
    if not re.match(r"sqlite:///[^?]", text(value)):
        raise ValueError(value)
    return text(value)


def _folder(value: Any) -> Path:
    return Path(text(value)).expanduser()


def _web_address(value: Any) -> str:
    place = urlsplit(text(value))
    plain = not (place.username or place.password or place.query or place.fragment) and value.isprintable()
    if place.scheme not in ("http", "https") or not place.hostname or place.port == 0 or not plain or " " in value:
        raise ValueError(value)
    return str(value).rstrip("/")


AE_TITLE = Allowed("an AE title of 1 to 16 printable ASCII characters without backslash", ae_title)
HOST = Allowed("a host name or address", host)
PORT = Allowed("a port from 1 to 65535", _whole(1, 65535))
SECONDS = Allowed("seconds, 0 or more", _number(0))
PERCENT = Allowed("a percentage from 1 to 100", _number(1, 100))
GIGABYTES = Allowed("gigabytes, 0 or more", _number(0))
COUNT = Allowed("a whole number from 1 to 1000", _whole(1, 1000))
FOLDER = Allowed("a folder", _folder)
WEB_ADDRESS = Allowed('"http://HOST:PORT/PATH" or "https://…", without user and password', _web_address)
DATABASE = Allowed('"sqlite:///FILE"', _database)
