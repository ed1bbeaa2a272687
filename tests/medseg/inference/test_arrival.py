"""Slices in whatever order they come: the same bits as from the whole series, and as early as can be."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.network import load_network
from medseg.bundle.recipe import (
    Activation,
    Blend,
    Interpolation,
    Normalize,
    Orient,
    Recipe,
    Resample,
    ScaleMinMax,
    ScalePercentiles,
    ScaleRange,
    Step,
    Window,
)
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Slice
from medseg.dicom.series import SliceSource, Stack, StackSource
from medseg.errors import GeometryRefused, Interrupted, OutputNotWritable, UndecodablePixels
from medseg.inference import segment as segmenting
from medseg.inference.arriving import intake, passage
from medseg.inference.arriving.axis import SliceAxis, axis_through, rounded_spacing
from medseg.inference.grids.restore import activate
from medseg.inference.labels import SegmentationResult
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.progress import Progress, Stage
from tests.medseg.inference.phantoms import (
    SIGMOID,
    SOFTMAX,
    SOFTMAX_LABELS,
    Arriving,
    Collected,
    as_instances,
    blobs,
    make_bundle,
    make_stack,
    monai_labels,
)
from tests.orientations import ORIENTATIONS

SCALE = ScaleRange(-100, 300, 0, 1, clip=True)
STEPS = (Orient("RAS"), Resample((1.4, 1.3, 1.7)), SCALE)
GATHERED = [  # steps that need to know the whole volume, on either side of the resampling, or without one
    (Orient("RAS"), Resample((1.4, 1.3, 1.7)), ScalePercentiles(1, 99, 0, 1, clip=True)),
    (Normalize(nonzero=True), Orient("RAS"), Resample((1.4, 1.3, 1.7))),
    (Orient("RAS"), SCALE, ScaleMinMax(), Resample((-1, -1, 1.5))),
    (Orient("RAS"), SCALE, Resample((1.1, 1.2, 2.5)), Normalize(), ScaleRange(-2, 2, 0, 1, clip=True)),
    (ScalePercentiles(5, 95, 0, 1, clip=False),),
]
TORCH = Settings(engine="torch")
NETWORKS = [
    None,
    {"_target_": "medseg.networks.MeshNet", "channels": 4, "dilations": [1, 2, 1]},
    {"_target_": "medseg.networks.UNet2015", "widths": [4, 8], "norm": "batch"},
]


def outcome(source: SliceSource, bundle: Bundle, how: Settings = TORCH) -> tuple[SegmentationResult, NDArray[np.uint8]]:
    sink = Collected()
    result = segment(source, bundle, sink, settings=how)
    assert sink.ended
    return result, sink.labels


def facts(result: SegmentationResult) -> tuple[object, ...]:
    return result.measured, result.flags, result.stack.slices


def forward(stack: Stack, recipe: Recipe) -> list[int]:
    """Numbers of the slices in the order of the track."""
    track = axis_through(stack, recipe)
    assert isinstance(track, SliceAxis), track
    return [next(k for k, one in enumerate(stack.slices) if one is other) for other in track.slices]


class Layers:
    """What each layer of a bundle's network is given and gives: the same bits for the same, one hopes of torch."""

    def __init__(self, bundle: Bundle) -> None:
        self._given: dict[tuple[object, ...], bytes] = {}
        self.unsteady: set[str] = set()
        for name, layer in segmenting.NETWORKS.get(bundle, torch.device("cpu")).named_modules():
            if not list(layer.children()):
                layer.register_forward_hook(partial(self._note, f"{name} {layer}"))

    def _note(self, name: str, _: nn.Module, given: tuple[torch.Tensor, ...], gave: torch.Tensor) -> None:
        key = (name, *((one.shape, one.stride(), one.numpy().tobytes()) for one in given))
        bits = gave.numpy().tobytes()
        if self._given.setdefault(key, bits) != bits:
            self.unsteady.add(name)


