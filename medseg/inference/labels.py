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
class Within:
    """The image in a segment; all None where nothing was found.

    mean, sd: of its values in the modality's unit, each voxel counted once; sd of the population.
    centroid_mm: LPS (patient coordinates), each voxel counted by its volume.
    """

    mean: float | None = None
    sd: float | None = None
    centroid_mm: tuple[float, float, float] | None = None


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
    within: Within = Within()


@dataclass(frozen=True)
class LookedAt:
    """A box that a network saw.

    label: of the first pass. slices, rows, columns: of the image, first and last. low_mm, high_mm: LPS, around the
    outer edges of its voxels. mirrored: along which axes of the patient it was turned round.
    """

    label: int
    slices: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    mirrored: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegionFound:
    """Where a first pass sent the network, which claims nothing elsewhere.

    first_pass: what it was, in words. mode: "box" or "windows". share: of the image's voxels that were looked at.
    everywhere: the whole image was, since the first pass found nothing to leave out.
    """

    first_pass: str
    mode: str
    boxes: tuple[LookedAt, ...]
    share: float
    everywhere: bool = False

    @property
    def sentence(self) -> str:
        """For a person."""
        if not self.boxes:
            return f"Nothing was looked at: the first pass ({self.first_pass}) found no region."
        if self.everywhere:
            return f"The whole image was looked at: the first pass ({self.first_pass}) found nothing to leave out."
        many = f"{len(self.boxes)} region{'s' if len(self.boxes) > 1 else ''}"
        where = f"{many} ({self.share:.1%} of the image) found by a first pass ({self.first_pass})"
        return f"Looked at {where}: nothing is claimed outside."


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """What came of one stack and one bundle; the label planes went into the sink.

    streamed: whether windows ran as slices came, in memory that does not grow with their number; if not,
        `streamed_reason` says why. exact: whether scores are to the bit those of MONAI's sliding window.
    region: where the network looked, if not everywhere.
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
    region: RegionFound | None = None

    @property
    def empty(self) -> bool:
        return all(found.voxels == 0 for found in self.measured)
