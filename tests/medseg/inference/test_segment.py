"""The whole pipeline: against MONAI's own path, in memory, in pieces, and when it is told to stop."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medseg.bundle.bundle import Bundle, Postprocess
from medseg.bundle.network import load_network
from medseg.bundle.recipe import Blend, Normalize, Orient, Resample, ScaleRange, Step, Window
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.series import Finding, Stack, StackSource
from medseg.dicom.sources import read_series
from medseg.errors import GeometryRefused, InputError, Interrupted, InvalidBundle, UndecodablePixels, UsageError
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.progress import Progress, Stage
from tests.medseg.inference.phantoms import (
    SIGMOID,
    SIGMOID_LABELS,
    SOFTMAX,
    SOFTMAX_LABELS,
    Allocations,
    Arriving,
    Collected,
    blobs,
    make_bundle,
    make_segment,
    make_stack,
    monai_labels,
)
from tests.orientations import ORIENTATIONS

CPU = torch.device("cpu")
SCALE = ScaleRange(-100, 300, 0, 1, clip=True)


def agreement(array: NDArray[np.float32], stack: Stack, bundle: Bundle) -> float:
    """Share of voxels (of every bit plane) that equal MONAI's own path."""
    sink = Collected()
    segment(StackSource(stack), bundle, sink)
    expected = monai_labels(array, stack, bundle.recipe, load_network(bundle, CPU))
    found = sink.labels[None] if bundle.recipe.exclusive else sink.labels.swapaxes(0, 1)
    assert found.shape == expected.shape
    assert len(np.unique(expected)) > 1
    return float((found == expected).mean())


FINISHES = {
    "softmax": SOFTMAX,
    "softmax, labels": SOFTMAX_LABELS,
    "sigmoid": SIGMOID,
    "sigmoid, labels": SIGMOID_LABELS,
}
#: Every orientation with one finish, and every finish with each order of the axes, some of them turned round.
MET = [
    *(("softmax", n) for n in range(48)),
    *((finish, 8 * order + (3 * n + 5 * order) % 8) for n, finish in enumerate(FINISHES) for order in range(6) if n),
]


@pytest.mark.parametrize(("finish", "orientation"), MET)
def test_labels_are_monais_for_48_orientations(finish: str, orientation: int, tmp_path: Path) -> None:
    array = blobs((12, 18, 16), seed=orientation)
    stack = make_stack(array, spacing_mm=(2.0, 1.0, 1.2), axes=ORIENTATIONS[orientation])
    spacing = [(1.5, 1.5, 2.0), (1.2, 0.9, 1.7), (-1.0, 2.0, 1.0)][orientation % 3]
    bundle = make_bundle(tmp_path, steps=(Orient("RAS"), Resample(spacing), SCALE), finish=FINISHES[finish])
    assert agreement(array, stack, bundle) >= 0.9999


@pytest.mark.parametrize("orientation", range(0, 48, 7))
@pytest.mark.parametrize(
    ("steps", "window"),
    [
        ((SCALE,), Window((12, 12, 12), (0.25,) * 3)),
        ((Orient("LPI"), Normalize(nonzero=True)), Window((10, 20, 8), (0.6, 0.3, 0.5), Blend.GAUSSIAN, batch=3)),
        ((Resample((1.4, 1.4, 1.4)), Orient("RAS"), SCALE), Window((32, 32, 32), (0.5,) * 3)),
        ((Orient("RAS"), SCALE), Window((12, 14), (0.5, 0.5), batch=4, slice_axis=2)),
        ((Orient("RAS"), Resample((1.3, 1.3, -1)), SCALE), Window((-1, -1), (0.0, 0.0), batch=3, slice_axis=0)),
    ],
    ids=["as it lies", "z-score, gaussian", "resample first, padded", "2D by windows", "2D sagittal, whole slices"],
)
def test_labels_are_monais_for_other_recipes(
    orientation: int, steps: tuple[Step, ...], window: Window, tmp_path: Path
) -> None:
    array = blobs((12, 18, 16), seed=orientation)
    stack = make_stack(array, axes=ORIENTATIONS[orientation])
    bundle = make_bundle(tmp_path, steps=steps, window=window)
    assert agreement(array, stack, bundle) >= 0.9999


@pytest.mark.parametrize("tilt_mm", [0.5, -0.8])
def test_labels_of_a_tilted_stack_are_monais(tilt_mm: float, tmp_path: Path) -> None:
    array = blobs((14, 20, 18))
    stack = make_stack(array, tilt_mm=tilt_mm)
    bundle = make_bundle(tmp_path, steps=(Orient("RAS"), Resample((1.5, 1.5, 1.5)), SCALE))
    assert agreement(array, stack, bundle) >= 0.999