@st.composite
def orders(draw: st.DrawFn, count: int) -> list[int | None]:
    """Orders of arrival along a track: straight, jumbled a little, in two strands, backwards, at random; pauses."""
    straight: list[int] = list(range(count))
    kind = draw(st.sampled_from(["straight", "straight", "jumbled", "strands", "backwards", "random"]))
    if kind == "jumbled":
        straight.sort(key=lambda k: k + draw(st.sampled_from([0.0, 0.1, 2.2])))
    elif kind == "strands":
        straight = straight[::2] + straight[1::2]
    elif kind == "backwards":
        straight = straight[::-1]
    elif kind == "random":
        straight = draw(st.permutations(straight))
    pauses = draw(st.sets(st.integers(0, count)))
    return [one for k in range(count + 1) for one in ([None] if k in pauses else []) + straight[k : k + 1]]


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_order_gives_the_bits_of_the_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    compare_orders(data.draw, tmp_path_factory.mktemp("bundle"))


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(data=st.data())
def test_any_of_many_orders(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    compare_orders(data.draw, tmp_path_factory.mktemp("bundle"))


def compare_orders(draw: Callable[..., Any], folder: Path) -> None:
    count = draw(st.integers(3, 36))
    stack = as_instances(
        make_stack(
            blobs((count, 14, 12), seed=count),
            spacing_mm=(draw(st.sampled_from([2.0, 0.625, 1.1, 3.3])), 1.2, 1.0),
            axes=ORIENTATIONS[draw(st.integers(0, 47))],
        )
    )
    steps = draw(
        st.sampled_from(
            [
                STEPS,
                (SCALE,),
                (Orient("LPI"), SCALE),
                (Orient("RAS"), Resample((-1, -1, -1)), SCALE),
                (Orient("RAS"), SCALE, Resample((0.9, 0.8, 0.7), Interpolation.NEAREST)),
                (Resample((1.5, 1.5, 1.5)), SCALE),
                *GATHERED,
            ]
        )
    )
    roi = draw(st.sampled_from([(6, 7, 8), (9, 9, 5), (8, 8)]))
    overlap = (draw(st.sampled_from([0.25, 0.5, 0.7])),) * len(roi)
    blend = draw(st.sampled_from(Blend))
    slices = draw(st.sampled_from([1, 3, 7])) if len(roi) == 2 else 1
    window = Window(roi, overlap, blend, batch=draw(st.sampled_from([1, 3, 40])), slices=slices)
    finish = draw(st.sampled_from([SOFTMAX, SOFTMAX_LABELS, SIGMOID]))
    network = draw(st.sampled_from(NETWORKS))
    if network is not None:
        network = network | {"spatial_dims": len(roi), "in_channels": slices, "out_channels": 3}
    bundle = make_bundle(folder, steps=steps, window=window, finish=finish, network=network)
    along = forward(stack, bundle.recipe)
    order = [None if n is None else along[n] for n in draw(orders(count))]
    said = draw(st.sampled_from([None, count, count, count + 2, count - 2]))
    how = replace(TORCH, exact=draw(st.booleans()))
    layers = Layers(bundle)
    expected, labels = outcome(StackSource(stack), bundle, how)
    found, arrived = outcome(Arriving(stack, order, said), bundle, how)
    assert np.array_equal(arrived, labels)
    assert found.exact == how.exact
    assert facts(found) == facts(expected), f"torch gave other bits for the same in layers {layers.unsteady}"
    if bundle.recipe.barriers():
        assert found.streamed_reason is not None
        return
    assert expected.streamed
    nearest = finish.nearest or any(
        isinstance(step, Resample) and step.interpolation is Interpolation.NEAREST for step in steps
    )
    came = [k for k in order if k is not None]
    if not nearest and (came == along or (came == along[::-1] and said == count)):
        assert found.streamed, found.streamed_reason  # but half-way places may turn with the last bit


class Noted(Collected):
    """How many slices had been asked for when a stage had done so much."""

    def __init__(self, source: Arriving) -> None:
        super().__init__()
        self.source = source
        self.when: dict[Stage, list[int]] = {stage: [] for stage in Stage}

    def report(self, event: Progress) -> None:
        self.when[event.stage] += [self.source.asked] * (event.done - len(self.when[event.stage]))


def with_pauses(order: Sequence[int]) -> list[int | None]:
    return [one for k in order for one in (k, None)]


@pytest.mark.parametrize("steps", [STEPS, (Orient("RAS"), SCALE)], ids=["resampled", "as they are"])
def test_windows_run_and_label_planes_are_there_while_slices_come(steps: tuple[Step, ...], tmp_path: Path) -> None:
    stack = as_instances(make_stack(blobs((60, 16, 16)), spacing_mm=(1.7, 1.3, 1.4)))
    bundle = make_bundle(tmp_path, steps=steps, window=Window((8, 8, 8), (0.5,) * 3, batch=4))
    source = Arriving(stack, with_pauses(range(60)))
    sink = Noted(source)
    result = segment(source, bundle, sink, on_progress=sink.report)
    assert result.streamed
    windows, planes = sink.when[Stage.INFER], sink.when[Stage.RESTORE]
    per_row = len(windows) // 14  # 60 slices, one row of 8 at every fourth
    for row in range(14):
        assert windows[(row + 1) * per_row - 1] <= 2 * (4 * row + 8) + 2, "a row waits for no slice but its own"
    assert planes[0] <= 2 * 12 + 2, "the first planes are there when the second row may run"
    assert planes[29] <= 2 * 42 + 2


def test_backwards_with_a_known_number_windows_run_while_slices_come(tmp_path: Path) -> None:
    stack = as_instances(make_stack(blobs((60, 16, 16)), spacing_mm=(1.7, 1.3, 1.4)))
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3, batch=4))
    source = Arriving(stack, with_pauses(range(59, -1, -1)), expected=60)
    sink = Noted(source)
    result = segment(source, bundle, sink, settings=TORCH, on_progress=sink.report)
    assert result.streamed
    windows, planes = sink.when[Stage.INFER], sink.when[Stage.RESTORE]
    per_row = len(windows) // 14
    for row in range(14):
        assert windows[(row + 1) * per_row - 1] <= 2 * (4 * row + 8) + 2, "a row waits for no slice but its own"
    assert planes[0] <= 2 * 12 + 2
    assert planes[29] <= 2 * 42 + 2


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_the_same_bits_however_slices_come_and_windows_are_batched(exact: bool, overlap: float, tmp_path: Path) -> None:
    """Labels, and mean probabilities as sums of scores: twice, batches of 1 and 4, from either end, shuffled."""
    stack = as_instances(make_stack(blobs((33, 16, 18))))
    network = NETWORKS[2] | {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((9, 8, 10), (overlap,) * 3, batch=4), network=network)
    ascending, shuffled = list(range(33)), list(np.random.default_rng(0).permutation(33))
    how = replace(TORCH, exact=exact)
    sources = {
        "all there": StackSource(stack),
        "again": StackSource(stack),
        "ascending": Arriving(stack, ascending),
        "descending": Arriving(stack, ascending[::-1]),
        "descending, number known": Arriving(stack, ascending[::-1], 33),
        "shuffled": Arriving(stack, shuffled),
        "shuffled, number known": Arriving(stack, shuffled, 33),
    }
    results = {name: outcome(source, bundle, how) for name, source in sources.items()}
    if not exact:  # MONAI's own bits are others for other batches
        results["one by one"] = outcome(StackSource(stack), bundle, replace(how, batch=1))
    expected, labels = results["all there"]
    for name, (found, arrived) in results.items():
        assert np.array_equal(arrived, labels), name
        assert facts(found) == facts(expected), name
    assert {name for name, (found, _) in results.items() if not found.streamed} == {
        "descending",
        "shuffled",
        "shuffled, number known",
    }
    assert "their number was not known" in str(results["descending"][0].streamed_reason)


