"""Measures and doubts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings

from medseg.bundle.bundle import Bundle, Expects
from medseg.dicom.series import Finding, Level, Stack
from medseg.inference.labels import Flag, Measured, Within
from medseg.inference.pieces.quality import LOW_CONFIDENCE, Samples, Tally, Values, flags, measure, tally
from tests.medseg.inference import whole
from tests.medseg.inference.phantoms import make_bundle, make_segment, make_stack
from tests.medseg.inference.whole import survey, volumes

EARS = make_segment(1, volume_ml=(0.5, 2.0))


@pytest.fixture
def stack() -> Stack:
    return make_stack(np.zeros((4, 5, 6), np.float32))


def codes(
    stack: Stack,
    bundle: Bundle,
    found: Measured,
    at_edge: Mapping[int, str] = MappingProxyType({}),
    values: Values = Values(-1000.0, 1000.0),  # noqa: B008 - frozen
) -> list[str]:
    return [flag.code for flag in flags(stack, bundle, [found], at_edge, values)]


def tallies(labels: np.ndarray, voxel_ml: np.ndarray, *, exclusive: bool = True) -> list[Tally]:
    return tally(survey(labels, exclusive=exclusive), voxel_ml)


@settings(deadline=None, max_examples=50)
@given(volumes())
def test_measures_are_those_of_the_whole_volume(volume: tuple[np.ndarray, bool]) -> None:
    labels, exclusive = volume
    voxel_ml = np.resize([0.3, 1.1, 0.7], labels.shape[-3])
    for index, found in enumerate(tallies(labels, voxel_ml, exclusive=exclusive)):
        mask = labels == index + 1 if exclusive else labels[index] > 0
        volume_ml = pytest.approx(float(mask.sum(axis=(1, 2)) @ voxel_ml), rel=1e-9)
        edges = whole.touches_ends(mask), whole.touches_border(mask)
        assert found == Tally(int(mask.sum()), volume_ml, whole.pieces(mask)[1], *edges)


def test_volume_counts_each_slice_at_its_own_thickness() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 2, 2:4] = 1
    labels[3, 2, 2] = 1
    measured, _ = measure(tallies(labels, np.array([1.0, 2.0, 3.0, 5.0])), [EARS], [0.9], [0.0], [Within(1.0)])
    assert measured == (Measured(EARS, 3, 9.0, 2, 0.9, within=Within(1.0)),)


def test_nothing_found_has_no_confidence() -> None:
    measured, edge = measure(tallies(np.zeros((2, 3, 3), np.uint8), np.ones(2)), [EARS], [None], [0.0], [Within()])
    assert (measured, edge) == ((Measured(EARS, 0, 0.0, 0, None),), {})


@pytest.mark.parametrize(
    ("voxel", "edge"),
    [
        ((0, 2, 2), "the first or last slice"),
        ((3, 2, 2), "the first or last slice"),
        ((1, 0, 2), "the border of its slices"),
        ((1, 4, 2), "the border of its slices"),
        ((1, 2, 5), "the border of its slices"),
        ((3, 4, 2), "the first or last slice and the border of its slices"),
        ((1, 2, 2), None),
    ],
)
@pytest.mark.parametrize("exclusive", [True, False])
def test_the_edge_of_the_field_of_view(voxel: tuple[int, int, int], edge: str | None, exclusive: bool) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[voxel] = 1
    found = tallies(labels if exclusive else labels[None], np.ones(4), exclusive=exclusive)
    assert measure(found, [EARS], [0.9], [0.0], [Within(1.0)])[1] == ({1: edge} if edge else {})


@pytest.mark.parametrize(
    ("found", "at_edge", "expected"),
    [
        (Measured(EARS, 10, 1.0, 1, 0.95), {}, []),
        (Measured(EARS, 0, 0.0, 0, None), {}, ["empty"]),
        (Measured(EARS, 10, 0.4, 1, 0.95), {}, ["implausible_volume"]),
        (Measured(EARS, 10, 2.1, 1, 0.95), {}, ["implausible_volume"]),
        (Measured(EARS, 10, 1.0, 1, 0.95), {1: "an edge"}, ["touches_edge"]),
        (Measured(EARS, 10, 1.0, 1, LOW_CONFIDENCE - 0.01), {}, ["low_confidence"]),
        (Measured(EARS, 10, 1.0, 1, None), {}, []),
        (Measured(EARS, 10, 1.0, 2, 0.95), {}, []),
        (Measured(replace(EARS, one_piece=True), 10, 1.0, 2, 0.95), {}, ["several_pieces"]),
        (Measured(replace(EARS, one_piece=True), 10, 1.0, 1, 0.95), {}, []),
        (Measured(EARS, 10, 1.0, 1, 0.95, 0.09), {}, []),
        (Measured(EARS, 10, 1.0, 1, 0.95, 0.11), {}, ["pieces_left_out"]),
    ],
)
def test_a_segment_that_is_doubtful(
    found: Measured, at_edge: Mapping[int, str], expected: list[str], stack: Stack, tmp_path: Path
) -> None:
    assert codes(stack, make_bundle(tmp_path), found, at_edge) == expected


@pytest.mark.parametrize(
    ("modality", "expected_values", "values", "doubtful"),
    [
        ("CT", None, Values(-1000, 1200), False),
        ("CT", None, Values(-3024, 3071), False),
        ("CT", None, Values(0, 4095), True),  # stored values, rescale forgotten
        ("CT", None, Values(-1000, 30000), True),
        ("MR", None, Values(0, 4095), False),
        ("MR", None, Values(7, 7), True),
        ("MR", (0, 1000), Values(0, 900), False),
        ("MR", (0, 1000), Values(0, 1100), True),
        ("CT", (-1100, 2000), Values(-1200, 100), True),
    ],
)
def test_values_the_bundle_was_not_made_for(
    modality: str,
    expected_values: tuple[float, float] | None,
    values: Values,
    doubtful: bool,
    stack: Stack,
    tmp_path: Path,
) -> None:
    stack = replace(stack, series=replace(stack.series, modality=modality))
    bundle = make_bundle(tmp_path, expects=Expects(values=expected_values))
    found = Measured(EARS, 10, 1.0, 1, 0.95)
    assert codes(stack, bundle, found, values=values) == (["out_of_range"] if doubtful else [])


@pytest.mark.parametrize(
    ("hint", "description", "flagged"),
    [
        ("*FLAIR*", "Sag T1 MPRAGE", True),
        ("*FLAIR*", "ax flair fs", False),
        ("*FLAIR*", "", False),
        (None, "T1", False),
    ],
)
def test_a_series_that_says_it_is_something_else(
    hint: str | None, description: str, flagged: bool, stack: Stack, tmp_path: Path
) -> None:
    stack = replace(stack, series=replace(stack.series, description=description))
    bundle = make_bundle(tmp_path, expects=Expects(series_description=hint))
    found = Measured(EARS, 10, 1.0, 1, 0.95)
    assert codes(stack, bundle, found) == (["out_of_domain"] if flagged else [])


def test_warnings_of_the_geometry_are_flags_and_notes_are_not(stack: Stack, tmp_path: Path) -> None:
    findings = (Finding("bridged_gap", "no slice at 3 mm"), Finding("remark", "well", Level.NOTE))
    stack = replace(stack, findings=findings)
    found = flags(stack, make_bundle(tmp_path), [], {}, Values(-1000, 1000))
    assert found == (Flag("bridged_gap", "no slice at 3 mm"),)


def of(planes: np.ndarray) -> Values:
    samples = Samples()
    for plane in planes:
        samples.add(plane)
    assert len(samples) == len(planes)
    return samples.values()


@pytest.mark.parametrize(("slices", "side"), [(130, 100), (700, 20)])
def test_percentiles_are_those_of_numpy(slices: int, side: int) -> None:
    volume = np.random.default_rng(0).normal(40, 400, (slices, side, side)).astype(np.float32)
    found = of(volume)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(volume, [1, 99])), rel=0.02)
    assert of(volume[::-1]) == found
