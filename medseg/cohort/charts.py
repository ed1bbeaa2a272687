"""Small drawings for a page, as SVG in its text: how volumes lie, and how one changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from medseg.cohort.summary import APART, Spread

_WIDTH, _HEIGHT, _EDGE = 320, 96, 8
_BINS: Final = 24


def histogram(name: str, values: Sequence[float], spread: Spread) -> str:
    """How often which volume is found; the median as a line, the middle half as a band, outliers in their colour."""
    least, most = spread.least, spread.most
    width = (most - least) / _BINS or 1.0
    counts, apart = [0] * _BINS, [0] * _BINS
    for value in values:
        place = min(int((value - least) / width), _BINS - 1)
        counts[place] += 1
        apart[place] += abs(spread.score(value)) > APART
    floor, room = _HEIGHT - 20, _HEIGHT - 28
    step = (_WIDTH - 2 * _EDGE) / _BINS

    def x(value: float) -> float:
        return _EDGE + (value - least) / (width * _BINS) * (_WIDTH - 2 * _EDGE)

    low, median, high = spread.quartiles
    parts = [_bar("band", x(low), 4, max(x(high) - x(low), 1), floor - 4)]
    for place, (count, out) in enumerate(zip(counts, apart, strict=True)):
        for kind, part, under in (("bar", count - out, 0), ("apart", out, count - out)):
            if part:
                height = max(part / max(counts) * room, 2.0)
                top = floor - under / max(counts) * room - height
                parts.append(_bar(kind, _EDGE + place * step + 0.5, top, step - 1, height))
    parts.append(f'<line class="middle" x1="{x(median):.1f}" x2="{x(median):.1f}" y1="2" y2="{floor}"/>')
    parts.append(f'<line class="axis" x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text x="{_EDGE}" y="{_HEIGHT - 5}">{ml(least)}</text>')
    parts.append(f'<text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 5}" text-anchor="end">{ml(most)} ml</text>')
    sentence = (
        f"{name}: {spread.count} volumes from {ml(least)} to {ml(most)} ml, half of them {ml(low)} to {ml(high)} ml"
    )
    return _svg(sentence, _WIDTH, _HEIGHT, parts)


def course(name: str, days: Sequence[int], volumes: Sequence[float]) -> str:
    """A volume over time, from nothing up."""
    width, height = 140, 36
    most, last = max(*volumes, 1e-9), max(days[-1], 1)
    points = [
        (4 + day / last * (width - 8), height - 4 - volume / most * (height - 8))
        for day, volume in zip(days, volumes, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
    sentence = f"{name}: " + ", ".join(
        f"{ml(volume)} ml on day {day}" for day, volume in zip(days, volumes, strict=True)
    )
    return _svg(sentence, width, height, [f'<polyline class="line" points="{line}"/>', *dots])


def ml(volume: float) -> str:
    """A volume with three figures."""
    return f"{volume:.0f}" if volume >= 99.5 else f"{volume:.1f}" if volume >= 9.95 else f"{volume:.2f}"


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _svg(sentence: str, width: int, height: int, parts: Iterable[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(sentence)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">'
        f"{''.join(parts)}</svg>"
    )