@pytest.mark.parametrize("activation", Activation)
@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 30), st.integers(1, 30)), data=st.data())
def test_a_plane_of_a_slab_has_the_bits_of_the_plane_by_itself(
    activation: Activation, shape: tuple[int, ...], data: st.DataObject
) -> None:
    """How many slices leave together depends on which end they come from."""
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    k = data.draw(st.integers(0, shape[1] - 1))
    assert torch.equal(activate(scores[:, k], activation), activate(scores[:, k].clone(), activation))


@pytest.mark.parametrize(("said", "why"), [(38, "more than 38 slices"), (42, "lies otherwise")])
def test_a_wrong_number_of_slices_costs_time_alone(said: int, why: str, tmp_path: Path) -> None:
    stack = as_instances(make_stack(blobs((40, 16, 16))))
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3))
    expected, labels = outcome(StackSource(stack), bundle)
    found, arrived = outcome(Arriving(stack, range(39, -1, -1), said), bundle)
    assert np.array_equal(arrived, labels)
    assert facts(found) == facts(expected)
    assert why in str(found.streamed_reason)


def test_exact_labels_are_monais(tmp_path: Path) -> None:
    array = blobs((40, 18, 16))
    stack = as_instances(make_stack(array))
    network = NETWORKS[2] | {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    steps = (Orient("RAS"), SCALE)
    bundle = make_bundle(tmp_path, steps=steps, window=Window((8, 8, 8), (0.6,) * 3, batch=3), network=network)
    expected = monai_labels(array, stack, bundle.recipe, load_network(bundle, torch.device("cpu")).eval())[0]
    for source in (Arriving(stack, with_pauses(range(40))), Arriving(stack, range(39, -1, -1), 40)):
        found, labels = outcome(source, bundle, replace(TORCH, exact=True))
        assert found.streamed and found.exact
        assert np.array_equal(labels, expected)


def test_what_arrives_is_monais(tmp_path: Path) -> None:
    array = blobs((40, 18, 16))
    stack = as_instances(make_stack(array))
    bundle = make_bundle(tmp_path, steps=STEPS)
    found, labels = outcome(Arriving(stack, with_pauses(range(40))), bundle)
    expected = monai_labels(array, stack, bundle.recipe, load_network(bundle, torch.device("cpu")))[0]
    assert found.streamed
    assert np.mean(labels == expected) >= 0.9999


@pytest.mark.parametrize("steps", [(SCALE,), (SCALE, Normalize())], ids=["streamed", "gathered"])
def test_decoded_and_prepared_planes_are_let_go_behind_the_rows(steps: tuple[Step, ...], tmp_path: Path) -> None:
    alive: list[weakref.ref[NDArray[np.float32]]] = []
    most = 0

    def watched(one: Slice) -> Slice:
        def read() -> NDArray[np.float32]:
            plane = np.array(one.read())
            alive.append(weakref.ref(plane))
            return plane

        return replace(one, read=read)

    stack = as_instances(make_stack(blobs((120, 16, 16))))
    stack = replace(stack, slices=tuple(watched(one) for one in stack.slices))
    bundle = make_bundle(tmp_path, steps=(Orient("RAS"), *steps), window=Window((8, 8, 8), (0.5,) * 3))

    def report(_: Progress) -> None:
        nonlocal most
        gc.collect(0)
        most = max(most, sum(one() is not None for one in alive))

    backwards = range(119, -1, -1)
    for source in (
        Arriving(stack, with_pauses(range(120))),
        StackSource(stack),
        Arriving(stack, backwards),
        Arriving(stack, with_pauses(backwards), 120),
    ):
        alive.clear()
        segment(source, bundle, Collected(), on_progress=report)
        assert len(alive) == 120, "each slice is decoded once"
    assert most <= 8 + 2 * 8 + 2


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        (lambda ks: [*ks[:20], *ks[25:], *ks[20:25]], None),  # a few late: waited for
        (lambda ks: [*ks[5:], *ks[:5]], "room for"),  # slices before the first
        (lambda ks: ks[::-1], "end where the last windows lie"),
    ],
    ids=["late", "before the first", "backwards"],
)
def test_what_contradicts_the_first_slices_is_done_again(
    slices: Callable[[list[int]], list[int]], why: str | None, tmp_path: Path
) -> None:
    stack = as_instances(make_stack(blobs((40, 16, 16))))
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3))
    expected, labels = outcome(StackSource(stack), bundle)
    found, arrived = outcome(Arriving(stack, with_pauses(slices(list(range(40))))), bundle)
    assert np.array_equal(arrived, labels)
    assert facts(found) == facts(expected)
    assert found.streamed == (why is None)
    assert why is None or why in str(found.streamed_reason)


