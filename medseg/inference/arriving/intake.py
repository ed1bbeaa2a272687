"""Slices on their way in.

ArrivedSlices   what a source has given so far, in whatever order
start           an axis through the first slices: where they lie, and which end the others come at
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from medseg.bundle.recipe import Recipe
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Slice
from medseg.dicom.series import SliceSource
from medseg.inference.arriving.axis import MANY, SliceAxis, axis_through, plan
from medseg.inference.arriving.decoding import Decoder

_FEWEST: Final = 3
_AGAIN: Final = 1.25  # more slices than at the last try to lay a track
_IN_ORDER: Final = 0.9  # correlation of the order of arrival with the order along the track


class StreamInvalid(Exception):
    """Slices do not lie as the first of them did; what was computed is void."""


class ArrivedSlices:
    """What a source has given: `slices` as they came, and whether they have `ended`.

    told: called with the number of slices after each.
    """

    def __init__(self, source: SliceSource, told: Callable[[int], None]) -> None:
        self._source, self._told = iter(source), told
        self._by_identity: dict[object, Slice] = {}
        self.ended = False

    @property
    def slices(self) -> list[Slice]:
        return list(self._by_identity.values())

    def __len__(self) -> int:
        return len(self._by_identity)

    def pull(self) -> Slice | None:
        """The next slice; None where there is none at the moment, or no more (`ended`)."""
        try:
            one = next(self._source)
        except StopIteration:
            self.ended = True
            return None
        if one is not None:
            identity = id(one) if one.instance is None else (one.instance.sop_instance_uid, one.frame)
            self._by_identity[identity] = one
        self._told(len(self))
        return one


def start(
    intake: ArrivedSlices, source: SliceSource, recipe: Recipe, decoder: Decoder, *, assume_frame: bool
) -> SliceAxis | str | None:
    """Take slices until a first row of windows may run, and lay a track through them.

    Where they follow no track, all are taken, and the answer is why; None where the series ended before its first row.
    """
    why: str | None = None
    enough = float(_FEWEST)
    while not intake.ended:
        one = intake.pull()
        if one is None:
            continue
        decoder.keep(one)
        if len(intake) < enough:
            continue
        enough = _AGAIN * len(intake)
        found = _track(intake, source, recipe, assume_frame=assume_frame)
        if isinstance(found, str):
            why = found
            continue
        ahead = plan(found, found.count or MANY, recipe)
        why, enough = None, ahead.needed(ahead.layout.extent[0])
        if enough <= len(found.slices):
            return found
    return why


def _track(intake: ArrivedSlices, source: SliceSource, recipe: Recipe, *, assume_frame: bool) -> SliceAxis | str:
    slices = intake.slices
    verdict = classify(source.series, slices, assume_frame_of_reference=assume_frame)
    if len(verdict.stacks) != 1 or verdict.refusals:
        return "slices came in no order, or do not form one volume"
    track = axis_through(verdict.stacks[0], recipe)
    if isinstance(track, SliceAxis):
        came = {id(one): number for number, one in enumerate(slices)}
        order = np.array([came[id(one)] for one in track.slices], dtype=float)
        alike = np.corrcoef(order, np.arange(len(order)))[0, 1]
        if alike < -_IN_ORDER:
            if source.expected is None:
                return "slices came from the end where the last windows lie, and their number was not known"
            return track.reversed(max(source.expected, len(slices)))
        if alike < _IN_ORDER:
            return "slices came in no order"
    return track
