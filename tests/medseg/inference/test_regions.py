"""Regions: a first pass says where the network looks. Against the full run, MONAI's of what is cut out, and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy import ndimage

from medseg.bundle.bundle import Bundle
from medseg.bundle.network import load_network
from medseg.bundle.recipe import Blend, Normalize, Orient, Resample, ScalePercentiles, ScaleRange, Step, Window
from medseg.bundle.region import (
    ByBody,
    ByBundle,
    ByThreshold,
    FirstPass,
    LookMode,
    Mirror,
    NotFound,
    Region,
    Statistics,
    View,
)
from medseg.dicom.series import ChannelImage, Stack, StackSource
from medseg.errors import MedsegError, RegionNotFound, Unforeseen, UsageError
from medseg.inference.labels import SegmentationResult
from medseg.inference.regions.boxes import PieceFinder, RegionBox, about_middle, merged, share_of, with_margin
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from tests.medseg.inference.phantoms import (
    SIGMOID,
    SIGMOID_LABELS,
    SOFTMAX,
    SOFTMAX_LABELS,
    Arriving,
    Collected,
    as_instances,
    blobs,
    make_bundle,
    make_segment,
    make_stack,
    monai_labels,
)
from tests.orientations import ORIENTATIONS

SHAPE = (24, 30, 28)
PLACE = (slice(9, 15), slice(12, 18), slice(10, 16))  # of what the first pass finds
BRIGHT = 2000.0
SCALE = ScaleRange(-100, 300, 0, 1, clip=True)
WINDOW = Window((10, 10, 10), (0.5,) * 3, Blend.GAUSSIAN, batch=3)
BY_BRIGHTNESS = ByThreshold(1000.0, None, 1.0)


def marked(*places: tuple[slice, slice, slice], value: float = BRIGHT) -> NDArray[np.float32]:
    array = blobs(SHAPE)
    for place in places:
        array[place] = value
    return array


def region(mode: LookMode = LookMode.WINDOWS, first: FirstPass = BY_BRIGHTNESS, margin_mm: float = 3.0) -> Region:
    statistics = Statistics.IMAGE if mode is LookMode.WINDOWS else Statistics.BOX
    return Region(first, mode, (margin_mm,) * 3, statistics=statistics)


def looked(stack: Stack, bundle: Bundle, region: Region) -> tuple[SegmentationResult, NDArray[np.uint8]]:
    sink = Collected()
    return segment(StackSource(stack), replace(bundle, region=region), sink), sink.labels


def full(stack: Stack, bundle: Bundle) -> NDArray[np.uint8]:
    sink = Collected()
    segment(StackSource(stack), bundle, sink)
    return sink.labels


def inside(result: SegmentationResult) -> NDArray[np.bool_]:
    """Of the image's voxels, those that the result says were looked at."""
    assert result.region is not None
    mask = np.zeros(result.stack.shape, np.bool_)
    for box in result.region.boxes:
        mask[tuple(slice(low, high + 1) for low, high in (box.slices, box.rows, box.columns))] = True
    return mask


def codes(result: SegmentationResult) -> set[str]:
    return {flag.code for flag in result.flags}


