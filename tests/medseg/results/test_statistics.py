"""Means, deviations and centres of segments, beside the whole arrays."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.inference.planes import LabelSpool
from medseg.results.statistics import SegmentStatistics, statistics_of, unit_of
from tests.medseg.results.stacks import SEGMENTS, blobs, make_stack, position_mm

OBLIQUE = {"orientation": ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0)), "spacing_mm": (2.5, 0.7, 0.9)}


@pytest.mark.parametrize("exclusive", [True, False])
def test_as_of_the_whole_array(exclusive: bool) -> None:
    stack = make_stack(**OBLIQUE)
    labels = blobs(stack.shape)
    masks = np.stack([labels == segment.number for segment in SEGMENTS])
    masks[2] = False
    labels[labels == 3] = 0
    spool = LabelSpool()
    spool.begin(stack, SEGMENTS, exclusive=exclusive)
    for k, plane in enumerate(labels):
        spool.plane(k, plane if exclusive else masks[:, k].astype(np.uint8))
    values = np.stack([slice_.read() for slice_ in stack.slices]).astype(np.float64)
    places = np.array(
        [
            [[position_mm(slice_.plane, j, i) for i in range(values.shape[2])] for j in range(values.shape[1])]
            for slice_ in stack.slices
        ]
    )
    *found, missing = statistics_of(spool)
    assert missing == SegmentStatistics()
    for mask, told in zip(masks, found, strict=False):
        assert told.mean == pytest.approx(values[mask].mean())
        assert told.sd == pytest.approx(values[mask].std())
        assert told.centroid_mm == pytest.approx(places[mask].mean(axis=0))


@pytest.mark.parametrize(("modality", "unit"), [("CT", "HU"), ("MR", None)])
def test_the_unit_of_values(modality: str, unit: str | None) -> None:
    assert unit_of(make_stack(modality=modality)) == unit