def test_the_largest_piece_is_kept_on_the_models_grid_where_the_recipe_says_so(tmp_path: Path) -> None:
    array = blobs((12, 18, 16))
    stack = make_stack(array)
    steps = (Orient("RAS"), SCALE)  # no resampling: the model's grid is the source's, so scipy can judge
    plain, largest = Collected(), Collected()
    bundle = make_bundle(tmp_path, steps=steps, finish=SOFTMAX_LABELS)
    segment(StackSource(stack), bundle, plain)
    kept = replace(bundle, recipe=replace(bundle.recipe, finish=replace(SOFTMAX_LABELS, keep_largest=(1,))))
    segment(StackSource(stack), kept, largest)
    numbered, count = ndimage.label(plain.labels == 1, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(numbered > 0, numbered, range(1, count + 1))
    assert count > 1
    assert np.array_equal(largest.labels == 1, numbered == 1 + np.argmax(sizes))
    assert np.array_equal(largest.labels == 2, plain.labels == 2)


def test_scores_of_the_whole_source_never_exist(tmp_path: Path) -> None:
    """No tensor is larger than the scores of one row of windows: neither the source, nor its resampled image."""
    array = blobs((120, 24, 24))
    bundle = make_bundle(
        tmp_path,
        steps=(Orient("RAS"), Resample((1.5, 1.5, 3.0)), SCALE),
        window=Window((8, 8, 8), (0.5,) * 3),
        channels=5,
    )
    stack = make_stack(array)
    segment(StackSource(stack), bundle, Collected())  # the network is loaded and kept
    with Allocations() as made:
        segment(StackSource(stack), bundle, Collected())
    assert max(made.numel) == 5 * 8 * 16 * 16  # for any number of slices


def test_the_sink_gets_every_plane_in_order_and_an_end(tmp_path: Path) -> None:
    array = blobs((9, 16, 14))
    sink = Collected()
    result = segment(StackSource(make_stack(array)), make_bundle(tmp_path), sink)
    labels = sink.labels
    assert labels.shape == array.shape
    voxel_ml = 2.0 * 1.0 * 1.0 / 1000
    for found in result.measured:
        mask = labels == found.segment.number
        assert found.voxels == mask.sum()
        assert found.volume_ml == pytest.approx(mask.sum() * voxel_ml)
        assert found.components == ndimage.label(mask, np.ones((3, 3, 3)))[1]
        assert found.confidence is None or 1 / 3 <= found.confidence <= 1
    assert (result.device, result.engine, result.precision) == ("cpu", "torch", "fp32")
    assert result.streamed
    assert result.streamed_reason is None
    assert set(result.timings_s) == {"read", "prepare", "infer", "restore", "encode", "total"}
    assert result.timings_s["infer"] > 0


def test_confidence_is_the_mean_winning_probability(tmp_path: Path) -> None:
    array = blobs((9, 16, 14))
    bundle = make_bundle(tmp_path, steps=(SCALE,), window=Window((-1, -1, -1), (0.0,) * 3))
    sink = Collected()
    result = segment(StackSource(make_stack(array)), bundle, sink)
    scaled = torch.from_numpy(array).sub(-100).div(400).clamp(0, 1).permute(2, 1, 0)[None, None]
    with torch.no_grad():
        best = load_network(bundle, CPU)(scaled).softmax(1)[0].max(0).values.permute(2, 1, 0).numpy()
    for found in result.measured:
        if found.voxels:
            assert found.confidence == pytest.approx(best[sink.labels == found.segment.number].mean(), abs=1e-5)


def test_postprocessing_is_applied_and_measured(tmp_path: Path) -> None:
    array = blobs((12, 18, 16))
    bundle = make_bundle(tmp_path, postprocess=Postprocess(keep_largest=(1, 2)))
    result = segment(StackSource(make_stack(array)), bundle, Collected())
    assert all(found.components <= 1 for found in result.measured)


def test_settings_replace_the_bundles_overlap_and_batch(tmp_path: Path) -> None:
    seen: list[Progress] = []
    bundle = make_bundle(tmp_path)
    stack = make_stack(blobs((20, 20, 20)))
    segment(StackSource(stack), bundle, Collected(), settings=Settings(overlap=0.0, batch=4), on_progress=seen.append)
    windows = [event for event in seen if event.stage is Stage.INFER]
    assert [event.done for event in windows] == [4, 8]  # 2 x 2 x 2 windows in two rows
    assert {event.total for event in windows} == {8}
    assert [event.done for event in seen if event.stage is Stage.READ] == list(range(1, 21))
    assert seen[-1] == Progress(Stage.ENCODE, 20, 20)


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"overlap": -0.1}, {"batch": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


@pytest.mark.parametrize("stage", [Stage.READ, Stage.PREPARE, Stage.INFER, Stage.RESTORE, Stage.ENCODE])
def test_a_wish_to_stop_leaves_the_sink_without_an_end(stage: Stage, tmp_path: Path) -> None:
    reached = threading.Event()

    def report(event: Progress) -> None:
        if event.stage is stage:
            reached.set()

    sink = Collected()
    with pytest.raises(Interrupted):
        segment(
            StackSource(make_stack(blobs((12, 16, 16)))),
            make_bundle(tmp_path),
            sink,
            on_progress=report,
            cancelled=reached.is_set,
        )
    assert not sink.ended


def test_a_slice_that_cannot_be_decoded_stops_the_run(tmp_path: Path) -> None:
    stack = make_stack(blobs((6, 16, 16)))

    def fail() -> None:
        raise UndecodablePixels("1.2.3", "1.2.840.10008.1.2.4.90", "cut short")

    broken = replace(stack, slices=(*stack.slices[:5], replace(stack.slices[5], read=fail)))
    sink = Collected()
    with pytest.raises(UndecodablePixels):
        segment(StackSource(broken), make_bundle(tmp_path), sink)
    assert not sink.ended


def test_several_input_channels_are_refused_in_words(tmp_path: Path) -> None:
    bundle = replace(make_bundle(tmp_path), in_channels=4)
    with pytest.raises(InputError, match="needs 4 series"):
        segment(StackSource(make_stack(blobs((4, 8, 8)))), bundle, Collected())


def test_more_labels_than_a_plane_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="255 labels"):
        segment(StackSource(make_stack(blobs((4, 8, 8)))), make_bundle(tmp_path, channels=257), Collected())