def test_a_gap_that_shows_at_the_end_is_bridged_as_in_the_whole(tmp_path: Path) -> None:
    whole = as_instances(make_stack(blobs((40, 16, 16))))
    slices = [one for k, one in enumerate(whole.slices) if k != 30]
    (stack,) = classify(whole.series, slices).stacks
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3))
    expected, labels = outcome(StackSource(stack), bundle)
    found, arrived = outcome(Arriving(stack, with_pauses(range(39))), bundle)
    assert np.array_equal(arrived, labels)
    assert facts(found) == facts(expected)
    assert not found.streamed and not expected.streamed
    assert "lack one" in str(found.streamed_reason)


def test_a_slice_that_comes_again_takes_the_others_place(tmp_path: Path) -> None:
    before, after = blobs((40, 16, 16), seed=1), blobs((40, 16, 16), seed=1)
    after[3] += 50
    old, new = as_instances(make_stack(before)), as_instances(make_stack(after))
    both = replace(new, slices=(*new.slices, old.slices[3]))
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3))
    _, labels = outcome(StackSource(new), bundle)
    for late in (5, 38):
        order = [40 if k == 3 else k for k in range(40)]
        found, arrived = outcome(Arriving(both, with_pauses([*order[:late], 3, *order[late:]])), bundle)
        assert np.array_equal(arrived, labels)
        assert found.stack.slices[3] is new.slices[3]


