"""How a training went, as a drawing: the loss of its steps, their running mean, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

LOSS_MEMORY: Final = 0.98  # of the running mean, per step
_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 360, 56, 20, 34, 40
_POINTS: Final = 400  # of a line, at most
_SHARES: Final = (0, 0.25, 0.5, 0.75, 1)  # of both axes, where there is a mark


def blend(mean: float, value: float) -> float:
    """A running mean that starts at the first value."""
    return value if math.isnan(mean) else LOSS_MEMORY * mean + (1 - LOSS_MEMORY) * value


def running_means(losses: Sequence[float]) -> list[float]:
    """What `blend` makes of them, step after step."""
    return list(accumulate(losses, blend))


def curves(losses: Sequence[float], rates: Sequence[float]) -> str:
    """An SVG. losses, rates: of each step; the loss from 0 to its greatest, the rate to the scale's full height."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    steps, most, rate = len(losses), max(finite, default=0.0) or 1.0, max(rates, default=0.0) or 1.0
    drawn = [
        ("#9ab", 1, "", "loss of a step", _line(losses, most)),
        ("#b60", 1, ' stroke-dasharray="5 4"', f"learning rate, at most {rate:.3g}", _line(rates, rate)),
        ("#036", 2, "", "loss, running mean", _line(running_means(losses), most)),
    ]
    box, grey = f'viewBox="0 0 {_WIDE} {_HIGH}"', "#e4e4e4"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="#fff"/>',
        *(f'<path d="M{_LEFT} {_y(share):.1f}H{_WIDE - _RIGHT}" stroke="{grey}"/>' for share in _SHARES),
        *(_text(_x(share), _HIGH - _BOTTOM + 18, "middle", f"{share * steps:.0f}") for share in _SHARES),
        *(_text(_LEFT - 8, _y(share) + 4, "end", f"{share * most:.2f}") for share in _SHARES),
        _text(_x(0.5), _HIGH - 6, "middle", "steps"),
    ]
    for n, (colour, width, dashes, name, line) in enumerate(drawn):
        x = _LEFT + 235 * n
        parts.append(f'<path d="M{x} 16h22" stroke="{colour}" stroke-width="{width}"{dashes}/>')
        parts.append(_text(x + 28, 20, "start", name))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(values: Sequence[float], most: float) -> str:
    """Points of a curve, each the mean of neighbouring steps where there are many; what is not finite is left out."""
    each = max(1, math.ceil(len(values) / _POINTS))
    points = []
    for first in range(0, len(values), each):
        some = [value for value in values[first : first + each] if math.isfinite(value)]
        if some:
            share = (first + len(values[first : first + each]) / 2) / len(values)
            points.append(f"{_x(share):.1f},{_y(sum(some) / len(some) / most):.1f}")
    return " ".join(points)


def _x(share: float) -> float:
    return _LEFT + share * (_WIDE - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _TOP + (1 - share) * (_HIGH - _TOP - _BOTTOM)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#333">{text}</text>'
