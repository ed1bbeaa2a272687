"""The one rule by which slices belong together (docs/geometry.md), applied.

Slices of one volume show the same, lie at one place each, evenly along a line, and fill it: where sets of slices lie
between each other, SliceThickness says whether they are packages of one volume or volumes.

    at one position twice?    must come apart; by what they say of themselves, else refused
    differ in what they show, and lie between each other?                       come apart
    gathered in turns that lie between each other, each even on its own?        packages, volumes, or refused
    evenly spaced?            one missing slice is bridged, a change of spacing splits, else refused

A way to come apart counts where it leaves volumes and no remainder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg.dicom.ordered import Ordered, Places
from medseg.dicom.phases import (
    Column,
    Part,
    by_rank,
    by_value,
    called_by_turn,
    columns,
    complete,
    joined,
    lie_between,
    numbered,
    once,
    turns,
)
from medseg.dicom.reason import Reason, Refusal
from medseg.dicom.series import Finding
from medseg.dicom.spacing import Grid, base_step, length, listed, shared_positions, split_at_changes
from medseg.dicom.traits import STORING, Kind

_DEEPEST = 4
_MOST_SETS = 6
_NO_CHANCE = 6  # slices in an order that means nothing seldom make two such turns: once in 100,000
_BY_NUMBER = Finding(
    "numbered_volumes", "volumes were told apart by InstanceNumber alone: they are numbered one after the other"
)


@dataclass(frozen=True, eq=False)
class Volume:
    """Slices on a grid.

    apart_by: by which attributes they came apart from others ("EchoTime=10"). part: which part of them this is.
    """

    ordered: Ordered
    grid: Grid
    apart_by: str = ""
    part: str = ""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class Parted:
    """What slices came apart into."""

    volumes: tuple[Volume, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing was left over but slices that are too few for a volume."""
        return bool(self.volumes) and all(one.reason is Reason.TOO_FEW_SLICES for one in self.refusals)


def arrange(ordered: Ordered, min_slices: int, apart_by: str = "", depth: int = 0) -> Parted:
    """Volumes of slices that share what a volume shares; see the module. apart_by: what is known to set them apart."""
    if len(ordered) < min_slices:
        named = f" ({apart_by})" if apart_by else ""
        detail = f"{len(ordered)} slices{named}: expected at least {min_slices}"
        return _refused(ordered, Reason.TOO_FEW_SLICES, detail)
    if len(ordered) == 1:
        grid = Grid(np.zeros(1), ordered.stated("SliceThickness") or 1.0)
        return Parted((Volume(ordered, grid, apart_by),))
    if shared_positions(ordered.heights_mm).size:
        outcome = next(_apart(ordered, min_slices, depth), None) or _duplicates(ordered)
    else:
        outcome = next(_lying_between(ordered, min_slices, depth), None) or _one(ordered, min_slices)
    named_volumes = (
        replace(volume, apart_by=", ".join(text for text in (apart_by, volume.apart_by) if text))
        for volume in outcome.volumes
    )
    return replace(outcome, volumes=tuple(named_volumes))


def _parted(ordered: Ordered, parts: Sequence[Part], min_slices: int, depth: int, *findings: Finding) -> Parted:
    outcomes = [arrange(ordered.part(part.places), min_slices, part.called, depth + 1) for part in parts]
    volumes = (replace(one, findings=(*findings, *one.findings)) for outcome in outcomes for one in outcome.volumes)
    return Parted(tuple(volumes), tuple(refusal for outcome in outcomes for refusal in outcome.refusals))


def _refused(ordered: Ordered, reason: Reason, detail: str) -> Parted:
    return Parted((), (Refusal(reason, detail, len(ordered)),))


# --- several slices at one position ------------------------------------------------------------------------------