@pytest.mark.parametrize(
    ("steps", "fallback", "why"),
    [
        ((Orient("RAS"), Normalize()), None, "mean and deviation of the whole volume"),
        ((Resample((1.5, 1.5, 1.5)), Orient("LPI"), SCALE), None, "turns slices round"),
        ((Orient("RAS"), Resample((1.5, 1.5, 1.5), scale_extent=True)), None, "number of slices"),
    ],
)
def test_a_recipe_that_needs_the_whole_says_why(
    steps: tuple[Step, ...], fallback: str | None, why: str, tmp_path: Path
) -> None:
    stack = as_instances(make_stack(blobs((20, 16, 16))))
    bundle = make_bundle(tmp_path, steps=steps, fallback=fallback)
    expected, labels = outcome(StackSource(stack), bundle)
    found, arrived = outcome(Arriving(stack, with_pauses(range(20))), bundle)
    assert np.array_equal(arrived, labels)
    for result in (found, expected):
        assert not result.streamed
        assert why in str(result.streamed_reason)


@pytest.mark.parametrize("steps", GATHERED)
def test_what_a_step_must_know_of_the_whole_is_gathered_to_the_bit(
    steps: tuple[Step, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = as_instances(make_stack(blobs((20, 16, 16)) - 50, spacing_mm=(2.2, 1.0, 1.1)))
    bundle = make_bundle(tmp_path, steps=steps)
    found, gathered = outcome(Arriving(stack, with_pauses(range(20))), bundle)
    assert "of the whole volume" in str(found.streamed_reason)
    monkeypatch.setattr("medseg.inference.segment.axis_through", lambda *_: "taken as a whole")
    expected, labels = outcome(StackSource(stack), bundle)
    assert expected.streamed_reason == "taken as a whole"
    assert np.array_equal(gathered, labels)
    assert facts(found) == facts(expected)


def test_a_full_disk_under_what_is_gathered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = as_instances(make_stack(blobs((20, 16, 16))))
    bundle = make_bundle(tmp_path, steps=GATHERED[0])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medseg.inference.planes.os.pwrite", full)
    with pytest.raises(OutputNotWritable, match="No space left on device, for planes that wait"):
        outcome(StackSource(stack), bundle)


def test_windows_of_all_slices_wait_for_all_of_them(tmp_path: Path) -> None:
    stack = as_instances(make_stack(blobs((12, 16, 16))))
    bundle = make_bundle(tmp_path, window=Window((-1, -1, -1), (0.0,) * 3))
    found, labels = outcome(Arriving(stack, with_pauses(range(12))), bundle)
    assert "all slices at once" in str(found.streamed_reason)
    assert np.array_equal(labels, outcome(StackSource(stack), bundle)[1])


def test_a_series_that_is_refused_as_a_whole_is_refused_however_it_began(tmp_path: Path) -> None:
    whole = as_instances(make_stack(blobs((40, 16, 16))))
    order = with_pauses([*range(25), 28, 29, 33, *range(36, 40)])
    sink = Collected()
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3))
    with pytest.raises(GeometryRefused):
        segment(Arriving(whole, order), bundle, sink)
    assert sink.exclusive is None


