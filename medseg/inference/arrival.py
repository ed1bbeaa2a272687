"""Slices on their way in, and through a network's windows while more of them come.

    Intake    what a source has given so far, in whatever order
    start     a track through the first slices: where they lie, and which end the others come at
    Passage   slices of a track -> prepared slices -> rows of windows, each as soon as what it needs is there

Where a step needs the whole volume, slices are prepared up to that step while they come, and wait on disk (`gathered`).
Memory holds the prepared slices of one row and a few decoded ones ahead of it, for any number of slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.recipe import Recipe, needs_whole
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import SliceSource
from medseg.inference.decoding import AHEAD, Decoder
from medseg.inference.gathered import Gathered, scaled
from medseg.inference.resample import InPlane
from medseg.inference.restore import Back, so_far
from medseg.inference.streaming import Rows
from medseg.inference.track import MANY, Track, lay, plan
from medseg.inference.zeros import Sampler, Sampling
from medseg.progress import Stage, StageClock

_FEWEST: Final = 3
_AGAIN: Final = 1.25  # more slices than at the last try to lay a track
_IN_ORDER: Final = 0.9  # correlation of the order of arrival with the order along the track


class Contradicted(Exception):
    """Slices do not lie as the first of them did; what was computed is void."""


class Intake:
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
    intake: Intake, source: SliceSource, recipe: Recipe, decoder: Decoder, *, assume_frame: bool
) -> Track | str | None:
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
        why, enough = None, ahead.needed(ahead.where.extent[0])
        if enough <= len(found.slices):
            return found
    return why


def _track(intake: Intake, source: SliceSource, recipe: Recipe, *, assume_frame: bool) -> Track | str:
    slices = intake.slices
    verdict = classify(source.series, slices, assume_frame_of_reference=assume_frame)
    if len(verdict.stacks) != 1 or verdict.refusals:
        return "slices came in no order, or do not form one volume"
    track = lay(verdict.stacks[0], recipe)
    if isinstance(track, Track):
        came = {id(one): number for number, one in enumerate(slices)}
        order = np.array([came[id(one)] for one in track.slices], dtype=float)
        alike = np.corrcoef(order, np.arange(len(order)))[0, 1]
        if alike < -_IN_ORDER:
            if source.expected is None:
                return "slices came from the end where the last windows lie, and their number was not known"
            return track.turned(max(source.expected, len(slices)))
        if alike < _IN_ORDER:
            return "slices came in no order"
    return track


class Passage:
    """The slices of a track on their way through the network's windows.

    more: the next slice that came, None for none at the moment.
    end: the track that all slices form, once they have come; None before. May raise Contradicted.
    seen: what becomes of each decoded plane first. certain: a row runs once it is known whether it is the last.
    """

    def __init__(
        self,
        track: Track,
        recipe: Recipe,
        decoder: Decoder,
        *,
        more: Callable[[], Slice | None],
        end: Callable[[], Track | None],
        seen: Callable[[Pixels], Pixels],
        clock: StageClock,
        certain: bool = False,
    ) -> None:
        self._track, self._recipe, self._decoder = track, recipe, decoder
        self._more, self._end, self._seen, self._clock = more, end, seen, clock
        self._slices: list[Slice] = []
        self._early: dict[int, Slice] = {}
        self._raw: dict[int, Tensor] = {}  # what was decoded, or brought to the model's rows and columns
        self._decoded = 0
        self._sampling: Sampling | None = None
        self._slab = torch.empty(1, 0, 0, 0)  # prepared slices: `held` of them, from `first` on
        self._first = self._held = 0
        self._restored, self._restoring = 0, Lock()  # source slices whose way back was given, to a thread beside
        self._certain = certain
        self.plan = plan(track, track.count or MANY, recipe)
        steps = self.plan.course.before, self.plan.course.after
        first, then = (Gathered(some) if any(map(needs_whole, some)) else None for some in steps)
        self._gathered, self._gathers_source = then if first is None else first, first is not None
        self.ended = False
        for one in track.slices:
            self._admit(one)
        self._look_for_end()

    @property
    def slices(self) -> Sequence[Slice]:
        """Those that came, along the track as far as none is missing."""
        return self._slices

    # ---- what the engine asks

    def rows(self) -> Rows:
        """See `streaming.Rows`."""
        done = 0
        if self._gathered is not None:
            self._gather(self._gathered)
        while not self.ended:
            where = self.plan.where
            if done == len(where.begins[0]):  # a known number of slices has come
                self._pull()
                continue
            begin = where.begins[0][done]
            last = min(begin + where.extent[0] + max(where.reach, int(self._certain)), where.shape[0])
            if self.plan.needed(last) <= len(self._slices):
                self._look_ahead(last)
                if not self.ended:
                    yield where, begin
                    done += 1
            else:
                self._pull()
        for begin in self.plan.where.begins[0][done:]:
            yield self.plan.where, begin

    def planes(self, first: int, last: int) -> Tensor:
        """See `streaming.Planes`."""
        with self._clock.time(Stage.PREPARE):
            self._move(first, last - first)
            while self._first + self._held < last:
                self._slab[:, self._held] = self._prepared(self._first + self._held)
                self._held += 1
            return self._slab[:, : last - first]

    def _move(self, first: int, room: int) -> None:
        """Let the slab begin at `first` and have room for so many slices; in place, since it is large."""
        before, gone = self._slab, min(first - self._first, self._held)
        if before.shape[1] < room:
            self._slab = torch.empty(1, room, *self.plan.where.shape[1:])
        self._held -= gone
        for n in range(self._held):
            self._slab[:, n] = before[:, n + gone]
        self._first = first

    def way(self, k: int, newest: int) -> tuple[Back, int]:
        """See `restore.Way`."""
        with self._restoring:
            back = self.plan.back
            self._restored = so_far(back, self.plan.count, k, newest)
            return back, self._restored

    # ---- slices as they come

    def _look_ahead(self, prepared: int) -> None:
        """Take what is here already, so that it is decoded while the network runs."""
        while not self.ended and len(self._slices) < self.plan.needed(prepared) + AHEAD:
            if not self._pull():
                return

    def _pull(self) -> bool:
        one = self._more()
        if one is not None:
            self._admit(one)
        self._look_for_end()
        return one is not None

    def _admit(self, one: Slice) -> None:
        number = self._track.number(one)
        if number is None or number < len(self._slices) or number in self._early:
            raise Contradicted("slices came where the first ones left no room for any, or in another order")
        self._early[number] = one
        while len(self._slices) in self._early:
            self._slices.append(self._early.pop(len(self._slices)))
        most = self.plan.count
        if len(self._slices) + len(self._early) > most:
            raise Contradicted(f"more than {most} slices")

    def _look_for_end(self) -> None:
        whole = self._end()
        if whole is None:
            return
        count = len(whole.slices)
        final = plan(whole, count, self._recipe)
        if self._track.count is not None:
            straight, whole = final.mirrored(), whole.turned(count)
            final = plan(whole, count, self._recipe)
        same_slices = len(whole.slices) == len(self._slices) and all(
            one is other for one, other in zip(whole.slices, self._slices, strict=True)
        )
        prepared = self._first + self._held
        if self._gathered is not None and not self._gathers_source:
            prepared = len(self._gathered)
        with self._restoring:
            same_plan = prepared == 0 or self.plan.agrees(final, prepared=prepared, restored=self._restored)
            if self._track.count is not None:  # all of it as it would have been forwards
                prepared = final.where.shape[0]
                same_plan = final.where == straight.where and final.agrees(straight, prepared=prepared, restored=count)
            if not (same_slices and whole.same_grid(self._track) and same_plan):
                raise Contradicted("the series as a whole lies otherwise than its first slices did")
            self.plan, self.ended = final, True

    # ---- from slices to prepared ones, in the operations of `prepare.prepare`

    def _gather(self, gathered: Gathered) -> None:
        """Bring all slices to the step that needs the whole volume, as they come."""
        while True:
            with self._clock.time(Stage.PREPARE):
                while len(gathered) < self._ready():
                    n = len(gathered)
                    gathered.add(self._decode(n) if self._gathers_source else self._resampled(n))
            if self.ended:
                break
            self._pull()
        with self._clock.time(Stage.PREPARE):
            gathered.settle()

    def _ready(self) -> int:
        """How many slices of the source, or of the model's grid, can be had from what has come."""
        if self._gathers_source:
            return len(self._slices)
        ready = len(self._gathered or ())
        while ready < self.plan.where.shape[0] and self.plan.needed(ready + 1) <= len(self._slices):
            ready += 1
        return ready

    def _prepared(self, m: int) -> Tensor:
        if self._gathered is not None and not self._gathers_source:
            return self._gathered.plane(m)
        return scaled(self._resampled(m), self.plan.course.after)

    def _resampled(self, m: int) -> Tensor:
        there = self.plan.there
        if there is None:
            return self._source(m)
        if isinstance(there, Sampler):
            self._hold(*there.span(m))
            if self._sampling is None or self._sampling.sampler is not there:
                self._sampling = Sampling(there, self._raw.__getitem__)
            return self._sampling.plane(m)
        slices, in_plane = there
        early = slices.dense  # once for each slice to the model's rows and columns
        lower, upper = int(slices.lower[m]), int(slices.upper[m])
        self._hold(lower, upper, in_plane if early else None)
        plane = slices.mix(self._raw.__getitem__, m)
        return plane if early else in_plane(plane)

    def _hold(self, lower: int, upper: int, in_plane: InPlane | None = None) -> None:
        """Let `_raw` have source slices lower..upper, brought to the model's rows and columns where that is given."""
        while self._decoded <= upper:
            number = self._decoded
            plane = self._source(number)
            self._raw[number] = plane if in_plane is None else in_plane(plane)
        for number in [number for number in self._raw if number < lower]:
            del self._raw[number]

    def _source(self, number: int) -> Tensor:
        """Source slice `number` (1, rows, columns) after the steps before the resampling; each once, in order."""
        self._decoded = number + 1
        if self._gathered is not None and self._gathers_source:
            return self._gathered.plane(number)
        return scaled(self._decode(number), self.plan.course.before)

    def _decode(self, number: int) -> Tensor:
        self._decoder.ahead(self._slices[number : number + AHEAD])
        with self._clock.time(Stage.READ):
            return torch.from_numpy(self._seen(self._decoder.take(self._slices[number])))[None]
