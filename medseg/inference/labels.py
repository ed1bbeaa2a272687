"""What the pipeline gives: label planes into a sink, and a result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack

LabelPlane: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[slice, slice]


def boxes(plane: LabelPlane) -> dict[int, Box]:
    """The box (rows, columns) around each label of a plane but 0, by ascending label.

    As scipy.ndimage.find_objects, which looks at voxels one by one: here at those alone that lie between labels, and
    where there is one label, as in most planes, at none.
    """
    rows, columns = (np.flatnonzero(plane.max(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return {}
    top, left = int(rows[0]), int(columns[0])
    around = slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)
    within = plane[around]
    highest = within.max()
    if np.array_equal(within == highest, within != 0):
        return {int(highest): around}
    found = enumerate(ndimage.find_objects(within), start=1)
    return {
        label: (slice(top + j.start, top + j.stop), slice(left + i.start, left + i.stop))
        for label, (j, i) in ((label, place) for label, place in found if place is not None)
    }


class LabelSink(Protocol):
    """Takes final label planes: a SEG writer, a spool, a NIfTI writer.

    `begin` comes once, then `plane` once for each slice k = 0 .. K-1 of the stack in that order, then `end`.
    Exclusive labels: (rows, columns), the segment number or 0. Overlapping: (segments, rows, columns), 0 or 1,
    in the order of `segments`.
    """

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None: ...

    def plane(self, k: int, labels: LabelPlane) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Flag:
    """A doubt about a result that its reader must see. `segment` is None where it is about the whole."""

    code: str
    message: str
    segment: int | None = None


@dataclass(frozen=True)
class Measured:
    """One segment as found. components: 26-connected pieces. confidence: mean winning probability, 0-1.

    left_out_ml: other pieces that were found, where the bundle keeps the largest alone.
    """

    segment: Segment
    voxels: int
    volume_ml: float
    components: int
    confidence: float | None
    left_out_ml: float = 0.0


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """What came of one stack and one bundle; the label planes went into the sink.

    streamed: whether windows ran as slices came, in memory that does not grow with their number; if not,
        `streamed_reason` says why. exact: whether scores are to the bit those of MONAI's sliding window.
    """

    stack: Stack
    measured: tuple[Measured, ...]
    flags: tuple[Flag, ...]
    warnings: tuple[str, ...]
    timings_s: dict[str, float]
    device: str
    engine: str
    precision: str
    streamed: bool
    streamed_reason: str | None
    exact: bool = False

    @property
    def empty(self) -> bool:
        return all(found.voxels == 0 for found in self.measured)
