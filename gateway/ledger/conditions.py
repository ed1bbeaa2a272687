"""Conditions as the tables declare them, made of the words that may stand in a column."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, text


def among(column: str, words: Iterable[StrEnum]) -> str:
    """A column holds one of some words."""
    return f"{column} IN ({', '.join(map(_quoted, words))})"


def is_(state: StrEnum) -> str:
    """A row is in a state."""
    return f"state = {_quoted(state)}"


def one_of(column: str, words: Iterable[StrEnum]) -> CheckConstraint:
    """A column never holds anything else than one of some words."""
    return CheckConstraint(among(column, words), name=column)


def where(condition: str) -> dict[str, Any]:
    """A partial index, in both dialects."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _quoted(word: StrEnum) -> str:
    return f"'{word.value}'"
