"""Patterns of dates, times, and ages: see `patterns`."""

from __future__ import annotations

import math
import re
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from medseg.allowed import string

if TYPE_CHECKING:
    from medseg.conditions.patterns import Admitted, Pattern


class ClockKind(StrEnum):
    """What a moment is a moment of: the VRs DA, TM and DT (PS3.5 6.2)."""

    DATE = "date"
    TIME = "time"
    DATE_TIME = "date and time"


# Digits of a moment written in full, by their least and their greatest; where fewer are given, they are completed.
_EARLIEST = {ClockKind.DATE: "00010101", ClockKind.TIME: "000000000000", ClockKind.DATE_TIME: "00010101000000000000"}
_LATEST = {ClockKind.DATE: "99991231", ClockKind.TIME: "235960999999", ClockKind.DATE_TIME: "99991231235960999999"}
_LENGTHS = {ClockKind.DATE: (4, 6, 8), ClockKind.TIME: (2, 4, 6), ClockKind.DATE_TIME: (4, 6, 8, 10, 12, 14)}


@dataclass(frozen=True)
class Moments:
    """Dates, times, or both in one, from `low` to `high`: their digits as numbers. text: as in the file."""

    text: str
    clock: ClockKind
    low: int
    high: int

    @property
    def kind(self) -> str:
        return self.clock

    @classmethod
    def reading(cls, clock: ClockKind) -> Callable[[Any], Moments]:
        """Reads "20260101", "2026", "2026*", ">=20260101", and ranges as PS3.4 C.2.2.2.5 writes them."""

        def read(value: Any) -> Moments:
            text = string(value).replace(" ", "")
            compared = re.fullmatch(r"(<=|>=|<|>|)(\d[\d.]*)\*?", text)
            between = re.fullmatch(r"(\d[\d.]*)?-(\d[\d.]*)?", text)
            low, high = int(_EARLIEST[clock]), int(_LATEST[clock])
            if compared and not (compared[1] and text.endswith("*")):
                first, last = _span(compared[2], clock)
                low = {"<": low, "<=": low, ">": last + 1}.get(compared[1], first)
                high = {">": high, ">=": high, "<": first - 1}.get(compared[1], last)
            elif between and text != "-":
                low = _span(between[1], clock)[0] if between[1] else low
                high = _span(between[2], clock)[1] if between[2] else high
            else:
                raise ValueError(value)
            if low > high:
                raise ValueError(value)
            return cls(text, clock, low, high)

        return read

    def admits(self, value: str) -> Admitted:
        """A value that is not written in full counts from its beginning; an offset from UTC is not looked at."""
        digits = re.sub(r"[+-]\d{4}$", "", value.strip()) if self.clock is ClockKind.DATE_TIME else value.strip()
        if self.clock is ClockKind.DATE:
            digits = re.sub(r"^(\d{4})\.(\d{2})\.(\d{2})$", r"\1\2\3", digits)  # as ACR-NEMA wrote it
        elif self.clock is ClockKind.TIME:
            digits = digits.replace(":", "")
        try:
            return self.low <= _span(digits, self.clock)[0] <= self.high
        except ValueError:
            return None

    def covers(self, other: Pattern) -> bool:
        if not isinstance(other, Moments) or other.clock is not self.clock:
            return False
        return self.low <= other.low and other.high <= self.high

    def __str__(self) -> str:
        return self.text


