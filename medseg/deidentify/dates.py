"""Dates moved by whole days: what lies between two of them, and the time of day, stay (PS3.15 E.3.6)."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date, timedelta

_DATE = re.compile(
    r"(\d{4})[.]?(\d{2})[.]?(\d{2})((?:\d{2}){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)"
)  # PS3.5 6.2, and ACR-NEMA


def moved(text: str, days: int) -> str:
    """A DA or DT, or several joined by backslashes, moved by days; empty where one of them is none of a whole day."""
    parts = [_moved(part.strip(" \0"), days) for part in text.split("\\")]
    return "\\".join(parts) if all(parts) else ""


def _moved(text: str, days: int) -> str:
    match = _DATE.fullmatch(text)
    if match:
        with suppress(ValueError, OverflowError):
            year, month, day, rest = match.groups()
            then = date(int(year), int(month), int(day)) + timedelta(days)
            return f"{then.year:04d}{then.month:02d}{then.day:02d}{rest}"
    return ""
