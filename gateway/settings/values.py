"""What a value in the settings may be, in words for the message and as a check that reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Allowed:
    """allowed: what a value may be, after "expected". read: the value as it is kept, or ValueError."""

    allowed: str
    read: Callable[[Any], Any]


class NotInThisVersion(ValueError):
    """A value that nothing carries out yet: the message says which, in words that go on with what is expected."""


def ae_title(value: Any) -> str:
    """An AE title without its padding (VR AE, PS3.5 6.2): 1-16 printable ASCII characters, no backslash.

    Raises ValueError.
    """
    title = text(value).strip(" ")
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise ValueError(value)
    return title


def text(value: Any) -> str:
    """A text that says something. Raises ValueError."""
    if not string(value).strip():
        raise ValueError(value)
    return string(value)


def string(value: Any) -> str:
    """A text, which may be empty. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def host(value: Any) -> str:
    """A host name or address. Raises ValueError."""
    if re.search(r"[\s/@]", text(value)):
        raise ValueError(value)
    return text(value)


def several(read: Callable[[Any], T], *, least: int = 0) -> Callable[[Any], tuple[T, ...]]:
    """A list of at least so many values, each read by `read`."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list) or len(value) < least:
            raise ValueError(value)
        return tuple(read(item) for item in value)

    return read_all


def one_of(choices: type[StrEnum]) -> Allowed:
    return Allowed(_listed(choices, " or "), choices)


def some_of(choices: type[StrEnum]) -> Allowed:
    return Allowed(f"a list of {_listed(choices, ', ')}", several(choices, least=1))


def as_toml(value: Any) -> str:
    """A value as it is shown in a message."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _listed(choices: type[StrEnum], between: str) -> str:
    return between.join(f'"{choice}"' for choice in choices)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(value)
        return value

    return read


def _number(low: float, high: float = math.inf) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(value)
        if not (low <= value <= high and math.isfinite(value)):
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


TEXT = Allowed("a text", text)
TEXTS = Allowed("a list of texts", several(text))
AE_TITLE = Allowed("an AE title of 1 to 16 printable ASCII characters without backslash", ae_title)
HOST = Allowed("a host name or address", host)
PORT = Allowed("a port from 1 to 65535", _whole(1, 65535))
FLAG = Allowed("true or false", _flag)
SECONDS = Allowed("seconds, 0 or more", _number(0))
PERCENT = Allowed("a percentage from 1 to 100", _number(1, 100))
GIGABYTES = Allowed("gigabytes, 0 or more", _number(0))
COUNT = Allowed("a whole number from 1 to 1000", _whole(1, 1000))
FOLDER = Allowed("a folder", _folder)
DATABASE = Allowed('"sqlite:///FILE"', _database)