def _apart(ordered: Ordered, min_slices: int, depth: int) -> Iterator[Parted]:
    """Ways in which each position has one slice, the surest first."""
    positions = ordered.positions()
    count, most = int(positions[-1]) + 1, len(ordered) // min_slices
    if count < min_slices:
        detail = f"{len(ordered)} slices at {count} positions: expected at least {min_slices} positions"
        yield _refused(ordered, Reason.TOO_FEW_SLICES, detail)
    differing = [column for column in columns(ordered.slices) if _differs_within(column, positions)]
    showing = [column for column in differing if column.shows]
    gathered = [column for column in differing if not column.shows]
    valued = [column for column in gathered if column.times is None and column.count <= most]
    for among in (showing, [*showing, *valued]):
        parts = complete(positions, among)
        if parts is not None:
            yield _parted(ordered, parts, min_slices, depth)
    for column in showing:
        if column.count <= most and depth < _DEEPEST:
            parted = _parted(ordered, by_value([column]), min_slices, depth)
            if parted.clean:
                yield parted
    turned = [parts for column in valued if (parts := _by_turns(ordered, column)) is not None]
    for parts in turned:
        parted = _parted(ordered, parts, min_slices, depth)
        if parted.clean:
            yield parted
    for column in gathered:
        parts = by_rank(positions, column, whole=column.name in STORING)
        if parts is not None:
            yield _parted(ordered, parts, min_slices, depth)
    for column in gathered:
        if column.kind is Kind.CLOCK and column.count <= most:
            parts = _by_turns(ordered, column)
            parted = _parted(ordered, parts or [], min_slices, depth)
            if parted.clean and _all_overlap(parts or []):
                yield parted
    yield from _by_number(ordered, positions, min_slices, depth)
    for parts in (once(positions, showing, most), *turned):
        if parts is not None:
            parted = _parted(ordered, parts, min_slices, depth)
            if parted.volumes:
                yield parted


def _differs_within(column: Column, positions: Places) -> bool:
    """Whether slices at one position have different values."""
    first = np.zeros(int(positions[-1]) + 1, dtype=np.intp)
    first[positions[::-1]] = column.codes[::-1]
    return bool((column.codes != first[positions]).any())


def _by_turns(ordered: Ordered, column: Column) -> list[Part] | None:
    cells = turns(column, ordered.heights_mm)
    volumes = joined(ordered, cells[0]) if cells else None
    return called_by_turn(column, volumes) if volumes is not None and len(volumes) > 1 else None


def _all_overlap(parts: Sequence[Part]) -> bool:
    """Whether none of the parts could be what another lacks."""
    return bool(max(part.places[0] for part in parts) < min(part.places[-1] for part in parts))


def _by_number(ordered: Ordered, positions: Places, min_slices: int, depth: int) -> Iterator[Parted]:
    """One volume numbered after the other."""
    column = numbered(ordered.slices)
    parts = None if column is None else by_rank(positions, column, whole=True)
    if parts is not None:
        yield _parted(ordered, parts, min_slices, depth, _BY_NUMBER)


def _duplicates(ordered: Ordered) -> Parted:
    heights = ordered.heights_mm
    return _refused(
        ordered,
        Reason.DUPLICATE_POSITIONS,
        f"several slices at {listed(shared_positions(heights), base_step(heights))} mm along the normal, and no "
        "attribute (time, echo, b-value, ...) tells them apart: expected one for each position",
    )


# --- one slice at each position ----------------------------------------------------------------------------------


def _lying_between(ordered: Ordered, min_slices: int, depth: int) -> Iterator[Parted]:
    """Ways in which sets of slices that lie between each other are volumes."""
    most = len(ordered) // min_slices
    every = columns(ordered.slices)
    even = isinstance(ordered.grid(), Grid)
    valued = [column for column in every if column.count <= most]
    for column in valued:
        parts = by_value([column])
        if column.shows and depth < _DEEPEST and _may_show(column, parts, ordered, min_slices, even=even):
            parted = _parted(ordered, parts, min_slices, depth)
            if parted.clean:
                yield parted
    finer = ordered.one_finer()
    if finer and even:
        return
    apart = finer is False or (finer is None and not even)
    by_number = numbered(ordered.slices)
    gathered = [column for column in every if not column.shows]
    for column in (*gathered, *([by_number] if by_number is not None else [])):
        for cells in turns(column, ordered.heights_mm):
            if not lie_between(cells):
                continue
            if apart:
                volumes = joined(ordered, cells) or []
                if not _even_volumes(ordered, volumes, min_slices, alike=column not in valued):
                    continue
                if column.name in STORING and column not in valued and min(map(len, volumes)) < _NO_CHANCE:
                    yield _ambiguous(ordered, column, volumes)
                else:
                    findings = [_BY_NUMBER] if column is by_number else []
                    yield _parted(ordered, called_by_turn(column, volumes), min_slices, depth, *findings)
            elif column in valued and _even_volumes(ordered, cells, min_slices, alike=True):
                yield _ambiguous(ordered, column, cells)
    for column in [] if even else valued if apart else [one for one in valued if one.shows]:
        parts = by_value([column]) if column.shows else _by_turns(ordered, column) or []
        if len(parts) > 1 and lie_between([one.places for one in parts]):
            parted = _parted(ordered, parts, min_slices, depth)
            if parted.volumes:
                yield parted


