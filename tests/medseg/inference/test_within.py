"""What is said of the image within segments, beside whole arrays; and that no slice is read twice for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.bundle.bundle import Bundle, Postprocess
from medseg.bundle.recipe import Orient, Resample, ScalePercentiles, ScaleRange, Window
from medseg.bundle.region import ByThreshold, LookMode, Region
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.series import ChannelImage, SliceSource, Stack, StackSource
from medseg.inference.labels import SegmentationResult, Within
from medseg.inference.pieces.statistics import SegmentSums
from medseg.inference.segment import segment
from tests.medseg.inference.phantoms import SIGMOID, Arriving, Collected, as_instances, blobs, make_bundle, make_stack
from tests.orientations import ORIENTATIONS

STEPS = (Orient("RAS"), Resample((1.5, 1.2, 1.7)), ScaleRange(-100, 300, 0, 1, clip=True))
WINDOW = Window((10, 10, 10), (0.5,) * 3, batch=3)
SHAPE = (20, 24, 22)


def counted(stack: Stack, read: Counter[int]) -> Stack:
    """The same stack, whose reads are counted slice by slice."""

    def one(k: int, slice_: Slice) -> Slice:
        def count() -> Pixels:
            read[k] += 1
            return slice_.read()

        return replace(slice_, read=count)

    return replace(stack, slices=tuple(one(k, slice_) for k, slice_ in enumerate(stack.slices)))


def within(stack: Stack, masks: NDArray[np.bool_]) -> list[Within]:
    """By whole arrays; masks: (segments, k, j, i)."""
    values = np.stack([slice_.read() for slice_ in stack.slices]).astype(np.float64)
    k, j, i = np.indices(stack.shape)
    ones = np.ones_like(k)
    places = np.stack([stack.coordinates[k], j, i, ones], axis=-1) @ stack.affine[:3].T
    return [
        Within(float(values[mask].mean()), float(values[mask].std()), tuple(places[mask].mean(axis=0).tolist()))
        if mask.any()
        else Within()
        for mask in masks
    ]


def assert_same(found: list[Within], expected: list[Within]) -> None:
    for mine, its in zip(found, expected, strict=True):
        if its == Within():
            assert mine == its
        else:
            assert (mine.mean, mine.sd) == pytest.approx((its.mean, its.sd), rel=1e-9)
            assert mine.centroid_mm == pytest.approx(its.centroid_mm, abs=1e-9)


def changed(bundle: Bundle, **facts: Any) -> Bundle:
    return replace(bundle, **facts)


BY_BRIGHTNESS = Region(ByThreshold(1000.0, None, 1.0), LookMode.WINDOWS, (3.0,) * 3)
CLEANED = Postprocess(keep_largest=(1,), fill_holes=True, min_volume_ml=0.05)
WAYS: dict[str, tuple[Callable[[Stack], SliceSource], dict[str, Any], Callable[[Bundle], Bundle]]] = {
    "all there": (StackSource, {}, lambda one: one),
    "cleaned": (StackSource, {}, lambda one: changed(one, postprocess=CLEANED)),
    "overlapping": (StackSource, {"finish": SIGMOID}, lambda one: changed(one, postprocess=CLEANED)),
    "in order": (lambda stack: Arriving(stack, [None, *range(20)]), {}, lambda one: one),
    "from the far end": (lambda stack: Arriving(stack, range(19, -1, -1), expected=20), {}, lambda one: one),
    "in no order": (lambda stack: Arriving(stack, [*range(1, 20, 2), *range(0, 20, 2)]), {}, lambda one: one),
    "percentiles": (StackSource, {"steps": (Orient("RAS"), ScalePercentiles(1, 99, 0, 1, clip=True))}, lambda one: one),
    "tilted, as a whole": (StackSource, {}, lambda one: one),
    "regions": (StackSource, {}, lambda one: changed(one, region=BY_BRIGHTNESS)),
}


@pytest.mark.parametrize("way", WAYS)
def test_as_of_the_whole_array_and_no_slice_is_read_twice(way: str, tmp_path: Path) -> None:
    source, facts, change = WAYS[way]
    array = blobs(SHAPE)
    array[8:13, 9:15, 8:14] = 2000
    array[5, 3, 3] = 0.25  # so that one plane is none of whole numbers
    array[array != 0.25] = np.rint(array[array != 0.25])
    read: Counter[int] = Counter()
    plain = as_instances(make_stack(array, axes=ORIENTATIONS[17], tilt_mm=0.5 if "tilted" in way else 0.0))
    bundle = change(make_bundle(tmp_path, **({"steps": STEPS, "window": WINDOW} | facts)))
    result, masks = run(source(counted(plain, read)), bundle)
    assert set(read.values()) == {1} and len(read) == 20
    assert masks.any(axis=(1, 2, 3)).any()
    assert_same([one.within for one in result.measured], within(plain, masks))


def run(source: SliceSource, bundle: Bundle) -> tuple[SegmentationResult, NDArray[np.bool_]]:
    sink = Collected()
    result = segment(source, bundle, sink)
    numbers = [one.segment.number for one in result.measured]
    labels = sink.labels
    return result, labels == np.reshape(numbers, (-1, 1, 1, 1)) if labels.ndim == 3 else labels.swapaxes(0, 1) > 0


def test_of_several_channels_the_values_are_the_references(tmp_path: Path) -> None:
    read, other = Counter[int](), Counter[int]()
    stack, beside = make_stack(blobs(SHAPE)), make_stack(blobs(SHAPE, seed=4))
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 3, "kernel_size": 5, "padding": 2}
    bundle = replace(make_bundle(tmp_path, steps=STEPS, window=WINDOW, network=network), in_channels=2)
    own, its = counted(stack, read), counted(beside, other)
    both = ChannelImage("a", own), ChannelImage("b", its)
    result, masks = run(StackSource(replace(own, channels=both)), bundle)
    assert set(read.values()) == set(other.values()) == {1}
    assert_same([one.within for one in result.measured], within(stack, masks))


def test_voxels_of_slices_of_other_thickness_count_by_their_volume() -> None:
    stack = make_stack(np.zeros((3, 4, 4), np.float32))
    sums = SegmentSums([1], exclusive=True)
    labels = np.ones((4, 4), np.uint8)
    for k, voxel_ml in enumerate((1.0, 0.0, 3.0)):
        sums.add(labels, np.full((4, 4), float(k), np.float32), stack.slices[k].plane, voxel_ml)
    (found,) = sums.end()
    first, last = (stack.slices[k].plane.position_mm for k in (0, 2))
    assert found.mean == 1.0  # each voxel once
    assert found.centroid_mm is not None
    assert found.centroid_mm[2] == pytest.approx((first + 3 * last)[2] / 4)
