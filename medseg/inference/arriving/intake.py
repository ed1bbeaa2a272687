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
from medseg.inference.arriving.axis import MANY, SliceAxis, axis_through, plan, waits_for_last
from medseg.inference.arriving.decoding import Decoder

_FEWEST: Final = 3
_AGAIN: Final = 1.25  # more slices than at the last try to find an axis
_IN_ORDER: Final = 0.9  # correlation of the order of arrival with the order along the axis


class StreamInvalid(Exception):
    """Slices do not lie as the first of them did; what was computed is void."""


class ArrivedSlices:
    """What a source has given: `slices` as they came, and whether they have `ended`.

    on_slice: called with the number of slices after each.
    """

    def __init__(self, source: SliceSource, on_slice: Callable[[int], None]) -> None:
        self._source, self._on_slice = iter(source), on_slice
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
            slice_ = next(self._source)
        except StopIteration:
            self.ended = True
            return None
        if slice_ is not None:
            identity = id(slice_) if slice_.instance is None else (slice_.instance.sop_instance_uid, slice_.frame)
            self._by_identity[identity] = slice_
        self._on_slice(len(self))
        return slice_


def start(
    intake: ArrivedSlices, source: SliceSource, recipe: Recipe, decoder: Decoder, *, assume_frame: bool
) -> SliceAxis | str | None:
    """Take slices until a first row of windows may run, and put an axis through them.

    Where they follow none, all are taken, and the answer is why; None where the series ended before its first row.
    """
    why: str | None = None
    enough = float(_FEWEST)
    while not intake.ended:
        slice_ = intake.pull()
        if slice_ is None:
            continue
        decoder.keep(slice_)
        if len(intake) < enough:
            continue
        enough = _AGAIN * len(intake)
        axis = _axis(intake, source, recipe, assume_frame=assume_frame)
        if isinstance(axis, str):
            why = axis
            continue
        ahead = plan(axis, axis.count or MANY, recipe)
        why, enough = None, ahead.needed(ahead.layout.extent[0])
        if enough <= len(axis.slices):
            return axis
    return why


def _axis(intake: ArrivedSlices, source: SliceSource, recipe: Recipe, *, assume_frame: bool) -> SliceAxis | str:
    slices = intake.slices
    verdict = classify(source.series, slices, assume_frame_of_reference=assume_frame)
    if len(verdict.stacks) != 1 or verdict.refusals:
        return "slices came in no order, or do not form one volume"
    (stack,) = verdict.stacks
    axis = waits_for_last(stack, recipe) or axis_through(stack, recipe)
    if isinstance(axis, SliceAxis):
        came = {id(slice_): number for number, slice_ in enumerate(slices)}
        order = np.array([came[id(slice_)] for slice_ in axis.slices], dtype=float)
        alike = np.corrcoef(order, np.arange(len(order)))[0, 1]
        if alike < -_IN_ORDER:
            if source.expected is None:
                return "slices came from the end where the last windows lie, and their number was not known"
            return axis.reversed(max(source.expected, len(slices)))
        if alike < _IN_ORDER:
            return "slices came in no order"
    return axis
