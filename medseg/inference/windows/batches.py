"""Which windows a network is given together, in the order in which their first ones are stitched.

windows of a row             a  b  c  d  e  f  g  h
blank: of one value each           0  0     7
batches of three at most      [a b] [c d] [e g h] [f]      of c and d one is computed, for both
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from medseg.inference.windows.layout import Triple


@dataclass(frozen=True)
class Batch:
    """Windows that run together.

    places: where they begin. filled: up to a whole batch, with whatever windows were there before. bits: of every voxel
    of theirs, where all are the same; then one of them runs for all.
    """

    places: tuple[Triple, ...]
    filled: bool = False
    bits: int | None = None


def batches(
    places: Sequence[Triple],
    blank: Mapping[Triple, int],
    size: Callable[[int], int],
    *,
    exact: bool = False,
    alone: Triple | None = None,
) -> Iterator[Batch]:
    """The windows at `places` in batches, each once; a batch is asked for when the first of its windows is due.

    blank: the bits of those whose voxels are all the same. size: how many of so many that are left run together, asked
    batch by batch. exact: as MONAI runs them; it fills batches, and runs the window at `alone` by itself.
    """
    runs = groupby((place for place in places if place in blank and place != alone), key=blank.__getitem__)
    alike = deque(Batch(tuple(run), exact, bits) for bits, run in runs)
    others = deque(place for place in places if place not in blank and place != alone)
    given: set[Triple] = set()
    for place in places:
        if place in given:
            continue
        if place == alone:
            batch = Batch((place,))
        elif place in blank:
            batch = alike.popleft()
        else:
            batch = Batch(tuple(others.popleft() for _ in range(size(len(others)))), exact)
        given.update(batch.places)
        yield batch


def next_size(left: int, most: int, *, exact: bool = False) -> int:
    """Windows of the next batch, of so many that are left. As even as can be, since a batch of one is slow, but in
    pairs, of which no back-end has one to spare. exact: as full as can be, as MONAI's are."""
    many = -(-left // most)
    if exact or many == 1:
        return min(most, left)
    pair = 1 if most % 2 else 2
    return round(left / many / pair) * pair
