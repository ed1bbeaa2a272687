"""Slices of an axis -> prepared slices -> rows of windows, each as soon as what it needs is there.

Where a step needs the whole volume, slices are prepared up to that step while they come, and wait on disk
(`grids.deferred`). Memory holds the prepared slices of one row and a few decoded ones ahead of it, for any number of
slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.recipe import Intensity, Recipe, needs_whole
from medseg.dicom.instance import Pixels, Slice
from medseg.inference.arriving.axis import MANY, SliceAxis, plan
from medseg.inference.arriving.decoding import AHEAD, Decoder
from medseg.inference.arriving.intake import StreamInvalid
from medseg.inference.grids.deferred import DeferredPlanes, scaled
from medseg.inference.grids.resample import Across, InPlane
from medseg.inference.grids.restore import ToSource, so_far
from medseg.inference.grids.zeros import Sampler, Sampling
from medseg.inference.windows.streaming import Rows
from medseg.progress import Stage, StageClock


class StreamedVolume:
    """The slices of an axis on their way through the network's windows.

    end: the axis that all slices form, once they have come; None before. May raise StreamInvalid.
    channels: of the network's input. seen: what becomes of each decoded plane, and its number along the axis: one for
    each channel. exact: a row runs once it is known whether it is the last, since MONAI's batches depend on that.
    to_device: brings planes to where they are prepared, as far as there is room. room: of a shape, for prepared slices.
    """

    def __init__(
        self,
        axis: SliceAxis,
        recipe: Recipe,
        decoder: Decoder,
        *,
        end: Callable[[], SliceAxis | None],
        channels: int,
        seen: Callable[[int, Pixels], Sequence[Pixels]],
        clock: StageClock,
        exact: bool = False,
        to_device: Callable[[Tensor], Tensor] = lambda planes: planes,
        room: Callable[..., Tensor] = torch.empty,
    ) -> None:
        self._axis, self._recipe, self._decoder = axis, recipe, decoder
        self._end, self._seen, self._clock = end, seen, clock
        self._slices: list[Slice] = []
        self._early: dict[int, Slice] = {}
        self._raw: dict[int, Tensor] = {}  # what was decoded, or brought to the model's rows and columns
        self._decoded = 0
        self._sampling: Sampling | None = None
        self._slab = torch.empty(channels, 0, 0, 0)  # prepared slices: `held` of them, from `first` on
        self._first = self._held = 0
        self._restored, self._restoring = 0, Lock()  # source slices whose way back was given, to a thread beside
        self._exact, self._to_device, self._room = exact, to_device, room
        whole = end()
        self.plan = plan(axis, axis.count or (MANY if whole is None else len(whole.slices)), recipe)
        steps = self.plan.preprocessing_plan.before, self.plan.preprocessing_plan.after
        first, then = (DeferredPlanes(some) if any(map(needs_whole, some)) else None for some in steps)
        self._deferred, self._defers_source = then if first is None else first, first is not None
        self.ended = False
        for slice_ in axis.slices:
            self._admit(slice_)
        self._look_for_end()

    @property
    def slices(self) -> Sequence[Slice]:
        """Those that came, along the axis as far as none is missing."""
        return self._slices

    # ---- where all slices are there

    def settled(self) -> Intensity | None:
        """The step that must know of the whole volume, once it does; None where none must."""
        return None if self._deferred is None else self._defer(self._deferred, lambda: None)

    def begin_at(self, prepared: int) -> None:
        """Prepared slices before this one are not asked for, nor are the slices that they alone are made of."""
        there = self.plan.there
        match there:
            case None:
                self._decoded = prepared
            case Sampler() | Across():
                self._decoded = there.span(prepared)[0]
            case slices, _:
                self._decoded = int(slices.lower[prepared])
        self._first = prepared

    # ---- what the engine asks

    def rows(self, more: Callable[[], Slice | None]) -> Rows:
        """See `streaming.Rows`. more: the next slice that came, None for none at the moment."""
        done = 0
        if self._deferred is not None:
            self._defer(self._deferred, more)
        while not self.ended:
            layout = self.plan.layout
            if done == len(layout.begins[0]):  # a known number of slices has come
                self._pull(more)
                continue
            begin = layout.begins[0][done]
            last = min(begin + layout.extent[0] + max(layout.reach, int(self._exact)), layout.shape[0])
            if self.plan.needed(last) <= len(self._slices):
                self._look_ahead(last, more)
                if not self.ended:
                    yield layout, begin
                    done += 1
            else:
                self._pull(more)
        for begin in self.plan.layout.begins[0][done:]:
            yield self.plan.layout, begin

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
            self._slab = self._room(len(before), room, *self.plan.layout.shape[1:])
        self._held -= gone
        for n in range(self._held):
            self._slab[:, n] = before[:, n + gone]
        self._first = first

    def inverse(self, k: int, newest: int) -> tuple[ToSource, int]:
        """See `restore.Inverse`."""
        with self._restoring:
            back = self.plan.back
            self._restored = so_far(back, self.plan.count, k, newest)
            return back, self._restored

    # ---- slices as they come

    def _look_ahead(self, prepared: int, more: Callable[[], Slice | None]) -> None:
        """Take what is here already, so that it is decoded while the network runs."""
        while not self.ended and len(self._slices) < self.plan.needed(prepared) + AHEAD:
            if not self._pull(more):
                return

    def _pull(self, more: Callable[[], Slice | None]) -> bool:
        slice_ = more()
        if slice_ is not None:
            self._admit(slice_)
        self._look_for_end()
        return slice_ is not None

    def _admit(self, slice_: Slice) -> None:
        number = self._axis.number(slice_)
        if number is None or number < len(self._slices) or number in self._early:
            raise StreamInvalid("slices came where the first ones left no room for any, or in another order")
        self._early[number] = slice_
        while len(self._slices) in self._early:
            self._slices.append(self._early.pop(len(self._slices)))
        most = self.plan.count
        if len(self._slices) + len(self._early) > most:
            raise StreamInvalid(f"more than {most} slices")

    def _look_for_end(self) -> None:
        whole = self._end()
        if whole is None:
            return
        count = len(whole.slices)
        final = plan(whole, count, self._recipe)
        if self._axis.count is not None:
            forward, whole = final.mirrored(), whole.reversed(count)
            final = plan(whole, count, self._recipe)
        same_slices = len(whole.slices) == len(self._slices) and all(
            slice_ is other for slice_, other in zip(whole.slices, self._slices, strict=True)
        )
        prepared = self._first + self._held
        if self._deferred is not None and not self._defers_source:
            prepared = len(self._deferred)
        with self._restoring:
            same_plan = prepared == 0 or self.plan.agrees(final, prepared=prepared, restored=self._restored)
            if self._axis.count is not None:  # all of it as it would have been forwards
                prepared = final.layout.shape[0]
                same_plan = final.layout == forward.layout and final.agrees(forward, prepared=prepared, restored=count)
            if not (same_slices and whole.same_grid(self._axis) and same_plan):
                raise StreamInvalid("the series as a whole lies otherwise than its first slices did")
            self.plan, self.ended = final, True

    # ---- from slices to prepared ones, in the operations of `prepare.prepare`

    def _defer(self, deferred: DeferredPlanes, more: Callable[[], Slice | None]) -> Intensity:
        """Bring all slices to the step that needs the whole volume, as they come."""
        while True:
            with self._clock.time(Stage.PREPARE):
                while len(deferred) < self._ready():
                    n = len(deferred)
                    deferred.add(self._decode(n) if self._defers_source else self._resampled(n).cpu())
            if self.ended:
                break
            self._pull(more)
        with self._clock.time(Stage.PREPARE):
            return deferred.settle()

    def _ready(self) -> int:
        """How many slices of the source, or of the model's grid, can be had from what has come."""
        if self._defers_source:
            return len(self._slices)
        ready = len(self._deferred or ())
        while ready < self.plan.layout.shape[0] and self.plan.needed(ready + 1) <= len(self._slices):
            ready += 1
        return ready

    def _prepared(self, m: int) -> Tensor:
        if self._deferred is not None and not self._defers_source:
            return self._to_device(self._deferred.plane(m))
        return scaled(self._resampled(m), self.plan.preprocessing_plan.after)

    def _resampled(self, m: int) -> Tensor:
        there = self.plan.there
        if there is None:
            return self._source(m)
        if isinstance(there, Sampler):
            self._hold(*there.span(m))
            if self._sampling is None or self._sampling.sampler is not there:
                self._sampling = Sampling(there, self._raw.__getitem__)
            return self._sampling.plane(m)
        if isinstance(there, Across):
            low, high = there.span(m)
            self._hold(low, high)
            return there.plane(torch.stack([self._raw[n] for n in range(low, high + 1)], dim=1), low, m)
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
        if len({plane.device for plane in self._raw.values()}) > 1:  # there was no room on the device any more
            self._raw = {number: plane.cpu() for number, plane in self._raw.items()}
        for number in [number for number in self._raw if number < lower]:
            del self._raw[number]

    def _source(self, number: int) -> Tensor:
        """Source slice `number` (C, rows, columns) after the steps before the resampling; each once, in order."""
        self._decoded = number + 1
        # Zeros are left where MONAI leaves them by a CPU's operations alone.
        placed = self._to_device if not isinstance(self.plan.there, Sampler) else lambda planes: planes
        if self._deferred is not None and self._defers_source:
            return placed(self._deferred.plane(number))
        return scaled(placed(self._decode(number)), self.plan.preprocessing_plan.before)

    def _decode(self, number: int) -> Tensor:
        self._decoder.ahead(self._slices[number : number + AHEAD])
        with self._clock.time(Stage.READ):
            planes = self._seen(number, self._decoder.take(self._slices[number]))
            return torch.from_numpy(planes[0])[None] if len(planes) == 1 else torch.from_numpy(np.stack(planes))
