"""Planes of a volume to other planes along the first axis, as they pass: what scipy's zoom does of the whole volume.

    order 1     each new plane lies between two old ones
    order 3     each lies between four coefficients of a cubic spline; those come of all planes, and of a far one by
                0.27 to the power of its distance: planes wait for the `_HALO` next ones, and the error is a double's

Beyond its ends a volume goes on as its first and its last plane (mode "nearest").
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

import numpy as np

from medseg.inference.nnunet.resample import Array, centres

T = TypeVar("T")
_POLE: Final = math.sqrt(3) - 2
_GAIN: Final = (1 - _POLE) * (1 - 1 / _POLE)
_HALO: Final = 28  # planes: 0.27 to that power is less than a double's last bit
_AT_ONCE: Final = 28  # planes whose coefficients are made of the same planes ahead
_BEYOND: Final = 2  # coefficients that are needed on either side of a volume


class Held(Generic[T]):
    """What an iterator gives, by number, as long as numbers grow. first: the number of what it gives first."""

    def __init__(self, planes: Iterable[T], first: int = 0) -> None:
        self._planes, self._first = iter(planes), first
        self._held: deque[T] = deque()

    def between(self, lower: int, upper: int) -> list[T]:
        """Planes lower..upper; those before `lower` go."""
        while self._first + len(self._held) <= upper:
            self._held.append(next(self._planes))
        while self._first < lower:
            self._held.popleft()
            self._first += 1
        return [self._held[number - self._first] for number in range(lower, upper + 1)]

    def ends(self, lower: int, upper: int) -> tuple[T, T]:
        """Planes `lower` and `upper`, which may be the same; those before go."""
        planes = self.between(lower, upper)
        return planes[0], planes[-1]


def along(planes: Iterable[Array], count: int, new: int, order: int) -> Iterator[Array]:
    """`new` planes in place of `count`, which are in double. order: 1 or 3."""
    if new == count:
        return iter(planes)
    return _linear(planes, count, new) if order == 1 else _cubic(planes, count, new)


def _linear(planes: Iterable[Array], count: int, new: int) -> Iterator[Array]:
    held = Held(planes)
    for place in np.clip(centres(count, new), 0, count - 1):
        lower = math.floor(place)
        low, *high = held.between(lower, min(lower + 1, count - 1))
        share = place - lower
        yield low * (1 - share) + high[0] * share if high else low


def _cubic(planes: Iterable[Array], count: int, new: int) -> Iterator[Array]:
    held = Held(_coefficients(planes), -_BEYOND)
    for place in centres(count, new):
        below = math.floor(place)
        parts = zip(held.between(below - 1, below + 2), _weights(place - below), strict=True)
        plane, weight = next(parts)
        made = plane * weight
        for plane, weight in parts:
            made += plane * weight
        yield made


def _weights(share: float) -> tuple[float, float, float, float]:
    """Of the four coefficients around a place that is `share` behind the second."""
    rest = 1 - share
    first = rest**3 / 6
    second = (share * share * (share - 2) * 3 + 4) / 6
    third = (rest * rest * (rest - 2) * 3 + 4) / 6
    return first, second, third, 1 - first - second - third


def _coefficients(planes: Iterable[Array]) -> Iterator[Array]:
    """Of the cubic spline through planes: from `_BEYOND` before the first to as many after the last."""
    waiting: deque[Array] = deque()
    for plane in _forwards(planes):
        waiting.append(plane)
        if len(waiting) == _AT_ONCE + _HALO:
            yield from _backwards(waiting, _AT_ONCE)
    while len(waiting) > _HALO:
        yield from _backwards(waiting, min(_AT_ONCE, len(waiting) - _HALO))


def _forwards(planes: Iterable[Array]) -> Iterator[Array]:
    """The recursion from the first plane on; `_BEYOND` before it, and as many and `_HALO` after the last."""
    planes = iter(planes)
    plane = next(planes)
    state = plane * (_GAIN / (1 - _POLE))  # where it comes to where the first plane has always been there
    for _ in range(_BEYOND):
        yield state
    for plane in chain([plane], planes):  # noqa: B020 - the last one is needed afterwards
        state = plane * _GAIN + state * _POLE
        yield state
    for _ in range(_BEYOND + _HALO):
        state = plane * _GAIN + state * _POLE
        yield state


def _backwards(waiting: deque[Array], count: int) -> list[Array]:
    """The recursion from the last of the waiting planes back: coefficients of the first `count`, which go."""
    state = waiting[-1] * (_POLE / (_POLE - 1))
    made: list[Array] = []
    for number in range(len(waiting) - 2, -1, -1):
        state = (state - waiting[number]) * _POLE
        if number < count:
            made.append(state)
    for _ in range(count):
        waiting.popleft()
    return made[::-1]
