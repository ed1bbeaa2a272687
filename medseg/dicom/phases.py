"""Slices that share positions: the echoes, time points, b-values ... of one series."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Slice
from medseg.dicom.slices import PHASE_KEYWORDS

#: Clock times tell slices apart whatever the reason, so what names the reason is asked first.
_TIMES = ("TriggerTime", "NominalCardiacTriggerDelayTime", "AcquisitionTime", "FrameAcquisitionDateTime", "ContentTime")
_MOST_ATTRIBUTES = 3

_Parts = list[tuple[str, list[int]]]


def split_phases(
    ordered: Sequence[Slice], positions: NDArray[np.intp], min_slices: int
) -> list[tuple[str, list[Slice]]] | None:
    """Split slices by the fewest attributes that leave each position once; None where none does.

    An attribute that differs in every slice (a content time) tells all apart and means nothing, so phases hold
    `min_slices` on average. Times that grow through the phases of one position, each position at its own times, are
    taken by their rank.

    Returns:
        For each phase what it is called ("EchoTime=20") and its slices.
    """
    values: dict[str, list[str]] = {}
    for keyword in PHASE_KEYWORDS:
        column = [one.phase.get(keyword, "") for one in ordered]
        if _differs_within(positions, column):
            values[keyword] = column
    telling = {keyword: column for keyword, column in values.items() if keyword not in _TIMES}
    most = len(ordered) // min_slices
    parts = _by_values(positions, telling, most) or _by_rank(positions, values) or _by_values(positions, values, most)
    if parts is None:
        return None
    return [(said, [ordered[place] for place in members]) for said, members in parts]


def _differs_within(positions: NDArray[np.intp], column: Sequence[str]) -> bool:
    """Whether slices at one position have different values."""
    seen: dict[int, str] = {}
    return any(seen.setdefault(int(place), value) != value for place, value in zip(positions, column, strict=True))


def _by_values(positions: NDArray[np.intp], values: dict[str, list[str]], most: int) -> _Parts | None:
    """Phases by value; of as few attributes as possible, then as few phases as possible."""
    for size in range(1, _MOST_ATTRIBUTES + 1):
        partitions = [_partition(values, keywords) for keywords in combinations(values, size)]
        apart = [parts for parts in partitions if len(parts) <= most and _once(positions, parts)]
        if apart:
            return min(apart, key=len)
    return None


def _partition(values: dict[str, list[str]], keywords: tuple[str, ...]) -> _Parts:
    parts: dict[str, list[int]] = {}
    for place, key in enumerate(zip(*(values[keyword] for keyword in keywords), strict=True)):
        said = ", ".join(f"{keyword}={value or 'absent'}" for keyword, value in zip(keywords, key, strict=True))
        parts.setdefault(said, []).append(place)
    return list(parts.items())


def _once(positions: NDArray[np.intp], parts: _Parts) -> bool:
    return all(len(np.unique(positions[members])) == len(members) for _, members in parts)


def _by_rank(positions: NDArray[np.intp], values: dict[str, list[str]]) -> _Parts | None:
    """Phases by the rank of a time at each position, where every position has the same number of distinct times."""
    counts = np.bincount(positions)
    if counts.min() != counts.max():
        return None
    phases = int(counts[0])
    for keyword in _TIMES:
        column = values.get(keyword)
        if column is None or "" in column:
            continue
        places = sorted(range(len(positions)), key=lambda place: (positions[place], natural(column[place])))
        table = np.array(places).reshape(len(counts), phases)
        if all(len({column[place] for place in row}) == phases for row in table):
            return [(f"{keyword} {rank + 1} of {phases}", table[:, rank].tolist()) for rank in range(phases)]
    return None


def natural(text: str) -> tuple[tuple[bool, float, str], ...]:
    """A key that puts EchoTime=9 before EchoTime=10."""
    return tuple(_part(part) for part in text.replace("=", " ").replace("\\", " ").replace(",", " ").split())


def _part(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
