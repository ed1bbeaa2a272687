"""Charts for the documents, as SVG written by hand: lines over a number, and bars beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, TOP, BOTTOM = 64, 34, 46
COLOURS = ("#2266bb", "#cc5522", "#338844", "#885599", "#997700", "#666666")


def lines(title: str, x_name: str, y_name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One line for each series of (x, y); both axes begin at 0."""
    right = WIDTH - 190
    x_top, y_top = (_round_up(max(point[axis] for points in series.values() for point in points)) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * x / x_top, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / y_top

    drawn = []
    for number, (name, points) in enumerate(series.items()):
        colour, key_y = COLOURS[number % len(COLOURS)], TOP + 18 * number + 8
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in (at(*p) for p in points)]
        drawn.append(f'<rect x="{right + 14}" y="{key_y - 8}" width="10" height="10" fill="{colour}"/>')
        drawn.append(_text(right + 30, key_y + 1, name))
    marks = [_text(at(x_top * n / 4, 0)[0], HEIGHT - BOTTOM + 16, _number(x_top * n / 4), "middle") for n in range(5)]
    return _chart(title, x_name, y_name, y_top, right, [*marks, *drawn])


def bars(title: str, y_name: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """A group of bars for each name, one bar for each of its values, which say what they are worth."""
    right = WIDTH - 10
    y_top = _round_up(max(value for group in groups.values() for value in group.values()))
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    step = (right - LEFT) / len(groups)
    wide = step * 0.8 / len(names)
    drawn = []
    for place, (group, values) in enumerate(groups.items()):
        begin = LEFT + place * step + step * 0.1
        drawn.append(_text(begin + step * 0.4, HEIGHT - BOTTOM + 16, group, "middle"))
        for name, value in values.items():
            number = names.index(name)
            tall = (HEIGHT - TOP - BOTTOM) * value / y_top
            x, y = begin + number * wide, HEIGHT - BOTTOM - tall
            fill = COLOURS[number % len(COLOURS)]
            drawn.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}" fill="{fill}"/>')
            drawn.append(_text(x + wide / 2 - 1, y - 4, _number(value), "middle"))
    for number, name in enumerate(names):
        x = LEFT + number * (right - LEFT) / len(names)
        drawn.append(
            f'<rect x="{x}" y="{HEIGHT - 18}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        drawn.append(_text(x + 14, HEIGHT - 9, name))
    return _chart(title, "", y_name, y_top, right, drawn)


def _chart(title: str, x_name: str, y_name: str, y_top: float, right: float, drawn: Sequence[str]) -> str:
    floor = HEIGHT - BOTTOM
    grid = []
    for n in range(5):
        y = floor - (floor - TOP) * n / 4
        grid.append(f'<line x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="#dddddd"/>')
        grid.append(_text(LEFT - 6, y + 4, _number(y_top * n / 4), "end"))
    middle = (TOP + floor) / 2
    upright = f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    )
    name = f'<text x="{LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>'
    along = _text((LEFT + right) / 2, HEIGHT - 12, x_name, "middle") if x_name else ""
    return "\n".join([head, name, *grid, upright, along, *drawn, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _round_up(value: float) -> float:
    """The next number of the form 1, 2, 4, 5, 8 times a power of ten."""
    power = 10 ** (len(str(int(value))) - 1)
    return float(next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value))
