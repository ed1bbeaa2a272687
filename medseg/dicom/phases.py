"""How slices of one series may come apart: by what they say of themselves, in parts that a volume could be made of.

Here are the ways only; which of them holds is for `volumes` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Slice, Vector
from medseg.dicom.moments import moments
from medseg.dicom.ordered import Ordered, Places
from medseg.dicom.spacing import base_step
from medseg.dicom.traits import EVIDENCE, Kind, kind_of, rank_of

_MOST_COLUMNS = 20
_MOST_ATTRIBUTES = 3
_MOST_TRIES = 2000
_UNNAMED = ("ProtocolName", "ReceiveCoilName", "ContrastBolusAgent")  # free text may name a patient

_Numbers = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Column:
    """One trait of all slices.

    codes: (N,) the number of each slice's value, in the order of values. shown: what each value is called.
    times: (N,) where they are times.
    """

    name: str
    kind: Kind
    codes: _Numbers
    shown: tuple[str, ...]
    times: Vector | None = None

    @property
    def count(self) -> int:
        return len(self.shown)

    @property
    def shows(self) -> bool:
        """Whether slices that differ here differ in what they show."""
        return self.kind in (Kind.SHOWS, Kind.IS)


@dataclass(frozen=True, eq=False)
class Part:
    """Slices that may be a volume, and what they are called among the others."""

    places: Places
    called: str


def columns(slices: Sequence[Slice]) -> list[Column]:
    """The traits in which slices differ, most telling first; of several that part them alike the first."""
    names = sorted({name for one in slices for name in one.phase}.difference(EVIDENCE), key=rank_of)
    alike: dict[bytes, Column] = {}
    for name in names:
        column = _column(name, [one.phase.get(name, "") for one in slices])
        if column is None or column.count < 2:
            continue
        key = _first_seen(column.codes).tobytes()
        known = alike.get(key)
        if known is None:
            alike[key] = column
        elif column.kind is Kind.IS or (column.shows and not known.shows):
            alike[key] = replace(known, kind=column.kind)
    return list(alike.values())[:_MOST_COLUMNS]


def numbered(slices: Sequence[Slice]) -> Column | None:
    """InstanceNumber, where every slice has one of its own."""
    column = _column("InstanceNumber", [one.phase.get("InstanceNumber", "") for one in slices])
    return column if column is not None and column.count == len(slices) and column.times is not None else None


def _column(name: str, texts: list[str]) -> Column | None:
    """None where times are missing or cannot be put in order."""
    kind = kind_of(name)
    if kind in (Kind.CLOCK, Kind.CYCLE) or name == "InstanceNumber":
        times = moments(texts)
        if times is None:
            return None
        ordered, codes = np.unique(times, return_inverse=True)
        shown = tuple(f"{rank} of {len(ordered)}" for rank in range(1, len(ordered) + 1))
        return Column(name, kind, codes.astype(np.intp), shown, times)
    same = {text: _canonical(text) for text in dict.fromkeys(texts)}
    first: dict[str, str] = {}
    for text, canonical in same.items():
        first.setdefault(canonical, text)
    ordered_values = sorted(first, key=natural)
    number = {canonical: place for place, canonical in enumerate(ordered_values)}
    codes = np.array([number[same[text]] for text in texts], dtype=np.intp)
    shown = tuple(
        f"{place} of {len(first)}" if name in _UNNAMED else first[canonical] or "absent"
        for place, canonical in enumerate(ordered_values, 1)
    )
    return Column(name, kind, codes, shown)


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    """The same for 10 and 10.0, and for numbers that differ by noise."""
    return "\\".join(_same_number(part) for part in text.split("\\"))


def _same_number(text: str) -> str:
    try:
        return f"{float(text) + 0.0:.5g}" if any(letter.isdigit() for letter in text) else text.strip().upper()
    except ValueError:
        return text.strip().upper()


def _first_seen(codes: _Numbers) -> _Numbers:
    """Codes renumbered by their first place, so that equal partitions are equal."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    renumbered: _Numbers = np.argsort(np.argsort(first))[inverse]
    return renumbered


# --- by value ----------------------------------------------------------------------------------------------------


