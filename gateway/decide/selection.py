"""Which of a study's series that match one rule are segmented: `select = every | thinnest | most_slices`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from gateway.decide.rules import SeriesFacts
from gateway.settings.model import Select


@dataclass(frozen=True)
class Candidate:
    """A complete series that matches. thickness_mm: SliceThickness or, better, the distance of its slices."""

    series_uid: str
    slices: int
    thickness_mm: float | None = None
    number: int | None = None


def candidate(facts: SeriesFacts) -> Candidate:
    """A series as one that may be selected."""
    number = facts.number
    return Candidate(facts.series_uid, facts.slices or 0, facts.thickness_mm, None if number is None else int(number))


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


def select(candidates: Collection[Candidate], how: Select) -> Selection:
    """The series to segment, by SeriesNumber."""
    ordered = sorted(candidates, key=_order)
    key = _KEYS.get(how)
    if key is None or not ordered:
        return Selection(tuple(one.series_uid for one in ordered), {})
    best = min(ordered, key=key)
    passed_over = {
        one.series_uid: f"select = {how}: {_said(one)}, and series {best.series_uid} has {_said(best)}"
        for one in ordered
        if one is not best
    }
    return Selection((best.series_uid,), passed_over)


def _said(one: Candidate) -> str:
    thickness = "unknown thickness" if one.thickness_mm is None else f"{one.thickness_mm:g} mm"
    return f"{one.slices} slices of {thickness}"