def test_findings_of_the_geometry_reach_the_reader(tmp_path: Path) -> None:
    stack = replace(make_stack(blobs((6, 16, 16))), findings=(Finding("bridged_gap", "no slice at 4.00 mm"),))
    result = segment(StackSource(stack), make_bundle(tmp_path), Collected())
    assert ("bridged_gap", "no slice at 4.00 mm") in [(flag.code, flag.message) for flag in result.flags]
    assert "no slice at 4.00 mm" in result.warnings


def phantom_stack(folder: Path, slices: int) -> Stack:
    write_series(make_series(shape=(slices, 16, 16)), folder)
    (series,) = read_series(folder)
    return classify(series).stacks[0]


def test_slices_of_a_source_are_put_in_order(tmp_path: Path) -> None:
    """DICOM slices in arrival order give the labels of the ordered stack."""
    ordered = phantom_stack(tmp_path / "dicom", 8)
    shuffled, straight = Collected(), Collected()
    bundle = make_bundle(tmp_path)
    result = segment(Arriving(ordered, [5, 2, 7, 0, 1, 6, 4, 3]), bundle, shuffled)
    segment(StackSource(ordered), bundle, straight)
    assert np.array_equal(shuffled.labels, straight.labels)
    assert [one.instance for one in result.stack.slices] == [one.instance for one in ordered.slices]


def test_slices_that_form_no_volume_are_refused_with_the_reason(tmp_path: Path) -> None:
    ordered = phantom_stack(tmp_path / "dicom", 12)
    sink = Collected()
    with pytest.raises(GeometryRefused) as refused:
        segment(Arriving(ordered, [0, 1, 2, 6, 7, 10, 11]), make_bundle(tmp_path), sink)
    assert refused.value.reason == "missing_slices"
    assert sink.exclusive is None


def test_labels_without_a_segment_are_background(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    all_of_them, some = Collected(), Collected()
    stack = make_stack(blobs((12, 16, 16)))
    segment(StackSource(stack), bundle, all_of_them)
    segment(StackSource(stack), replace(bundle, segments=(make_segment(2),)), some)
    assert np.array_equal(some.labels, np.where(all_of_them.labels == 2, 2, 0))


@pytest.mark.parametrize(
    "other", [{"device": "cuda"}, {"engine": "openvino"}, {"precision": "bf16"}, {"careful": True}], ids=str
)
def test_exact_results_are_those_of_torch_on_a_cpu_in_fp32(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="exact results"):
        Settings(exact=True, **other)


def test_an_exact_result_has_a_key_of_its_own(tmp_path: Path) -> None:
    from medseg.job.run import key_settings

    bundle = make_bundle(tmp_path)
    assert key_settings(bundle, Settings(exact=True)) == key_settings(bundle, Settings()) | {"exact": True}