def by_value(chosen: Sequence[Column]) -> list[Part]:
    """A part for each value, or combination of values, of some columns."""
    keys = chosen[0].codes
    for column in chosen[1:]:
        keys = keys * column.count + column.codes
    _, inverse = np.unique(keys, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    cuts = np.flatnonzero(np.diff(inverse[order])) + 1
    return [
        Part(places, ", ".join(_called(column, places[0]) for column in chosen)) for places in np.split(order, cuts)
    ]


def _called(column: Column, place: int) -> str:
    return f"{column.name}{_between(column)}{column.shown[column.codes[place]]}"


def _between(column: Column) -> str:
    return " " if column.times is not None or column.name in _UNNAMED else "="


def called_by_turn(column: Column, volumes: Sequence[Places]) -> list[Part]:
    """Volumes with a name each: by the values of a column, or where these are many by their turn."""
    numbers = [np.unique(column.codes[places]) for places in volumes]
    if column.times is None and all(len(some) < 3 for some in numbers):
        names = [_between(column) + " and ".join(column.shown[number] for number in some) for some in numbers]
    else:
        names = [f" {turn} of {len(volumes)}" for turn in range(1, len(volumes) + 1)]
    return [Part(places, column.name + text) for places, text in zip(volumes, names, strict=True)]


def complete(positions: _Numbers, among: Sequence[Column]) -> list[Part] | None:
    """Parts by the fewest columns, each of which has a slice at every position; None where there are none."""
    count = int(positions[-1]) + 1
    wanted = len(positions) // count
    if wanted * count != len(positions):
        return None
    for size in range(1, _MOST_ATTRIBUTES + 1):
        for chosen in combinations(among, size):
            parts = by_value(chosen)
            if len(parts) == wanted and all(_once(positions, part.places, count) for part in parts):
                return parts
    return None


def once(positions: _Numbers, among: Sequence[Column], most: int) -> list[Part] | None:
    """Parts by the fewest columns, each with at most one slice at a position."""
    for size in range(1, _MOST_ATTRIBUTES + 1):
        tried = (by_value(chosen) for chosen in combinations(among, size))
        apart = [parts for parts in tried if len(parts) <= most and all(_once(positions, p.places) for p in parts)]
        if apart:
            return min(apart, key=len)
    return None


def _once(positions: _Numbers, places: Places, count: int | None = None) -> bool:
    here = positions[places]
    return bool((np.diff(here) > 0).all()) and (count is None or len(here) == count)


# --- by turns ----------------------------------------------------------------------------------------------------


def turns(column: Column, heights: Vector) -> list[list[Places]]:
    """Slices turn by turn, as they may have been gathered: those of one value; or where each has its own, one way along
    the normal until it is left.

        0 2 4 6 1 3 5     one turn ends at 6
        0 2 4 5 3 1       one turn ends at 4 or at 5: both ways are given
    """
    if 2 * column.count <= len(column.codes) or (column.kind is Kind.GATHERED and column.times is None):
        return [[np.flatnonzero(column.codes == number) for number in range(column.count)]]
    order = np.lexsort((heights, column.codes))
    ways = np.sign(np.diff(heights[order]))
    turned = np.flatnonzero(ways[1:] * ways[:-1] < 0) + 1
    back: list[int] = []
    for place in turned.tolist():  # a step back turns twice: before it and after it
        if not back or place + 1 - back[-1] > 1:
            back.append(place + 1)
    ways_to_cut = [back] if back == turned.tolist() else [back, turned.tolist()]
    return [[np.sort(places) for places in np.split(order, cuts)] for cuts in ways_to_cut if cuts]


def lie_between(cells: Sequence[Places]) -> bool:
    """Whether slices of one cell lie between those of another."""
    owner = np.full(1 + max(int(cell.max()) for cell in cells), -1, dtype=np.intp)
    for number, cell in enumerate(cells):
        owner[cell] = number
    owner = owner[owner >= 0]
    return 1 + int(np.count_nonzero(np.diff(owner))) > len(cells)


def joined(ordered: Ordered, cells: Sequence[Places]) -> list[Places] | None:
    """Cells in their order, as many together as make up one volume: slabs that continue each other, packages of which
    one lies between the slices of the other. The same number for each volume where that is possible.

    None where it is not certain: a cell could as well be of the volume before or after, two volumes could be halves of
    one, or it takes too long to say.
    """
    positions = ordered.positions()
    bounds = _equal_runs(ordered, cells, _clash(positions, cells, 0)) or _longest_runs(ordered, cells, positions)
    if bounds is None:
        return None
    for begin, middle, end in zip(bounds, bounds[1:], bounds[2:], strict=False):
        before, after = cells[begin : middle - 1], cells[middle - 1 : end]
        if (
            before
            and _clash(positions, after, 0) == len(after)
            and all(_belong(ordered, run) for run in (before, after))
        ):
            return None
    volumes = [np.sort(np.concatenate(cells[begin:end])) for begin, end in pairwise(bounds)]
    return None if _halves(ordered, volumes) else volumes


def _halves(ordered: Ordered, volumes: Sequence[Places]) -> bool:
    """Whether of two volumes one begins where another ends, or lies between the slices of the next, which are
    thin enough for that."""
    heights = ordered.heights_mm
    ends = np.array([(heights[places[0]], heights[places[-1]]) for places in volumes])
    step = max(base_step(heights[places]) for places in volumes)
    gaps = ends[None, :, 0] - ends[:, None, 1]
    if ((gaps > 0) & (gaps < 2 * step)).any():
        return True
    positions = ordered.positions()
    for pair in pairwise(volumes):
        both = np.sort(np.concatenate(pair))
        if _once(positions, both) and lie_between(pair) and ordered.part(both).one_finer() is not False:
            return True
    return False


def _equal_runs(ordered: Ordered, cells: Sequence[Places], most: int) -> list[int] | None:
    """Bounds of runs of as many cells each, more than one, that are volumes."""
    total = len(cells)
    for size in range(min(most, total // 2), 1, -1):
        bounds = list(range(0, total + 1, size))
        if total % size == 0 and all(_belong(ordered, cells[begin:end]) for begin, end in pairwise(bounds)):
            return bounds
    return None


def _longest_runs(ordered: Ordered, cells: Sequence[Places], positions: _Numbers) -> list[int] | None:
    """Bounds of runs, each as long as it may be; None where that takes too long to say."""
    bounds, tries = [0], 0
    while bounds[-1] < len(cells):
        first = bounds[-1]
        after = first + 1
        for last in range(_clash(positions, cells, first), first + 1, -1):
            tries += 1
            if tries > _MOST_TRIES:
                return None
            if _belong(ordered, cells[first:last]):
                after = last
                break
        bounds.append(after)
    return bounds


def _clash(positions: _Numbers, cells: Sequence[Places], first: int) -> int:
    """The first cell after `first` that has a slice where there is one already; or how many cells there are."""
    taken: set[int] = set()
    for number in range(first, len(cells)):
        here = positions[cells[number]].tolist()
        if not taken.isdisjoint(here) or len(set(here)) < len(here):
            return number
        taken.update(here)
    return len(cells)


def _belong(ordered: Ordered, cells: Sequence[Places]) -> bool:
    if len(cells) == 1:
        return True
    whole = ordered.part(np.sort(np.concatenate(cells)))
    if not lie_between(cells):
        return whole.even()
    return not whole.too_dense() and whole.even() and whole.one_finer() is True


# --- by rank -----------------------------------------------------------------------------------------------------


def by_rank(positions: _Numbers, column: Column, *, whole: bool = False) -> list[Part] | None:
    """Parts by the rank of a number at each position, where every position has as many different ones.

    A clock must agree: all of one rank lie before the next, through all positions or through one block of them after
    the other (a package, a single position). The first image made at one place and the last at another are not of one
    volume only because of that. whole: there is one block.
    """
    counts = np.bincount(positions)
    ranks = int(counts[0])
    if counts.min() != counts.max():
        return None
    codes = column.codes
    order = np.lexsort((codes, positions))
    table = order.reshape(len(counts), ranks)
    if (np.diff(codes[table], axis=1) <= 0).any():
        return None
    rank = np.empty(len(codes), dtype=np.intp)
    rank[table] = np.arange(ranks)
    if column.kind is not Kind.CYCLE and not _in_blocks(positions, codes, rank, ranks, whole=whole):
        return None
    return [Part(np.sort(table[:, number]), f"{column.name} {number + 1} of {ranks}") for number in range(ranks)]


def _in_blocks(positions: _Numbers, codes: _Numbers, rank: _Numbers, ranks: int, *, whole: bool) -> bool:
    order = np.lexsort((rank, codes))
    size = len(positions) // ranks
    at = 0
    while at < len(order):
        block = int(np.argmax(rank[order[at:]] > 0))
        if block == 0 or (whole and block != size):
            return False
        members = set(positions[order[at : at + block]].tolist())
        for number in range(ranks):
            turn = order[at + number * block : at + (number + 1) * block]
            if len(turn) < block or (rank[turn] != number).any() or set(positions[turn].tolist()) != members:
                return False
        at += ranks * block
    return True


# --- words -------------------------------------------------------------------------------------------------------


def natural(text: str) -> tuple[tuple[bool, float, str], ...]:
    """A key that puts EchoTime=9 before EchoTime=10."""
    return tuple(_part(part) for part in text.replace("=", " ").replace("\\", " ").replace(",", " ").split())


def _part(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
