"""Which of a study's series that match one rule are segmented: `select`, `prefer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.decide.rules import SeriesFacts
from gateway.settings.model import Rule, Select
from medseg.conditions.prefer import preferred


@dataclass(frozen=True)
class Candidate:
    """A complete series that matches. thickness_mm: SliceThickness or, better, the distance of its slices."""

    series_uid: str
    slices: int
    thickness_mm: float | None = None
    number: int | None = None
    moment: str = ""
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def said(self, keyword: str) -> tuple[str, ...]:
        """The values of an attribute, where a rule asks for it."""
        return self.tags.get(keyword, ())


def candidate(facts: SeriesFacts) -> Candidate:
    """A series as one that may be selected."""
    number = facts.number
    whole = None if number is None else int(number)
    return Candidate(facts.series_uid, facts.slices or 0, facts.thickness_mm, whole, facts.moment, facts.tags)


@dataclass(frozen=True)
class Selection:
    """chosen: series UIDs. passed_over: series UID to the reason, for people."""

    chosen: tuple[str, ...]
    passed_over: dict[str, str]


def _thickness(one: Candidate) -> float:
    return math.inf if one.thickness_mm is None else one.thickness_mm


def _order(one: Candidate) -> tuple[float, str]:
    """SeriesNumber, since the first reconstruction is mostly the one meant; a series without one comes last."""
    return math.inf if one.number is None else one.number, one.series_uid


# The least by its key is chosen; where several are equal, the next part of the key decides, so that the order in which
# series came never does.
_KEYS: dict[Select, Callable[[Candidate], Any]] = {
    Select.THINNEST: lambda one: (_thickness(one), -one.slices, _order(one)),
    Select.MOST_SLICES: lambda one: (-one.slices, _thickness(one), _order(one)),
}


def select(candidates: Collection[Candidate], rule: Rule) -> Selection:
    """The series to segment, by SeriesNumber."""
    ordered = sorted(candidates, key=_order)
    if not rule.takes_one or not ordered:
        return Selection(tuple(one.series_uid for one in ordered), {})
    alike = preferred(ordered, rule.prefer)
    best = min(alike, key=_KEYS.get(rule.select, _order))
    others = [one for one in ordered if one is not best]
    return Selection((best.series_uid,), {one.series_uid: _why(one, best, rule, one in alike) for one in others})


def _why(one: Candidate, best: Candidate, rule: Rule, is_alike: bool) -> str:
    """Why a series is passed over."""
    if rule.prefer:
        how = "is as good, and comes first by its number" if is_alike else "goes before it"
        return f"prefer = {', '.join(rule.prefer)}: series {best.series_uid} {how}"
    return f"select = {rule.select}: {_said(one)}, and series {best.series_uid} has {_said(best)}"


def _said(one: Candidate) -> str:
    thickness = "unknown thickness" if one.thickness_mm is None else f"{one.thickness_mm:g} mm"
    return f"{one.slices} slices of {thickness}"
