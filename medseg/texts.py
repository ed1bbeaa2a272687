"""Text that leaves us is valid UTF-8, whatever bytes a path or a header had and whatever locale this runs in.

Python shows bytes of a name that are no text as lone surrogates, which no encoder takes: here they become `\\xe9`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def shown(path: PurePath) -> str:
    """A path as text: as UTF-8 where its bytes are that, in any locale; another byte as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def valid(text: str) -> str:
    """A text without lone surrogates: bytes that were escaped by them come back where they are UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:
            return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def to_json(record: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """A record as JSON (RFC 8259), with a line's end."""
    return (json.dumps(_valid(record), indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _valid(value: Any) -> Any:
    match value:
        case str():
            return valid(value)
        case Mapping():
            return {valid(str(key)): _valid(item) for key, item in value.items()}
        case list() | tuple():
            return [_valid(item) for item in value]
        case float() if not math.isfinite(value):
            return None  # JSON has no word for it
        case _:
            return value
