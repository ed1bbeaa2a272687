"""Which of several series is meant, where all fit: by preferences, one after the other until one is left.

thinnest    most_slices    latest    KEYWORD:VALUE
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from pydicom.datadict import tag_for_keyword

from medseg.allowed import Allowed, text
from medseg.conditions.patterns import Wildcard

PREFERENCES: Final = ("most_slices", "thinnest", "latest")
_SAME_THICKNESS: Final = 1.001


class Preferable(Protocol):
    """A series, or a volume of one. thickness_mm: None where it is not known. moment: of the series, for comparison;
    empty where it is not known."""

    @property
    def slices(self) -> int: ...
    @property
    def thickness_mm(self) -> float | None: ...
    @property
    def moment(self) -> str: ...
    def said(self, keyword: str) -> tuple[str, ...]:
        """The values of an attribute; none where it is absent."""
        ...


_P = TypeVar("_P", bound=Preferable)


def preferred(candidates: Sequence[_P], prefer: Iterable[str]) -> list[_P]:
    """Those that each preference leaves, in turn; one that none of them meets is passed over."""
    left = list(candidates)
    for preference in prefer:
        if len(left) < 2:
            break
        left = _best(left, preference) or left
    return left


def _best(candidates: list[_P], preference: str) -> list[_P]:
    match preference:
        case "most_slices":
            most = max(one.slices for one in candidates)
            return [one for one in candidates if one.slices == most]
        case "thinnest":
            known = [one.thickness_mm for one in candidates if one.thickness_mm is not None]
            limit = min(known, default=0.0) * _SAME_THICKNESS
            return [one for one in candidates if one.thickness_mm is not None and one.thickness_mm <= limit]
        case "latest":
            latest = max(one.moment for one in candidates)
            return [one for one in candidates if one.moment == latest and latest]
    keyword, _, value = preference.partition(":")
    wanted = Wildcard(value)
    return [one for one in candidates if any(wanted.admits(said) for said in one.said(keyword) if said)]


def keyword_of(preference: str) -> str:
    """The attribute that a preference looks at; empty where it is none."""
    return preference.partition(":")[0] if preference not in PREFERENCES else ""


def preference(value: Any) -> str:
    """Raises ValueError."""
    keyword, _, wanted = text(value).partition(":")
    if value not in PREFERENCES and not (wanted and tag_for_keyword(keyword) is not None):
        raise ValueError(value)
    return str(value)


PREFERENCE: Final = Allowed(f"{', '.join(PREFERENCES)} or KEYWORD:VALUE", preference)