STEPS = (Orient("RAS"), Resample((1.5, 1.2, 1.7)), SCALE)
CASES: dict[str, tuple[tuple[Step, ...], Window, object, int]] = {
    "resampled": (STEPS, WINDOW, SOFTMAX, 0),
    "slices from the far end": ((Orient("LPI"), SCALE), WINDOW, SOFTMAX, 0),
    "sagittal, turned round": (STEPS, WINDOW, SOFTMAX_LABELS, 29),
    "bits, by labels": (STEPS, WINDOW, SIGMOID_LABELS, 11),
    "bits": ((SCALE,), Window((8, 12, 40), (0.25,) * 3), SIGMOID, 0),
    "percentiles of the image": ((Orient("RAS"), ScalePercentiles(1, 99, 0, 1, clip=True)), WINDOW, SOFTMAX, 5),
    "z-score of what is not zero": ((Resample((1.4,) * 3), Normalize(nonzero=True)), WINDOW, SOFTMAX, 0),
    "2D, neighbours": ((Orient("RAS"), SCALE), Window((12, 14), (0.5, 0.5), batch=4, slices=3), SOFTMAX, 0),
    "2D across, neighbours": ((Orient("RAS"), SCALE), Window((12, 14), (0.5,) * 2, slice_axis=0, slices=3), SOFTMAX, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_windows_that_meet_a_box_give_what_all_windows_would(case: str, tmp_path: Path) -> None:
    steps, window, finish, orientation = CASES[case]
    stack = make_stack(marked(PLACE), axes=ORIENTATIONS[orientation])
    bundle = make_bundle(tmp_path, steps=steps, window=window, finish=finish)  # type: ignore[arg-type]
    result, labels = looked(stack, bundle, region())
    mask, whole = inside(result), full(stack, bundle)
    assert 0.005 < mask.mean() < 0.1 and mask[PLACE].all()
    if labels.ndim == 4:
        mask = mask[:, None]
    assert np.array_equal(labels, whole * mask)
    assert len(np.unique(labels)) > 1
    assert result.region is not None and abs(result.region.share - inside(result).mean()) < 1e-9


@pytest.mark.parametrize("flaw", ["tilt", "gap"])
def test_windows_over_a_stack_that_must_be_taken_as_a_whole(flaw: str, tmp_path: Path) -> None:
    places = np.delete(np.arange(SHAPE[0] + 1.0), 5) if flaw == "gap" else None
    stack = make_stack(marked(PLACE), tilt_mm=0.6 if flaw == "tilt" else 0.0, coordinates=places)
    bundle = make_bundle(tmp_path, steps=STEPS, window=WINDOW)
    result, labels = looked(stack, bundle, region())
    assert np.array_equal(labels, full(stack, bundle) * inside(result))


@pytest.mark.parametrize("orientation", [0, 13, 38])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_is_looked_at_as_if_it_were_the_image(orientation: int, mirrored: bool, tmp_path: Path) -> None:
    """And a mirrored one as if the patient were: MONAI's own path over what is cut out, turned round with numpy."""
    array, axes = marked(PLACE), ORIENTATIONS[orientation]
    stack = make_stack(array, axes=axes)
    bundle = make_bundle(tmp_path, steps=(Orient("RAS"), ScalePercentiles(1, 99, 0, 1, clip=True)), window=WINDOW)
    by = region(LookMode.BOX, margin_mm=4.0)
    if mirrored:
        by = replace(by, views=(View(1, (Mirror.LEFT_RIGHT,), {1: 1, 2: 2}),))
    result, labels = looked(stack, bundle, by)
    assert result.region is not None
    (box,) = result.region.boxes
    place = tuple(slice(low, high + 1) for low, high in (box.slices, box.rows, box.columns))
    across = [axis for axis in range(3) if abs(axes[axis][0]) > 0.5] if mirrored else []
    cut = np.ascontiguousarray(np.flip(array[place], across))
    alone = make_stack(cut, axes=axes)
    expected = np.flip(monai_labels(cut, alone, bundle.recipe, load_network(bundle, torch.device("cpu")))[0], across)
    assert (labels[place] == expected).mean() >= 0.9999 and len(np.unique(expected)) > 1
    assert np.count_nonzero(labels) == np.count_nonzero(labels[place])
    assert box.mirrored == (("LR",) if mirrored else ())


def test_boxes_are_told_in_the_patients_millimetres(tmp_path: Path) -> None:
    stack = make_stack(marked(PLACE), spacing_mm=(2.0, 1.0, 1.5), origin_mm=(-20.0, 30.0, 10.0))
    bundle = make_bundle(tmp_path, steps=(SCALE,))
    by = replace(region(LookMode.BOX, margin_mm=0.0), first_pass=ByThreshold(1900.0, None, 0.5))
    result, _ = looked(stack, bundle, by)
    assert result.region is not None
    (box,) = result.region.boxes
    assert (box.slices, box.rows, box.columns) == ((9, 14), (12, 17), (10, 15))
    assert box.low_mm == (-20 + 9.5 * 1.5, 30 + 11.5, 10 + 8.5 * 2) and box.high_mm == (3.25, 47.5, 39.0)
    assert result.region.sentence.startswith(
        "Looked at 1 region (1.1% of the image) found by a first pass (values from"
    )


def first_bundle(folder: Path) -> Bundle:
    """Label 1 about 1000, label 2 about 2000, of what is blurred by nothing."""
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    folder.mkdir()
    bundle = make_bundle(folder, steps=(Orient("RAS"), ScaleRange(0, 1000, 0, 1, clip=False)), network=network, seed=9)
    weights = {"weight": torch.tensor([0.0, 2.0, 4.0]).view(3, 1, 1, 1, 1), "bias": torch.tensor([0.0, -1.4, -4.4])}
    save_file(weights, bundle.weights)
    return replace(bundle, name="first", digest=str(folder))


LEFT, RIGHT = (slice(9, 15), slice(12, 18), slice(3, 8)), (slice(9, 15), slice(12, 18), slice(20, 25))


def test_left_and_right_are_seen_alike_and_told_apart(tmp_path: Path) -> None:
    """The left is the right's mirror image, so its labels are, under numbers of their own."""
    half = blobs(SHAPE)[:, :, :14]
    array = np.concatenate([half, half[:, :, ::-1]], axis=2)
    array[LEFT], array[RIGHT] = 1000.0, 1000.0
    mirror = np.zeros_like(array)
    mirror[RIGHT] = 1000.0
    first = first_bundle(tmp_path / "first")
    bundle = make_bundle(tmp_path, steps=(Orient("RAS"), ScaleRange(-100, 900, 0, 1, clip=True)), window=WINDOW)
    bundle = replace(bundle, segments=tuple(make_segment(number) for number in range(1, 5)), first_pass=first)
    second = array + mirror  # the right one is brighter for the first pass, and no other for the second
    views = (View(1, (), {1: 1, 2: 2}), View(2, (Mirror.LEFT_RIGHT,), {1: 3, 2: 4}))
    by = replace(region(LookMode.BOX, ByBundle("first", (1, 2))), views=views)
    result, labels = looked(make_stack(second), bundle, by)
    assert result.region is not None
    assert [(box.label, box.mirrored) for box in result.region.boxes] == [(1, ()), (2, ("LR",))]
    left, right = labels * (labels < 3), np.where(labels > 2, labels - 2, 0)
    assert np.array_equal(left, right[:, :, ::-1]) and left.any()
    assert [found.segment.number for found in result.measured if found.voxels] == sorted(set(np.unique(labels)) - {0})
    assert all(found.confidence for found in result.measured if found.voxels)


def test_a_side_that_the_first_pass_does_not_find_is_said(tmp_path: Path) -> None:
    first = first_bundle(tmp_path / "first")
    bundle = replace(make_bundle(tmp_path, steps=(SCALE,), window=WINDOW), first_pass=first)
    bundle = replace(bundle, segments=tuple(make_segment(number) for number in range(1, 5)))
    views = (View(1, (), {1: 1, 2: 2}), View(2, (Mirror.LEFT_RIGHT,), {1: 3, 2: 4}))
    by = replace(region(LookMode.BOX, ByBundle("first", (1, 2))), views=views)
    result, labels = looked(make_stack(marked(LEFT, value=1000.0)), bundle, by)
    assert labels.any() and not (labels > 2).any()
    (flag,) = [flag for flag in result.flags if flag.code == "region_not_found"]
    lacking = f"the first pass (bundle first) found no {first.segments[1].label}"
    not_looked_for = ", ".join(segment.label for segment in bundle.segments[2:])
    assert flag.message == f"region not found: {lacking}, so phantom did not look for {not_looked_for}"


def test_where_views_overlap_the_first_that_finds_something_counts(tmp_path: Path) -> None:
    array = marked(LEFT, value=1000.0)
    array[9:15, 12:18, 9:14] = 2000.0
    first = first_bundle(tmp_path / "first")
    bundle = make_bundle(tmp_path, steps=(SCALE,), window=WINDOW)
    bundle = replace(bundle, segments=tuple(make_segment(number) for number in range(1, 5)), first_pass=first)
    views = (View(2, (), {1: 1, 2: 2}), View(1, (), {1: 3, 2: 4}))
    by = replace(region(LookMode.BOX, ByBundle("first"), margin_mm=4.0), views=views)
    labels = looked(make_stack(array), bundle, by)[1]
    alone, ahead = looked(make_stack(array), bundle, replace(by, views=views[:1]))
    behind = looked(make_stack(array), bundle, replace(by, views=views[1:]))[1]
    assert (inside(alone) & (behind > 0)).any()
    assert np.array_equal(labels, np.where(ahead > 0, ahead, behind))


def test_nothing_found_is_refused_or_said(tmp_path: Path) -> None:
    stack, bundle = make_stack(blobs(SHAPE)), make_bundle(tmp_path, steps=(SCALE,))
    with pytest.raises(RegionNotFound, match=r"series 1\.2\.3\.4: bundle phantom .* \(values from 1000\) found none"):
        looked(stack, bundle, region())
    result, labels = looked(stack, bundle, replace(region(), not_found=NotFound.FLAG))
    assert not labels.any() and result.empty
    assert "region_not_found" in codes(result)
    assert result.region is not None and (result.region.boxes, result.region.share) == ((), 0.0)


@pytest.mark.parametrize("mode", LookMode)
def test_everywhere_is_the_full_run_and_said(mode: LookMode, tmp_path: Path) -> None:
    stack, bundle = make_stack(blobs(SHAPE)), make_bundle(tmp_path, steps=STEPS, window=WINDOW)
    result, labels = looked(stack, bundle, region(mode, ByThreshold(-5000.0, None, 4.0)))
    assert np.array_equal(labels, full(stack, bundle))
    assert "region_everywhere" in codes(result)
    assert result.region is not None and result.region.everywhere


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_body_is_found_without_what_lies_beside_it(modality: str, tmp_path: Path) -> None:
    array = np.full((20, 40, 40), -1000.0 if modality == "CT" else 5.0, np.float32)
    array[4:16, 8:30, 6:32] = 40.0 if modality == "CT" else 400.0
    array[:, 36, 4:36] = 100.0 if modality == "CT" else 300.0  # a table
    stack = make_stack(array, modality=modality, spacing_mm=(2.0, 2.0, 2.0))
    result, _ = looked(stack, make_bundle(tmp_path, steps=(SCALE,)), region(LookMode.BOX, ByBody(4.0), 0.0))
    assert result.region is not None
    (box,) = result.region.boxes
    found = np.array([box.slices, box.rows, box.columns])
    assert np.abs(found - [[4, 15], [8, 29], [6, 31]]).max() <= 1


def test_what_reaches_the_edge_of_a_box_is_flagged(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, steps=(SCALE,), window=WINDOW)
    result, labels = looked(make_stack(marked(PLACE)), bundle, region(margin_mm=0.0))
    mask = inside(result)
    edge = mask & ~ndimage.binary_erosion(mask)
    numbers = {flag.segment for flag in result.flags if flag.code == "touches_region_edge"}
    assert numbers == set(np.unique(labels[edge])) - {0} and numbers


def test_a_first_pass_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = first_bundle(tmp_path / "first")
    bundle = make_bundle(tmp_path, steps=(SCALE,))
    save_file({"weight": torch.zeros(1)}, first.weights)
    with pytest.raises(MedsegError, match=r"^first pass \(bundle first\): bundle first: the weights do not fit"):
        looked(make_stack(blobs(SHAPE)), replace(bundle, first_pass=first), region(LookMode.BOX, ByBundle("first")))

    def fails(self: PieceFinder, plane: NDArray[np.uint8]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("medseg.inference.regions.first_pass.Between.forward", fails)
    with pytest.raises(Unforeseen, match=r"^first pass \(values from 1000\): ZeroDivisionError"):
        looked(make_stack(marked(PLACE)), bundle, region(LookMode.BOX))


def test_parts_of_an_image_have_no_exact_result(tmp_path: Path) -> None:
    bundle = replace(make_bundle(tmp_path, steps=(SCALE,)), region=region())
    with pytest.raises(UsageError, match="exact results are those of all windows"):
        segment(StackSource(make_stack(marked(PLACE))), bundle, Collected(), settings=Settings(exact=True))


@pytest.mark.parametrize("order", ["in order", "no order"])
@pytest.mark.parametrize("mode", LookMode)
def test_a_series_that_arrives_gives_the_same(order: str, mode: LookMode, tmp_path: Path) -> None:
    stack = as_instances(make_stack(marked(PLACE)))
    bundle = make_bundle(tmp_path, steps=STEPS, window=WINDOW)
    expected = looked(stack, bundle, region(mode))
    numbers: Sequence[int | None] = [None, *range(12), None, *range(12, 24)]
    if order == "no order":
        numbers = [int(n) for n in np.random.default_rng(0).permutation(24)]
    sink = Collected()
    result = segment(Arriving(stack, numbers), replace(bundle, region=region(mode)), sink)
    assert np.array_equal(sink.labels, expected[1])
    assert result.region == expected[0].region and result.flags == expected[0].flags
    assert (not result.streamed and "first pass" in str(result.streamed_reason)) or order == "no order"


def test_slices_are_decoded_once(tmp_path: Path) -> None:
    read: list[int] = []
    stack = make_stack(marked(PLACE))

    def counted(k: int, array: NDArray[np.float32]) -> NDArray[np.float32]:
        read.append(k)
        return array

    slices = tuple(replace(one, read=lambda k=k, one=one: counted(k, one.read())) for k, one in enumerate(stack.slices))
    bundle = make_bundle(tmp_path, steps=(Orient("RAS"), ScalePercentiles(1, 99, 0, 1, clip=True)), window=WINDOW)
    for mode in LookMode:
        read.clear()
        looked(replace(stack, slices=slices), bundle, region(mode))
        assert sorted(read) == list(range(24))


def test_channels_are_cut_out_alike(tmp_path: Path) -> None:
    """A second channel on the very grid, a third on one of its own; by the same channels cut out with numpy."""
    array, other = marked(PLACE), blobs(SHAPE, seed=4)
    stack, beside = make_stack(array), make_stack(other)
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 3, "kernel_size": 5, "padding": 2}
    bundle = replace(make_bundle(tmp_path, steps=(Orient("RAS"), SCALE), window=WINDOW, network=network), in_channels=2)
    by = replace(region(LookMode.BOX), views=(View(1, (Mirror.LEFT_RIGHT,), {1: 1, 2: 2}),))
    shifted = np.eye(4)
    for matrix in (None, shifted):
        both = (ChannelImage("a", stack), ChannelImage("b", beside, matrix))
        result, labels = looked(replace(stack, channels=both), bundle, by)
        assert result.region is not None
        (box,) = result.region.boxes
        place = tuple(slice(low, high + 1) for low, high in (box.slices, box.rows, box.columns))
        cut, second = (make_stack(np.ascontiguousarray(image[place][..., ::-1])) for image in (array, other))
        alone = replace(cut, channels=(ChannelImage("a", cut), ChannelImage("b", second)))
        assert np.array_equal(labels[place][..., ::-1], full(alone, bundle))
        result, labels = looked(replace(stack, channels=both), bundle, region())
        whole = full(replace(stack, channels=both), bundle)
        assert np.array_equal(labels, whole * inside(result))


def test_pieces_are_scipys() -> None:
    labels = (ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(14, 20, 18)), 1.2) * 9).clip(0, 2.4)
    labels = labels.astype(np.uint8)
    finder = PieceFinder([1, 2])
    for plane in labels:
        finder.add(plane)
    voxel_ml = np.linspace(1, 2, 14)
    expected = []
    for label in (1, 2):
        numbered, _ = ndimage.label(labels == label, np.ones((3, 3, 3)))
        for number, place in enumerate(ndimage.find_objects(numbered), 1):
            low, high = (tuple(getattr(axis, end) for axis in place) for end in ("start", "stop"))
            volume = float(((numbered == number).sum(axis=(1, 2)) * voxel_ml).sum())
            expected.append((label, low, high, round(volume, 6)))
    found = finder.end(voxel_ml.tolist())
    assert len(found) > 20
    told = [(one.box.label, one.box.low, one.box.high, round(one.volume_ml, 6)) for one in found]
    assert sorted(told) == sorted(expected)
    assert [one.volume_ml for one in found] == sorted((one.volume_ml for one in found), reverse=True)