def test_a_slice_that_cannot_be_decoded_stops_what_arrives(tmp_path: Path) -> None:
    def fail() -> None:
        raise UndecodablePixels("1.2.3", "1.2.840.10008.1.2.4.90", "cut short")

    stack = as_instances(make_stack(blobs((30, 16, 16))))
    stack = replace(
        stack, slices=tuple(replace(one, read=fail) if k == 20 else one for k, one in enumerate(stack.slices))
    )
    bundle = make_bundle(tmp_path, steps=STEPS, window=Window((8, 8, 8), (0.5,) * 3))
    for order in (range(30), range(29, -1, -1)):
        with pytest.raises(UndecodablePixels):
            segment(Arriving(stack, with_pauses(order)), bundle, Collected())


def test_a_wish_to_stop_is_heard_while_nothing_comes(tmp_path: Path) -> None:
    stack = as_instances(make_stack(blobs((30, 16, 16))))
    source = Arriving(stack, [*range(20), *[None] * 1000])
    with pytest.raises(Interrupted):
        segment(source, make_bundle(tmp_path), Collected(), cancelled=lambda: source.asked > 30)
    assert source.asked < 40


@settings(deadline=None, max_examples=300)
@given(
    spacing=st.sampled_from([0.15625, 0.3125, 0.46875, 0.625, 1 / 3, 0.7, 1.0417]),
    digits=st.integers(2, 4),
    first=st.floats(-500, 500),
    count=st.integers(3, 400),
)
def test_a_rounded_spacing_leaves_every_slice_in_its_place(
    spacing: float, digits: int, first: float, count: int
) -> None:
    heights = np.round(first + spacing * np.arange(count), digits)
    heights -= heights[0]
    even = heights[-1] / (count - 1) * np.arange(count)
    tolerated = 0.05 * spacing
    assume(np.abs(heights - even).max() <= 0.9 * tolerated)
    assert np.abs(heights - rounded_spacing(heights) * np.arange(count)).max() <= 1.01 * tolerated


def test_more_slices_than_a_track_has_room_for_wait_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, stack = make_bundle(tmp_path), as_instances(make_stack(blobs((20, 24, 24))))
    _, labels = outcome(StackSource(stack), bundle)
    monkeypatch.setattr(intake, "MANY", 18)
    monkeypatch.setattr(passage, "MANY", 18)
    found, arrived = outcome(Arriving(stack, range(20)), bundle)
    assert "more than 18 slices" in str(found.streamed_reason)
    assert np.array_equal(arrived, labels)


@settings(deadline=None, max_examples=200)
@given(
    spacing=st.sampled_from([0.625, 0.7, 1.25, 3.0, 0.488281, 2.5, 5.0, 0.9765625]),
    digits=st.integers(2, 8),
    first=st.floats(-500, 500),
    few=st.integers(40, 100),
    many=st.integers(100, 1600),
)
def test_the_first_slices_tell_the_spacing_of_all(
    spacing: float, digits: int, first: float, few: int, many: int
) -> None:
    """Positions written with two decimals or more; the spacing that was meant shows in the first row of windows."""
    heights = np.round(first + spacing * np.arange(many), digits)
    heights -= heights[0]
    meant = rounded_spacing(heights)
    assert abs(meant - spacing) * many <= 5 * 10.0**-digits + 1e-6 * many  # as far as positions are off anyway
    if round(spacing, min(digits, 3)) == spacing:
        assert rounded_spacing(heights[:few]) == meant == spacing
