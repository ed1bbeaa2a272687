"""A series and the volume its slices form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from medseg.dicom.instance import Instance, Slice, Vector


@dataclass(frozen=True)
class LeftOut:
    """Something that came with a series, or was announced by it, and is in no volume of it.

    code: a stable name. of: what is counted ("files", "slices", "images" ...). why: one phrase. lost: whether it may
    have belonged to the images; what is no image, or lay there twice, is told all the same. here: False for what was
    announced and never came.
    """

    code: str
    count: int
    of: str
    why: str
    lost: bool = True
    here: bool = True

    @property
    def sentence(self) -> str:
        """For a person."""
        what = self.of if self.count != 1 else self.of.removesuffix("s")
        return f"{self.count} {what} {'left out' if self.here else 'missing'}: {self.why}"


@dataclass(frozen=True, eq=False)
class Series:
    """The instances of one SeriesInstanceUID, in no order, with what a rule or a person asks of it first.

    left_out: what came with them, or was said to come, and is not among them.
    """

    study_uid: str
    series_uid: str
    modality: str
    number: int | None
    description: str
    body_part: str
    instances: tuple[Instance, ...]
    left_out: tuple[LeftOut, ...] = ()


class Level(StrEnum):
    """How much a finding about a series weighs."""

    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """Something noticed about a series that was accepted all the same; `code` is a stable name."""

    code: str
    detail: str
    level: Level = Level.WARNING


@dataclass(frozen=True)
class Stored:
    """How a NIfTI file has its volume. spacing_mm: (k, j, i) as its header says. turned: slices were turned round."""

    spacing_mm: tuple[float, float, float]
    turned: bool


@dataclass(frozen=True, eq=False)
class ChannelImage:
    """One of several images that are looked at together, on the grid of the stack that has them.

    stack: None for one that is not there: zeros. matrix: 4x4, from (k, j, i, 1) of that grid to the image's own; None
    where its planes are that grid's. overlap: share of the grid that the image covers.
    """

    name: str
    stack: Stack | None
    matrix: Vector | None = None
    overlap: float = 1.0


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices in order along their normal: what can be segmented as one volume.

    slices: K of them, by increasing position along `normal` (row direction x column direction).
    coordinates: (K,) place of each slice on the uniform grid's k axis; 0, 1, 2, ... when uniform;
        a bridged gap leaves a number out; uneven spacing gives fractions.
    affine: 4x4, maps (k, j, i, 1) of that uniform grid to LPS millimetres; sheared under gantry tilt.
    thickness_mm: (K,) extent each plane stands for along the normal: half-way to its neighbours.
    frame_of_reference_uid: "" for NIfTI.
    phase: "" or what distinguishes this stack from others of the same series ("EchoNumbers=2").
    left_out: what came with its series and is not in it; where that may be a loss, `findings` say so, too.
    stored: for NIfTI. channels: images that are to be looked at together, this one among them, in the network's order;
        empty where it is looked at alone.
    """

    series: Series
    slices: tuple[Slice, ...]
    coordinates: Vector
    affine: Vector
    thickness_mm: Vector
    frame_of_reference_uid: str
    tilt_deg: float = 0.0
    phase: str = ""
    findings: tuple[Finding, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    stored: Stored | None = None
    channels: tuple[ChannelImage, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        plane = self.slices[0].plane
        return len(self.slices), plane.rows, plane.columns

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(k, j, i) of the uniform grid; k along the normal, so tilt does not lengthen it."""
        plane = self.slices[0].plane
        return float(abs(self.affine[:3, 0] @ plane.normal)), *plane.spacing_mm

    @property
    def as_read(self) -> Vector:
        """The affine as MONAI's reader has it: rows and columns along the cosines as they are written."""
        plane, affine = self.slices[0].plane, self.affine.copy()
        if plane.cosines is not None:
            affine[:3, 1] = plane.cosines[3:] * plane.spacing_mm[0]
            affine[:3, 2] = plane.cosines[:3] * plane.spacing_mm[1]
        return affine

    @property
    def uniform(self) -> bool:
        """Whether slice number and grid coordinate are the same thing."""
        return bool(np.allclose(self.coordinates, np.arange(len(self.slices)), atol=1e-3))

    def voxel_ml(self, k: int) -> float:
        """Volume of one voxel of plane k in ml."""
        row, column = self.slices[k].plane.spacing_mm
        return float(self.thickness_mm[k]) * row * column / 1000.0


class SliceSource(Protocol):
    """One stack of slices, complete or still arriving: what the pipeline reads from.

    Iterating yields slices in any order as they come, None where there is nothing new at the moment (work on what is
    here; asking again waits a little), and ends when the series is complete. A slice of an instance and frame that was
    given before takes the other's place. `expected` is the number of slices where somebody has said it, else None.
    """

    @property
    def series(self) -> Series: ...

    @property
    def expected(self) -> int | None: ...

    def __iter__(self) -> Iterator[Slice | None]: ...


class SourceOf:
    """What a source says that gives the slices of another."""

    def __init__(self, source: SliceSource) -> None:
        self._source = source

    @property
    def series(self) -> Series:
        return self._source.series

    @property
    def expected(self) -> int | None:
        return self._source.expected


@dataclass(frozen=True, eq=False)
class StackSource:
    """A source whose slices are all here and known to form this stack: a folder looked at before, or NIfTI."""

    stack: Stack

    @property
    def series(self) -> Series:
        return self.stack.series

    @property
    def expected(self) -> int | None:
        return len(self.stack.slices)

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.stack.slices)