def _may_show(column: Column, parts: Sequence[Part], ordered: Ordered, min_slices: int, *, even: bool) -> bool:
    """Whether slices that show different things are to come apart: lying between each other they are different volumes;
    elsewhere only where no volume changes so along its way. A few slices do not make a gap in others."""
    few = [part for part in parts if len(part.places) < min_slices]
    if few and (column.kind is not Kind.IS or len(few) == len(parts)):
        return False
    if few and even and not all(_gapless(ordered.part(part.places)) for part in parts if part not in few):
        return False
    return column.kind is Kind.IS or lie_between([part.places for part in parts])


def _gapless(ordered: Ordered) -> bool:
    grid = ordered.grid()
    return isinstance(grid, Grid) and round(float(grid.coordinates[-1])) == len(ordered) - 1


def _even_volumes(ordered: Ordered, volumes: Sequence[Places], min_slices: int, *, alike: bool) -> bool:
    """Whether each of several is a volume by itself; alike: of one spacing."""
    if len(volumes) < 2 or min(map(len, volumes)) < min_slices:
        return False
    each = [ordered.part(places) for places in volumes]
    if not all(one.even() for one in each):
        return False
    steps = [base_step(one.heights_mm) for one in each]
    return not alike or max(steps) <= 1.02 * min(steps)


def _ambiguous(ordered: Ordered, column: Column, cells: Sequence[Places]) -> Parted:
    own = base_step(ordered.part(cells[0]).heights_mm)
    return _refused(
        ordered,
        Reason.INTERLEAVED_VOLUMES,
        f"{len(cells)} sets of slices, told apart by {column.name}, lie between each other, and SliceThickness and "
        f"SpacingBetweenSlices leave open whether they are one volume, {length(base_step(ordered.heights_mm))} mm "
        f"apart, or {len(cells)}, {length(own)} mm apart: send each as a series of its own",
    )


def _one(ordered: Ordered, min_slices: int) -> Parted:
    """One volume, or where its spacing changes several; or what is wrong."""
    off_line = ordered.off_line()
    if off_line is not None:
        return _refused(ordered, *off_line)
    grid = ordered.grid()
    if isinstance(grid, Grid):
        return Parted((Volume(ordered, grid),))
    reason, detail = grid
    heights = ordered.heights_mm
    sets = _sets_between(ordered, min_slices)
    if sets:
        detail = f"{sets} sets of slices lie between each other, and no attribute tells them apart: {detail}"
        return _refused(ordered, Reason.INTERLEAVED_VOLUMES, detail)
    jumps = reason is Reason.IRREGULAR_SPACING
    parts = split_at_changes(heights, min_slices, jumps=jumps, written=ordered.written_mm)
    if parts is None:
        return _refused(ordered, reason, detail)
    outcomes = [_of_changes(ordered.part(np.arange(first, end)), min_slices) for first, end in parts]
    volumes = (volume for outcome in outcomes for volume in outcome.volumes)
    return Parted(tuple(volumes), tuple(refusal for outcome in outcomes for refusal in outcome.refusals))


def _of_changes(ordered: Ordered, min_slices: int) -> Parted:
    heights, step = ordered.heights_mm, base_step(ordered.heights_mm)
    part = f"slices {listed(heights[[0, -1]], step, ' to ')} mm"
    detail = f"the spacing of the series changes: {part} along the normal, {length(step)} mm apart, form a stack"
    outcome = arrange(ordered, min_slices)
    finding = Finding("spacing_change", detail)
    volumes = (
        replace(one, part=", ".join(text for text in (part, one.part) if text), findings=(finding, *one.findings))
        for one in outcome.volumes
    )
    return replace(outcome, volumes=tuple(volumes))


def _sets_between(ordered: Ordered, min_slices: int) -> int:
    """How many even sets of slices take turns in an uneven whole; 0 for none."""
    for count in range(2, _MOST_SETS + 1):
        sets = [np.arange(first, len(ordered), count) for first in range(count)]
        if len(sets[-1]) >= max(min_slices, 3) and all(_gapless(ordered.part(places)) for places in sets):
            return count
    return 0