def test_margins_are_the_patients_and_end_with_the_image() -> None:
    sagittal = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # slices left, rows feet, columns back
    stack = make_stack(np.zeros((10, 20, 30), np.float32), spacing_mm=(3.0, 1.0, 2.0), axes=sagittal)
    box = with_margin(RegionBox((4, 9, 2), (6, 11, 5), 7), stack, (4.0, 6.0, 2.0))
    assert (box.low, box.high, box.label) == ((2, 7, 0), (8, 13, 8), 7)
    uneven = replace(stack, coordinates=np.array([0, 1, 2, 3, 4, 5, 9, 10, 11, 12.0]))
    assert with_margin(RegionBox((4, 9, 2), (6, 11, 5)), uneven, (4.0, 0, 0)).high[0] == 7
    assert with_margin(RegionBox((0, 0, 0), (1, 1, 1)), stack, (0.0, 0.0, 0.0)).shape == (3, 3, 3)


def test_boxes_of_one_size_lie_about_the_middle_of_what_was_found() -> None:
    sagittal = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # slices left, rows feet, columns back
    stack = make_stack(np.zeros((10, 20, 30), np.float32), spacing_mm=(3.0, 1.0, 2.0), axes=sagittal)
    box = about_middle(RegionBox((4, 9, 12), (7, 11, 16), 7), stack, (12.0, 13.0, 6.0))
    assert (box.low, box.high, box.label) == ((3, 7, 11), (8, 13, 17), 7)  # each as far from both ends of the piece
    whole = about_middle(RegionBox((0, 0, 0), (1, 20, 30)), stack, (4.0, 99.0, 99.0))
    assert (whole.low, whole.shape) == ((0, 0, 0), (3, 20, 30))
    uneven = replace(stack, coordinates=np.array([0, 1, 2, 3, 4, 5, 9, 10, 11, 12.0]))
    assert about_middle(RegionBox((4, 9, 2), (6, 11, 5)), uneven, (24.0, 2, 2)).high[0] == 6


def test_boxes_of_one_label_that_meet_become_one() -> None:
    a, b, c = RegionBox((0, 0, 0), (4, 4, 4)), RegionBox((3, 3, 3), (6, 6, 6)), RegionBox((5, 5, 5), (7, 7, 7))
    assert merged([a, c, b], RegionBox.meets) == (RegionBox((0, 0, 0), (7, 7, 7)),)
    apart = replace(b, label=1)
    assert merged([a, apart], RegionBox.meets) == (a, apart)
    assert share_of([a, apart], (8, 8, 8)) == pytest.approx((64 + 27 - 1) / 512)