def _span(digits: str, clock: ClockKind) -> tuple[int, int]:
    """The first and the last moment that is written so. Raises ValueError."""
    whole, dot, fraction = digits.partition(".")
    longest = _LENGTHS[clock][-1]
    fraction_ok = not dot or (
        clock is not ClockKind.DATE and len(whole) == longest and re.fullmatch(r"\d{1,6}", fraction)
    )
    if not re.fullmatch(r"\d+", whole) or len(whole) not in _LENGTHS[clock] or not fraction_ok:
        raise ValueError(digits)
    earliest, latest = (bound[clock] for bound in (_EARLIEST, _LATEST))
    given = whole + fraction
    first = given + earliest[len(given) :]
    if clock is not ClockKind.TIME:
        day = date(int(first[:4]), int(first[4:6]), int(first[6:8]))
        if len(given) == 6:
            latest = latest[:6] + f"{monthrange(day.year, day.month)[1]}" + latest[8:]
    time = first if clock is ClockKind.TIME else first[8:]
    if time and not (int(time[:2]) < 24 and int(time[2:4]) < 60 and int(time[4:6]) <= 60):  # 60: a leap second
        raise ValueError(digits)
    return int(first), int(given + latest[len(given) :])


_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_PER_UNIT = {"Y": ("M", 12), "M": ("M", 1), "W": ("D", 7), "D": ("D", 1)}  # ages are kept in months or in days


@dataclass(frozen=True)
class Ages:
    """Ages from `low` to `high`, completed months or days (`unit`). text: as in the file.

    A value is an Age String (VR AS), or the dates of birth and of the study, "YYYYMMDD-YYYYMMDD".
    """

    text: str
    kind: ClassVar[str] = "age"
    unit: str
    low: float
    high: float

    FORM: ClassVar = r"(\d{1,3})([DWMY]?)"

    @classmethod
    def read(cls, value: Any) -> Ages:
        """From 18, "018Y", ">=18", "<6M" or "2..17"; years where no unit is given. Raises ValueError."""
        text = str(value).replace(" ", "").upper()
        between = re.fullmatch(rf"{cls.FORM}\.\.{cls.FORM}", text)
        compared = re.fullmatch(rf"(<=|>=|<|>|){cls.FORM}", text)
        if isinstance(value, bool) or not isinstance(value, int | str) or not (between or compared):
            raise ValueError(value)
        low: float
        high: float
        if between:
            first_unit, low, _ = _age(between[1], between[2] or between[4])
            unit, _, high = _age(between[3], between[4] or between[2])
            if first_unit != unit or low > high:
                raise ValueError(value)
            return cls(text, unit, low, high)
        assert compared is not None
        unit, first, last = _age(compared[2], compared[3])
        low = {"<": 0, "<=": 0, ">": last + 1}.get(compared[1], first)
        high = {">": math.inf, ">=": math.inf, "<": first - 1}.get(compared[1], last)
        if low > high:
            raise ValueError(value)
        return cls(text, unit, low, high)

    def admits(self, value: str) -> Admitted:
        completed = _completed(value.strip().upper(), self.unit)
        return None if completed is None else self.low <= completed <= self.high

    def covers(self, other: Pattern) -> bool:
        if not isinstance(other, Ages) or other.unit != self.unit:
            return False
        return self.low <= other.low and other.high <= self.high

    def __str__(self) -> str:
        return self.text


def _age(number: str, unit: str) -> tuple[str, int, int]:
    """The unit that an age is kept in, and the first and the last age that is called so."""
    kept, times = _PER_UNIT[unit or "Y"]
    return kept, int(number) * times, int(number) * times + times - 1


def _completed(value: str, unit: str) -> int | None:
    """How many months ("M") or days ("D") old somebody is; None where that cannot be told."""
    stated = re.fullmatch(r"(\d{1,3})([DWMY])", value)
    if stated:
        kept, age, _ = _age(stated[1], stated[2])
        return age if kept == unit else int(age * _DAYS[kept] / _DAYS[unit])
    dates = re.fullmatch(r"(\d{8})-(\d{8})", value)
    try:
        born, then = (date.fromisoformat(one) for one in dates.groups()) if dates else (date.max, date.min)
    except ValueError:
        return None
    if born > then:
        return None
    months = 12 * (then.year - born.year) + then.month - born.month - (then.day < born.day)
    return months if unit == "M" else (then - born).days
