"""From what windows find to final label planes and their measures, in memory that does not grow with the volume.

label planes as they come -> kept compressed, their pieces numbered -> the last has come: what is to be cleaned
    -> planes k = 0 .. K-1, cleaned one by one, what was changed numbered again -> measures
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import Stack
from medseg.inference.engines.pinned import on_its_way
from medseg.inference.grids.restore import Certainty
from medseg.inference.labels import LabelPlane, Measured
from medseg.inference.pieces.cleanup import decide
from medseg.inference.pieces.quality import Samples, measure, tally
from medseg.inference.pieces.statistics import SegmentSums
from medseg.inference.pieces.survey import ComponentFinder
from medseg.inference.planes import PlaneSpool
from medseg.inference.valueless import Valueless

MOST_LABELS: Final = 255  # label planes are uint8
_AHEAD: Final = 8  # planes


class LabelCollector:
    """What is found, plane by plane in the order of the windows; complete once its `with` block is left.

    first: the slice of the first plane, where that may not be the stack's first. samples: of the source's values.
    valueless: voxels of the source where no label can be.
    """

    def __init__(self, bundle: Bundle, floor: float = 0.0, first: Slice | None = None) -> None:
        self.exclusive, self.segments, self.postprocess = bundle.recipe.exclusive, bundle.segments, bundle.postprocess
        self.numbers = [segment.number for segment in bundle.segments]
        self._known = np.zeros(MOST_LABELS + 1, np.uint8)
        self._known[self.numbers] = self.numbers
        self._as_it_is = bool((self._known == np.arange(MOST_LABELS + 1))[: bundle.out_channels].all())
        self._channels = [number - 1 for number in self.numbers]
        self.planes = PlaneSpool()
        self.finder = ComponentFinder(self.numbers, exclusive=self.exclusive, holes=self.postprocess.fill_holes)
        self.certainty = Certainty(bundle.out_channels)
        self.samples = Samples()
        self.valueless = Valueless(floor)
        self.first = first
        self._count = 0
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="find")
        self._waiting: deque[Future[None]] = deque()
        self._early: deque[LabelPlane] = deque()  # of planes that the windows did not need until now

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> LabelCollector:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """All that was added has been looked at."""
        while self._waiting and kind is None:
            self._waiting.popleft().result()
        self._beside.shutdown(cancel_futures=True)

    def add(self, plane: Tensor) -> None:
        """Channel numbers (1, rows, columns), or bits (channels, rows, columns).

        Planes are looked at in their order by a thread beside, for which this one waits where it falls behind.
        """
        self._count += 1
        if len(self._waiting) >= _AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._beside.submit(self._look_at, on_its_way(plane)))

    def _look_at(self, arrived: Callable[[], Tensor]) -> None:
        channels: LabelPlane = arrived().numpy()
        labels = channels[self._channels] if not self.exclusive else channels[0]
        if self.exclusive and not self._as_it_is:
            labels = self._known[labels]
        self._early.append(labels)
        self._settle()

    def _settle(self) -> None:
        """Keep label planes whose source has been seen."""
        while self._early and len(self.planes) < len(self.valueless):
            labels = self.valueless.clear(len(self.planes), self._early.popleft())
            self.planes.put(labels)
            self.finder.add(labels)

    def see_rest(self, read: Callable[[int], Pixels]) -> None:
        """Look at the source's last planes where the windows needed them not. read: plane n of the source."""
        while self._early:
            self.valueless.see(read(len(self.valueless)))
            self._settle()


class CleanedLabels:
    """What was found in a stack, all of whose planes have come: iterate to the end, then `measured`.

    values: of a slice that has labels; without them nothing is said of the image within segments.
    """

    def __init__(
        self, collector: LabelCollector, stack: Stack, values: Callable[[Slice], Pixels] | None = None
    ) -> None:
        self._collector, self._slices, self._values = collector, stack.slices, values
        self._sums = SegmentSums(collector.numbers, exclusive=collector.exclusive)
        self._backwards = collector.first is not None and collector.first is not stack.slices[0]
        self._voxel_ml = np.array([stack.voxel_ml(k) for k in range(len(stack.slices))])
        voxel_ml = self._voxel_ml[::-1] if self._backwards else self._voxel_ml
        components, what = collector.finder.end(), collector.postprocess
        self._cleaning = decide(
            components,
            voxel_ml,
            keep_largest=[index for index, number in enumerate(collector.numbers) if number in what.keep_largest],
            fill_holes=what.fill_holes,
            min_volume_ml=what.min_volume_ml,
            backwards=self._backwards,
        )
        self._tallies = tally(components, voxel_ml)
        self._changed = list(self._cleaning.changed)
        changed = [collector.numbers[index] for index in self._changed]
        self._again = ComponentFinder(changed, exclusive=collector.exclusive)

    def __iter__(self) -> Iterator[LabelPlane]:
        """Final planes k = 0 .. K-1: (rows, columns) of segment numbers, or (segments, rows, columns) of 0 and 1."""
        collector, count = self._collector, len(self._collector)
        for k in range(count):
            n = count - 1 - k if self._backwards else k
            plane = self._cleaning.apply(collector.planes[n], n, collector.numbers, exclusive=collector.exclusive)
            if self._changed:
                plane = collector.valueless.clear(n, plane)  # which may lie in a hole that was filled
                self._again.add(plane if collector.exclusive else plane[self._changed])
            if self._values is not None and plane.any():
                slice_ = self._slices[k]
                self._sums.add(plane, self._values(slice_), slice_.plane, float(self._voxel_ml[k]))
            yield plane

    def measured(self) -> tuple[tuple[Measured, ...], dict[int, str]]:
        """Each segment in the final planes, and what edge those reach that touch one, by number."""
        collector, tallies = self._collector, self._tallies.copy()
        if self._changed:
            for index, again in zip(self._changed, tally(self._again.end(), self._voxel_ml), strict=True):
                tallies[index] = again
        channels = (number - (0 if collector.exclusive else 1) for number in collector.numbers)
        confidence = [collector.certainty.mean(channel) for channel in channels]
        return measure(tallies, collector.segments, confidence, self._cleaning.left_out_ml, self._sums.end())
