"""What was found, in numbers, and the doubts a reader must see.

code                 raised when
no_value             voxels of the input are not finite (NaN, infinity): they get no label
empty                a segment has no voxel
implausible_volume   a segment's volume lies outside its bundle's range
touches_edge         a segment reaches the border of the field of view, or its first or last slice: it may go on beyond
several_pieces       a segment that its bundle says is one piece is more
wrong_side           a segment of one side of the patient does not lie there (`sides`)
out_of_range         the input's values are not what the bundle was made for, or not Hounsfield units
pieces_left_out      beside the largest piece, which the bundle keeps alone, there were others of some size
unexpected_pixels    the voxels are not what the bundle says they must be
out_of_domain        the series says of itself that it is another kind of image than the bundle was made for
low_confidence       mean winning probability below LOW_CONFIDENCE
region_not_found     a first pass found nothing to look at (this and the next two: `inference/regions`)
region_everywhere    a first pass found nothing to leave out
touches_region_edge  a segment reaches the border of the region that was looked at: it may go on beyond
bridged_gap, ...     the warnings of the geometry (`Stack.findings`), by their own codes
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medseg.bundle.bundle import Bundle, PixelCheck, Segment
from medseg.bundle.catalog import hinted
from medseg.bundle.pixel_check import Values, differences, dim_share
from medseg.dicom.instance import Pixels, Vector
from medseg.dicom.series import Level, Stack
from medseg.inference.labels import Flag, Measured, Within
from medseg.inference.pieces.cleanup import exact_sum
from medseg.inference.pieces.sides import wrong_sides
from medseg.inference.pieces.survey import Components

LOW_CONFIDENCE: Final = 0.7
"""Below this mean winning probability a label is doubtful. Networks are over-confident: trained ones give more than
0.9 on images like those they learned from, and less than 0.7 only where most of a label is a guess."""

HU_LIMITS: Final = (-3100.0, 4100.0)
"""Where the 1st and 99th percentile of a CT in Hounsfield units lie: padding down to -3024, metal up to 4095."""

LEFT_OUT: Final = 0.1
"""Pieces left out that hold more than this share of what was kept may be more than specks."""

SAMPLE: Final = 4096  # voxels of a plane
PLANES: Final = 256  # of more planes, fewer voxels each


class Samples:
    """Some voxels of each plane that passes, a million in all however many planes there are.

    They lie in one block that is there from the first plane on: as blocks of their own, of each plane, they would stand
    between those of windows and slices, and what is free between them would become more with every plane.
    """

    def __init__(self) -> None:
        self._values = np.empty((PLANES + 2) * SAMPLE, np.float32)
        self._counts: list[int] = []  # of each plane
        self._end = 0
        self._every = 1

    def add(self, plane: Pixels) -> None:
        flat = plane.reshape(-1)
        step = flat.size // SAMPLE | 1  # odd, so that not every row gives the same columns
        self._put(flat[:: step * self._every])
        if len(self._counts) > PLANES * self._every:
            self._every *= 2
            self._halve()

    def _put(self, values: Pixels) -> None:
        begin, self._end = self._end, self._end + values.size
        if self._end > self._values.size:  # small planes have up to twice as many
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._values[begin : self._end] = values
        self._counts.append(values.size)

    def _halve(self) -> None:
        counts, begin, self._counts, self._end = self._counts, 0, [], 0
        for count in counts:
            self._put(self._values[begin : begin + count : 2])
            begin += count

    def __len__(self) -> int:
        """How many planes have passed."""
        return len(self._counts)

    def values(self, check: PixelCheck | None = None) -> Values:
        """Percentiles, and what a bundle asks for besides; the same for planes in any order."""
        here = self._values[: self._end]
        low, high = np.percentile(here, [1, 99])
        if check is None:
            return Values(float(low), float(high))
        air = float(np.count_nonzero(here < check.air_below)) / max(here.size, 1)
        return Values(float(low), float(high), air, None if check.dim is None else dim_share(here))


@dataclass(frozen=True)
class Tally:
    """What there is of a segment. at_ends: something lies in the first or last slice; at_border: on that of a slice."""

    voxels: int
    volume_ml: float
    components: int
    at_ends: bool
    at_border: bool

    @property
    def edge(self) -> str:
        """What of the field of view it reaches, in words; empty where it lies within."""
        reached = {"the first or last slice": self.at_ends, "the border of its slices": self.at_border}
        return " and ".join(words for words, there in reached.items() if there)


def tally(components: Components, voxel_ml: Vector) -> list[Tally]:
    """Of each segment of the components. voxel_ml: (planes,), in the order of the finder."""
    parts, count = components.parts, components.segments
    planes = components.shape[0]
    per_plane = np.bincount(parts.segment * planes + parts.plane, parts.voxels, count * planes).reshape(count, planes)
    pieces = np.bincount(parts.segment[np.unique(components.piece, return_index=True)[1]], minlength=count)
    edge = (components.low <= 0) | (components.high >= np.array(components.shape) - 1)
    return [
        Tally(
            int(voxels.sum()),
            exact_sum(voxels * voxel_ml),
            int(pieces[index]),
            bool(voxels.any() and edge[index, 0]),
            bool(voxels.any() and edge[index, 1:].any()),
        )
        for index, voxels in enumerate(per_plane)
    ]


def measure(
    tallies: Sequence[Tally],
    segments: Sequence[Segment],
    confidence: Sequence[float | None],
    left_out_ml: Sequence[float],
    within: Sequence[Within],
) -> tuple[tuple[Measured, ...], dict[int, str]]:
    """Each segment as found, and what edge those reach that touch one, by number; all arguments are per segment."""
    measured = tuple(
        Measured(segment, counted.voxels, counted.volume_ml, counted.components, sure, left_ml, image)
        if counted.voxels
        else Measured(segment, 0, 0.0, 0, None)
        for counted, segment, sure, left_ml, image in zip(
            tallies, segments, confidence, left_out_ml, within, strict=True
        )
    )
    edges = {segment.number: counted.edge for segment, counted in zip(segments, tallies, strict=True)}
    return measured, {number: edge for number, edge in edges.items() if edge}


def flags(
    stack: Stack, bundle: Bundle, measured: Sequence[Measured], at_edge: Mapping[int, str], values: Values
) -> tuple[Flag, ...]:
    """Every doubt there is, those about the input first."""
    return (
        *(Flag(finding.code, finding.detail) for finding in stack.findings if finding.level is Level.WARNING),
        *_input_flags(stack, bundle, values),
        *(flag for part in measured for flag in _segment_flags(part, at_edge.get(part.segment.number))),
        *wrong_sides(stack, measured),
    )


def no_value(voxels: int, stack: Stack, floor: float) -> tuple[Flag, ...]:
    """The doubt that so many voxels of the input have no value. floor: what the network was given there."""
    if not voxels:
        return ()
    share = voxels / math.prod(stack.shape)
    gaps = f"{voxels} voxels ({share:.2%}) have no finite value (NaN or infinity)"
    return (Flag("no_value", f"{gaps}: taken as {floor:g} and given no label"),)


def _input_flags(stack: Stack, bundle: Bundle, values: Values) -> Iterator[Flag]:
    expects = bundle.expects
    if hinted(stack.series, expects) is False:
        description, wanted = stack.series.description.strip(), expects.series_description
        yield Flag(
            "out_of_domain", f"series {description!r}: bundle {bundle.name} was made for {wanted}: do not rely on it"
        )
    if expects.pixels is not None and (found := differences(stack, expects.pixels, values)):
        yield Flag("unexpected_pixels", f"bundle {bundle.name}: {'; '.join(found)}: do not rely on it")
    percentiles = f"1st and 99th percentile are {values.low:g} and {values.high:g}"
    if values.low == values.high:
        yield Flag("out_of_range", f"the image is blank: {percentiles}")
    elif bundle.expects.values is not None:
        least, most = bundle.expects.values
        if values.low < least or values.high > most:
            yield Flag("out_of_range", f"{percentiles}, bundle {bundle.name} expects {least:g} to {most:g}")
    elif stack.series.modality == "CT" and not (HU_LIMITS[0] <= values.low < 0 and values.high <= HU_LIMITS[1]):
        yield Flag("out_of_range", f"{percentiles}: not Hounsfield units (air -1000, water 0, bone up to 3000)")


def _segment_flags(measured: Measured, edge: str | None) -> Iterator[Flag]:
    segment = measured.segment
    if measured.voxels == 0:
        yield Flag("empty", f"{segment.label}: nothing found", segment.number)
        return
    if segment.volume_ml is not None:
        least, most = segment.volume_ml
        if not least <= measured.volume_ml <= most:
            detail = f"{segment.label}: {measured.volume_ml:.2f} ml, plausible are {least:g} to {most:g} ml"
            yield Flag("implausible_volume", detail, segment.number)
    if edge:
        yield Flag("touches_edge", f"{segment.label}: reaches {edge} and may go on beyond", segment.number)
    if segment.one_piece and measured.components > 1:
        detail = f"{segment.label}: {measured.components} pieces, expected is one"
        yield Flag("several_pieces", detail, segment.number)
    if measured.left_out_ml > LEFT_OUT * measured.volume_ml:
        detail = f"{segment.label}: {measured.left_out_ml:.2f} ml in other pieces left out, the largest alone is kept"
        yield Flag("pieces_left_out", detail, segment.number)
    if measured.confidence is not None and measured.confidence < LOW_CONFIDENCE:
        detail = f"{segment.label}: mean probability {measured.confidence:.2f}, below {LOW_CONFIDENCE:g}"
        yield Flag("low_confidence", detail, segment.number)
