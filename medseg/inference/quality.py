"""What was found, in numbers, and the doubts a reader must see.

code                 raised when
empty                a segment has no voxel
implausible_volume   a segment's volume lies outside its bundle's range
touches_edge         a segment reaches the border of the field of view: it may go on beyond
out_of_range         the input's values are not what the bundle was made for, or not Hounsfield units
pieces_left_out      beside the largest piece, which the bundle keeps alone, there were others of some size
out_of_domain        the series says of itself that it is another kind of image than the bundle was made for
low_confidence       mean winning probability below LOW_CONFIDENCE
bridged_gap, ...     the warnings of the geometry (`Stack.findings`), by their own codes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.bundle.bundle import Bundle, Segment
from medseg.bundle.catalog import hinted
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Level, Stack
from medseg.inference.labels import Flag, Measured
from medseg.inference.postprocess import Labels, box, pieces

LOW_CONFIDENCE: Final = 0.7
"""Below this mean winning probability a label is doubtful. Networks are over-confident: trained ones give more than
0.9 on images like those they learned from, and less than 0.7 only where most of a label is a guess."""

HU_LIMITS: Final = (-3100.0, 4100.0)
"""Where the 1st and 99th percentile of a CT in Hounsfield units lie: padding down to -3024, metal up to 4095."""

LEFT_OUT: Final = 0.1
"""Pieces left out that hold more than this share of what was kept may be more than specks."""

SAMPLE: Final = 4096  # voxels a plane: some millions for the largest series


@dataclass(frozen=True)
class Values:
    """1st and 99th percentile of the input, modality units."""

    low: float
    high: float


def sample(plane: Pixels) -> Pixels:
    """About `SAMPLE` voxels of a plane, evenly spread."""
    flat = plane.reshape(-1)
    return flat[:: flat.size // SAMPLE | 1].copy()  # odd, so that not every row gives the same columns


def values_of(samples: Sequence[Pixels]) -> Values:
    """Percentiles of the samples of all planes."""
    low, high = np.percentile(np.concatenate(samples), [1, 99])
    return Values(float(low), float(high))


def measure(
    labels: Labels,
    segments: Sequence[Segment],
    voxel_ml: NDArray[np.float64],
    confidence: Sequence[float | None],
    left_out_ml: Sequence[float],
    *,
    exclusive: bool,
) -> tuple[tuple[Measured, ...], tuple[int, ...]]:
    """Each segment as found, and the numbers of those that touch the edge.

    labels: (k, j, i) of segment numbers, or (segments, k, j, i) of 0 and 1. voxel_ml: (k,). confidence, left_out_ml:
    per segment.
    """
    measured: list[Measured] = []
    at_edge: list[int] = []
    for index, segment in enumerate(segments):
        mask = labels == segment.number if exclusive else labels[index] > 0
        place = box(mask)
        if place is None:
            measured.append(Measured(segment, 0, 0.0, 0, None))
            continue
        inside = mask[place]
        per_slice = inside.sum(axis=(1, 2))
        volume_ml = float(per_slice @ voxel_ml[place[0]])
        counts = int(per_slice.sum()), volume_ml, pieces(inside)[1]
        measured.append(Measured(segment, *counts, confidence[index], left_out_ml[index]))
        if any(side.start == 0 or side.stop == size for side, size in zip(place, mask.shape, strict=True)):
            at_edge.append(segment.number)
    return tuple(measured), tuple(at_edge)


def flags(
    stack: Stack, bundle: Bundle, measured: Sequence[Measured], at_edge: Sequence[int], values: Values
) -> tuple[Flag, ...]:
    """Every doubt there is, those about the input first."""
    return (
        *(Flag(found.code, found.detail) for found in stack.findings if found.level is Level.WARNING),
        *_input_flags(stack, bundle, values),
        *(flag for found in measured for flag in _segment_flags(found, found.segment.number in at_edge)),
    )


def _input_flags(stack: Stack, bundle: Bundle, values: Values) -> Iterator[Flag]:
    expects = bundle.expects
    if hinted(stack.series, expects) is False:
        said, wanted = stack.series.description.strip(), expects.series_description
        yield Flag("out_of_domain", f"series {said!r}: bundle {bundle.name} was made for {wanted}: do not rely on it")
    found = f"1st and 99th percentile are {values.low:g} and {values.high:g}"
    if values.low == values.high:
        yield Flag("out_of_range", f"the image is blank: {found}")
    elif bundle.expects.values is not None:
        least, most = bundle.expects.values
        if values.low < least or values.high > most:
            yield Flag("out_of_range", f"{found}, bundle {bundle.name} expects {least:g} to {most:g}")
    elif stack.series.modality == "CT" and not (HU_LIMITS[0] <= values.low < 0 and values.high <= HU_LIMITS[1]):
        yield Flag("out_of_range", f"{found}: not Hounsfield units (air -1000, water 0, bone up to 3000)")


def _segment_flags(found: Measured, at_edge: bool) -> Iterator[Flag]:
    segment = found.segment
    if found.voxels == 0:
        yield Flag("empty", f"{segment.label}: nothing found", segment.number)
        return
    if segment.volume_ml is not None:
        least, most = segment.volume_ml
        if not least <= found.volume_ml <= most:
            detail = f"{segment.label}: {found.volume_ml:.2f} ml, plausible are {least:g} to {most:g} ml"
            yield Flag("implausible_volume", detail, segment.number)
    if at_edge:
        detail = f"{segment.label}: reaches the edge of the field of view and may go on beyond"
        yield Flag("touches_edge", detail, segment.number)
    if found.left_out_ml > LEFT_OUT * found.volume_ml:
        detail = f"{segment.label}: {found.left_out_ml:.2f} ml in other pieces left out, the largest alone is kept"
        yield Flag("pieces_left_out", detail, segment.number)
    if found.confidence is not None and found.confidence < LOW_CONFIDENCE:
        detail = f"{segment.label}: mean probability {found.confidence:.2f}, below {LOW_CONFIDENCE:g}"
        yield Flag("low_confidence", detail, segment.number)
