"""Where there is no value there is no label, and it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medseg.bundle.bundle import Expects, Postprocess
from medseg.bundle.load import load_bundle
from medseg.bundle.recipe import Resample
from medseg.dicom.series import StackSource
from medseg.errors import InputError
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.inference.valueless import Valueless
from tests.medseg.bundle import zoo
from tests.medseg.inference.phantoms import (
    SIGMOID,
    SOFTMAX_LABELS,
    STEPS,
    Arriving,
    Collected,
    as_instances,
    blobs,
    make_bundle,
    make_stack,
)

NONE = (np.nan, np.inf, -np.inf)
SHAPE = (10, 18, 20)


def some_gone(array: NDArray[np.float32], seed: int, share: float = 0.3) -> NDArray[np.bool_]:
    """Take values away in place; where they are gone."""
    chance = np.random.default_rng(seed)
    gone = chance.random(array.shape) < share
    gone[2], gone[4] = True, False  # a plane without any, one with all
    array[gone] = chance.choice(NONE, gone.sum())
    return gone


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0), rows=st.integers(1, 9), columns=st.integers(1, 9), channels=st.sampled_from([0, 1, 3]))
def test_what_is_seen_is_cleared(seed: int, rows: int, columns: int, channels: int) -> None:
    chance = np.random.default_rng(seed)
    valueless, total = Valueless(-7.0), 0
    for n in range(4):
        plane = chance.normal(size=(rows, columns)).astype(np.float32)
        gone = chance.random(plane.shape) < chance.choice([0.0, 0.2, 1.0])
        plane[gone] = chance.choice(NONE, gone.sum())
        filled, values = valueless.see(plane)
        assert np.array_equal(filled, np.where(gone, np.float32(-7), plane))
        assert np.array_equal(values.ravel(), plane[~gone])
        labels = chance.integers(0, 5, (channels, rows, columns) if channels else (rows, columns)).astype(np.uint8)
        assert np.array_equal(valueless.clear(n, labels), np.where(gone, 0, labels))
        total += int(gone.sum())
    assert valueless.voxels == total


WAYS = {
    "along a track": {},
    "overlapping labels": {"finish": SIGMOID},
    "resampled, labels brought back to the nearest": {
        "steps": (STEPS[0], Resample((5.0, 4.0, 9.0)), STEPS[1]),
        "finish": SOFTMAX_LABELS,
    },
    "finer": {"steps": (STEPS[0], Resample((0.7, 0.9, 0.8)), STEPS[1])},
    "by MONAI": {"fallback": "for this test"},
    "cleaned": {"postprocess": Postprocess((1,), fill_holes=True, min_volume_ml=0.01)},
}


@pytest.mark.parametrize("arriving", [False, True, None], ids=["all there", "arriving", "arriving backwards"])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_no_label_where_there_is_no_value(tmp_path: Path, how: dict[str, Any], arriving: bool | None) -> None:
    array = blobs(SHAPE)
    gone = some_gone(array, 1)
    if "fallback" in how:
        bundle = load_bundle(zoo.threshold(tmp_path))
        bundle = replace(bundle, recipe=replace(bundle.recipe, fallback="for this test"))
    else:
        bundle = make_bundle(tmp_path, **how)
    stack = as_instances(make_stack(array))
    order = list(range(len(stack.slices)))
    source = StackSource(stack)
    if arriving is not False:
        source = Arriving(stack, order if arriving else order[::-1], len(order))  # type: ignore[assignment]
    sink = Collected()
    result = segment(source, bundle, sink)
    labels = sink.labels if sink.exclusive else sink.labels.max(axis=1)
    assert labels.any()
    assert not labels[gone].any()
    per_segment = sink.labels if sink.exclusive else None
    for place, found in enumerate(result.measured):
        mask = per_segment == found.segment.number if per_segment is not None else sink.labels[:, place] > 0
        assert found.voxels == mask.sum()
        assert found.volume_ml == pytest.approx(mask.sum() * 2.0 / 1000)
    (flag,) = [flag for flag in result.flags if flag.code == "no_value"]
    assert flag.message.startswith(f"{gone.sum()} voxels (")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0), share=st.floats(0, 0.99))
def test_labels_elsewhere_are_those_of_the_floor(tmp_path: Path, seed: int, share: float) -> None:
    array = blobs((6, 16, 16), seed=seed % 1000)
    chance = np.random.default_rng(seed)
    gone = chance.random(array.shape) < share
    gone[0, 0, 0] = False
    bundle = make_bundle(tmp_path)
    expected, found = Collected(), Collected()
    segment(StackSource(make_stack(np.where(gone, np.float32(-1024), array))), bundle, expected)
    array[gone] = chance.choice(NONE, gone.sum())
    segment(StackSource(make_stack(array)), bundle, found)
    assert np.array_equal(found.labels, np.where(gone, 0, expected.labels))


@pytest.mark.parametrize(
    ("modality", "expects", "floor"),
    [
        ("CT", (), "-1024"),
        ("MR", ("CT",), "0"),
        ("", ("CT",), "-1024"),
        ("", ("CT", "MR"), "0"),
        ("", (), "0"),
    ],
)
def test_the_floor_is_the_modalitys(tmp_path: Path, modality: str, expects: tuple[str, ...], floor: str) -> None:
    array = blobs((4, 8, 8))
    array[1, 2, 3] = np.nan
    bundle = make_bundle(tmp_path, expects=Expects(modality=expects))
    result = segment(StackSource(make_stack(array, modality=modality)), bundle, Collected())
    (flag,) = [flag for flag in result.flags if flag.code == "no_value"]
    assert flag.message.endswith(f"taken as {floor} and given no label")


def test_nothing_but_gaps_is_refused(tmp_path: Path) -> None:
    array = np.full((4, 8, 8), np.nan, np.float32)
    with pytest.raises(InputError, match=r"1\.2\.3\.4: none of its 256 voxels has a finite value"):
        segment(StackSource(make_stack(array)), make_bundle(tmp_path), Collected())


def test_exact_scores_are_no_exception(tmp_path: Path) -> None:
    array = blobs(SHAPE)
    gone = some_gone(array, 3)
    sink = Collected()
    segment(StackSource(make_stack(array)), make_bundle(tmp_path), sink, settings=Settings(exact=True))
    assert sink.labels.any()
    assert not sink.labels[gone].any()
