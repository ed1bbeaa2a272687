"""Left and right, by where voxels lie in the patient, whatever the image's axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medseg.bundle.bundle import Code, Segment
from medseg.dicom.series import Stack
from medseg.inference.labels import Measured
from medseg.inference.pieces.sides import wrong_sides
from medseg.inference.pieces.statistics import SegmentSums
from tests.medseg.inference.phantoms import LPS, make_segment, make_stack
from tests.orientations import ORIENTATIONS

LEFT, RIGHT = Code("SCT", "7771000", "Left"), Code("SCT", "24028007", "Right")
KIDNEY = Code("SCT", "64033007", "Kidney")
SHAPE = (5, 7, 9)


def segment(number: int, laterality: Code | None, **facts: Any) -> Segment:
    return replace(make_segment(number), type=KIDNEY, laterality=laterality, **facts)


def measured(stack: Stack, segments: list[Segment], x_mm: list[float | None]) -> list[Measured]:
    """Each segment as voxels, those of the stack whose centre is nearest to so many mm left of its middle."""
    indices = np.stack([*np.indices(stack.shape), np.ones(stack.shape)], axis=-1)
    x = indices @ stack.affine[0]
    away = x - x.mean()
    labels = np.zeros(stack.shape, np.uint8)
    for one, at in zip(segments, x_mm, strict=True):
        if at is not None:
            labels[np.abs(away - at) < 1.0] = one.number
    sums = SegmentSums([one.number for one in segments], exclusive=True)
    for k, plane in enumerate(labels):
        sums.add(plane, np.zeros(stack.shape[1:], np.float32), stack.slices[k].plane, 1.0)
    counts = [int((labels == one.number).sum()) for one in segments]
    return [
        Measured(one, count, float(count), 1, None, within=within)
        for one, count, within in zip(segments, counts, sums.end(), strict=True)
    ]


def flagged(stack: Stack, segments: list[Segment], x_mm: list[float | None]) -> list[int | None]:
    return [flag.segment for flag in wrong_sides(stack, measured(stack, segments, x_mm))]


@pytest.mark.parametrize("orientation", range(0, 48, 5))
def test_sides_are_the_patients_whatever_the_axes(orientation: int) -> None:
    stack = make_stack(np.zeros(SHAPE, np.float32), spacing_mm=(2.0, 2.0, 2.0), axes=ORIENTATIONS[orientation])
    pair = [segment(1, RIGHT), segment(2, LEFT)]
    assert flagged(stack, pair, [-4.0, 4.0]) == []
    assert flagged(stack, pair, [4.0, -4.0]) == [1, 2]


BOTH = Code("SCT", "51440002", "Right and left")
FORMER = Code("SRT", "G-A100", "Right")
LIVER = Code("SCT", "10200004", "Liver")
MIDDLE = {"beside_middle": True}


@pytest.mark.parametrize(
    ("segments", "x_mm", "expected"),
    [
        ([segment(1, RIGHT), segment(2, LEFT)], [4.0, 6.0], []),  # a cropped image: its middle says nothing
        ([segment(1, RIGHT), segment(2, LEFT)], [4.0, None], []),  # nor where one of them is missing
        ([segment(1, RIGHT, **MIDDLE), segment(2, LEFT)], [4.0, None], [1]),  # unless the bundle says so
        ([segment(1, RIGHT, **MIDDLE), segment(2, LEFT)], [-4.0, None], []),
        ([segment(1, LEFT, **MIDDLE)], [-4.0], [1]),
        ([segment(1, RIGHT, **MIDDLE), segment(2, LEFT, **MIDDLE)], [4.0, 6.0], []),  # both are there: they tell
        ([segment(1, FORMER), segment(2, LEFT)], [4.0, -4.0], [1, 2]),
        ([segment(1, RIGHT), replace(segment(2, LEFT), type=LIVER)], [4.0, -4.0], []),  # another structure
        ([segment(1, RIGHT), replace(segment(2, LEFT), region=LIVER)], [4.0, -4.0], []),
        ([segment(1, BOTH), segment(2, None)], [4.0, -4.0], []),
        ([segment(1, RIGHT), segment(2, LEFT), segment(3, LEFT)], [0.0, 4.0, -4.0], [1, 3]),
    ],
)
def test_what_follows_from_where_segments_lie(
    segments: list[Segment], x_mm: list[float | None], expected: list[int]
) -> None:
    stack = make_stack(np.zeros(SHAPE, np.float32), spacing_mm=(2.0, 2.0, 2.0), axes=LPS[[2, 1, 0]])
    assert flagged(stack, segments, x_mm) == expected
