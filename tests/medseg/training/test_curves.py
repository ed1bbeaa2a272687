"""The drawing of a training: whole, of bounded size, and true to its numbers."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from medseg.training.curves import curves, running_means

SVG = "{http://www.w3.org/2000/svg}"


def lines(losses: list[float], rates: list[float]) -> list[list[tuple[float, ...]]]:
    """The points of each curve, in the picture."""
    root = ElementTree.fromstring(curves(losses, rates))
    return [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter(f"{SVG}polyline")
    ]


def test_a_loss_that_falls_is_drawn_falling() -> None:
    losses = [1 / (1 + n / 100) for n in range(1000)]
    raw, rate, mean = lines(losses, [0.01] * 1000)
    heights = [y for _, y in raw]
    assert heights == sorted(heights), "y runs down in a picture"
    assert len(raw) == len(mean) <= 400
    assert len({y for _, y in rate}) == 1
    assert (
        all(running >= now for (_, now), (_, running) in zip(raw, mean, strict=True) if now < 0) or mean[-1] < raw[-1]
    )
    root = ElementTree.fromstring(curves(losses, [0.01] * 1000))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"0", "500", "1000", "1.00", "learning rate, at most 0.01"} <= set(texts)


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [math.nan, 0.4, math.inf, 0.2]])
def test_odd_losses_are_drawn(losses: list[float]) -> None:
    for line in lines(losses, [0.0] * len(losses)):
        assert all(math.isfinite(number) for point in line for number in point)


def test_a_running_mean_starts_at_the_first() -> None:
    assert running_means([2.0, 1.0]) == [2.0, pytest.approx(1.98)]
    assert running_means([]) == []
