"""Times of a series in the order in which they were.

A time of day belongs to its date (PS3.3 C.7.10.1, Acquisition Date and Time; PS3.5 6.2, DA, TM and DT). Where dates are
missing, or are all one while the times fill more than half a day, the day is a circle that is cut where nothing
happened for longest: a scan that runs past midnight stays in order.

    23:59:50  23:59:55 | 00:00:00  00:00:05  ............ nothing ............     23:59:50 is the first
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

import numpy as np

from medseg.dicom.instance import Vector

_DAY_S = 86400.0
_DATE = re.compile(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})")
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2}(?:\.\d*)?)?")
_DATETIME = re.compile(r"(\d{8})(\d{2,6}(?:\.\d*)?)(?:[+-]\d{4})?")
_ZONE = re.compile(r"([+-])(\d{2})(\d{2})")


def moments(texts: Sequence[str]) -> Vector | None:
    """Seconds from some start, of "date|time" (DA, TM; the date may be missing), "|" and a DT, or numbers.

    None where one is missing or malformed, or where the day cannot be put in order.
    """
    if not any("|" in text for text in texts):
        try:
            numbers = np.array([float(text) for text in texts])
        except ValueError:
            return None
        return numbers if np.isfinite(numbers).all() else None
    parsed = [_parse(text) for text in texts]
    known = [moment for moment in parsed if moment is not None]
    if len(known) != len(texts):
        return None
    days, times = [day for day, _ in known], np.array([time for _, time in known])
    dated = [day for day in days if day is not None]
    if len(dated) == len(days) and (len(set(dated)) > 1 or np.ptp(times) <= _DAY_S / 2):
        since: Vector = np.array(dated) * _DAY_S + times
        return since
    if 0 < len(dated) < len(days):
        return None
    return _round_the_day(times % _DAY_S)


def _round_the_day(times: Vector) -> Vector | None:
    ordered = np.unique(times)
    pauses = np.append(np.diff(ordered), ordered[0] + _DAY_S - ordered[-1])
    longest = int(np.argmax(pauses))
    if len(ordered) > 1 and pauses[longest] < _DAY_S / 2:
        return None
    first = ordered[(longest + 1) % len(ordered)]
    passed: Vector = (times - first) % _DAY_S
    return passed


def _parse(text: str) -> tuple[int | None, float] | None:
    """(day, seconds of it); None where the time is missing."""
    day, _, time = text.partition("|")
    if not day and (whole := _DATETIME.fullmatch(time)):
        zone = _ZONE.search(time)
        clock = _seconds(whole[2])
        if clock is not None and zone is not None:
            offset = int(zone[2]) * 3600 + int(zone[3]) * 60
            clock += -offset if zone[1] == "+" else offset
        when = _day(whole[1])
        return None if clock is None or when is None else (when, clock)
    clock = _seconds(time)
    return None if clock is None else (_day(day), clock)


def _day(text: str) -> int | None:
    match = _DATE.fullmatch(text)
    try:
        return date(int(match[1]), int(match[2]), int(match[3])).toordinal() if match else None
    except ValueError:
        return None


def _seconds(text: str) -> float | None:
    match = _TIME.fullmatch(text)
    return int(match[1]) * 3600.0 + int(match[2] or 0) * 60 + float(match[3] or 0) if match else None


def moment_s(day: str, time: str, zone: str = "") -> float | None:
    """Seconds from some start, the same for all: of a date (DA) and a time (TM), or of a DT alone.

    zone: of a DT that names none, where one is known; a DT that names one while `zone` is not known is local time.
    None where either is missing or malformed.
    """
    if not day and zone and not _ZONE.search(time):
        time += zone
    offset = _ZONE.search(time) if not day else None
    parsed = _parse(f"{day}|{time}")
    if parsed is None or parsed[0] is None:
        return None
    return parsed[0] * _DAY_S + parsed[1] + _local_s(zone, offset)


def _local_s(zone: str, offset: re.Match[str] | None) -> float:
    """What brings a DT with an offset back to the clock of the place: dates and times beside it are by that."""
    clock = _ZONE.fullmatch(zone) or offset
    if offset is None or clock is None:
        return 0.0
    seconds = int(clock[2]) * 3600.0 + int(clock[3]) * 60
    return seconds if clock[1] == "+" else -seconds
