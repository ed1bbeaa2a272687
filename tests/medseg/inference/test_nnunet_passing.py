"""Planes that pass one by one are, and are labelled as, those of the whole volume: to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medseg.bundle.nnunet.model import InputChannel, Labels, Method, NnUNet, Resampler, Scheme
from medseg.bundle.nnunet.whole import why_whole
from medseg.dicom.series import Stack
from medseg.inference.nnunet.along import along
from medseg.inference.nnunet.back import label_planes
from medseg.inference.nnunet.matrices import DeviceZoom
from medseg.inference.nnunet.mix import Mix
from medseg.inference.nnunet.passing import PassedStack, PassingVolume
from medseg.inference.nnunet.prepare import Grids, prepare
from medseg.inference.nnunet.resample import overshot, separate_axis
from medseg.inference.nnunet.source import Source
from medseg.inference.nnunet.waiting import WaitingScores
from medseg.inference.nnunet.windows import Placing, count_windows, importance, padding, places, score_planes
from tests.medseg.inference.phantoms import make_stack

FEW = settings(max_examples=25, deadline=None)
CUBIC = Resampler(Method.SPLINE, order=3)
LINEAR = Resampler(Method.SPLINE, order=1)
CT = InputChannel("CT", Scheme.CT, False, low=-80, high=150, mean=40, deviation=35)
PET = InputChannel("PET", Scheme.RESCALE, False)
OTHER = InputChannel("x", Scheme.NONE, False)
NAMES = ((1, "organ"), (2, "other"))


def make_model(**facts: Any) -> NnUNet:
    given: dict[str, Any] = {
        "configuration": "3d_fullres",
        "patch": (8, 16, 16),
        "spacing_mm": (2.0, 1.5, 1.5),
        "transpose": (0, 1, 2),
        "channels": (CT,),
        "image": CUBIC,
        "scores": LINEAR,
        "labelmap": LINEAR,
        "labels": Labels(3, NAMES, None, (1, 2)),
    }
    return NnUNet(**given | facts)


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """A few slices, with zeros around them where it falls so."""
    seed, zeros = draw(st.integers(0, 1 << 16)), draw(st.integers(0, 2))
    shape = (draw(st.integers(1, 40)), draw(st.integers(4, 12)), draw(st.integers(4, 12)))
    array = np.random.default_rng(seed).integers(-200, 300, shape).astype(np.float32)
    if zeros:
        array[:zeros] = array[:, :, -zeros:] = array[:, -1] = 0
    spacing = draw(
        st.sampled_from([(2.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.7, 0.9, 0.9), (2.0, 1.5, 1.5)])
    )
    return make_stack(array, spacing_mm=spacing)


MODELS = st.builds(
    make_model,
    image=st.sampled_from([CUBIC, LINEAR, Resampler(Method.SPLINE, 3, separate=False), Resampler(Method.NONE)]),
    spacing_mm=st.sampled_from([(2.0, 1.5, 1.5), (6.0, 1.5, 1.5), (1.0, 0.7, 0.9), (1.5, 1.5)]),
    transpose=st.sampled_from([(0, 1, 2), (0, 2, 1)]),
    orientation=st.sampled_from([None, "LPS", "RAS", "LAI", "RSP"]),
    channels=st.sampled_from(
        [(CT,), (InputChannel("PET", Scheme.RESCALE, False),), (InputChannel("x", Scheme.NONE, False),)]
    ),
)


def planes_of(stack: Stack) -> list[NDArray[np.float32]]:
    return [piece.read() for piece in stack.slices]


@FEW
@given(stacks(), MODELS)
def test_planes_that_pass_are_those_of_the_whole_volume(stack: Stack, model: NnUNet) -> None:
    source = Source.of(stack, ([plane] for plane in planes_of(stack)))
    whole = prepare(source.volume(model), source.spacing_mm(model), model)
    if source.axes(model).order[model.transpose[0]] != 0:
        return
    axis = separate_axis(model.image, whole.grids.spacing_mm, whole.grids.model_mm)
    if axis in (1, 2):
        return
    passed = PassedStack(stack)
    passed.add((k, [plane]) for k, plane in enumerate(planes_of(stack)))
    volume = PassingVolume(passed, model)
    assert volume.grids == whole.grids
    for _ in range(2):  # as often as there are folds
        made = torch.stack(list(volume.planes()), dim=1).numpy()
        if axis == 0:
            assert np.array_equal(made, whole.voxels)
        assert made.shape == whole.voxels.shape
        assert np.abs(made - whole.voxels).max() <= 1e-6 * max(np.abs(whole.voxels).max(), 1)
    labels = np.random.default_rng(0).integers(0, 3, whole.grids.whole).astype(np.uint8)
    there = source.back(labels.transpose([model.transpose.index(n) for n in range(3)]), model)
    for n, plane in enumerate(labels):
        assert np.array_equal(volume.back(plane), there[volume.slice_of(n)])


def whole_scores(voxels: torch.Tensor, model: NnUNet, network: Any) -> torch.Tensor:
    """nnU-Net's own way: sums of the whole volume."""
    pads = padding(voxels.shape[1:], model.patch)
    padded = torch.nn.functional.pad(voxels, [n for pair in reversed(pads) for n in pair])
    total = torch.zeros((model.labels.heads, *padded.shape[1:]), dtype=torch.half)
    weight = torch.zeros(padded.shape[1:], dtype=torch.half)
    weights = importance(model.patch) if model.gaussian else torch.ones((1, 1, 1)).half()
    for place in places(padded.shape[1:], model.patch, model.step):
        scores = network(padded[(slice(None), *place)][None])[0]
        total[(slice(None), *place)] += scores * weights if model.gaussian else scores
        weight[place] += weights
    total /= weight
    return total[
        (slice(None), *(slice(low, size - high) for (low, high), size in zip(pads, padded.shape[1:], strict=True)))
    ]


@FEW
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([(4, 6, 8), (1, 4, 4), (12, 5, 3), (6, 6)]),
    st.sampled_from([0.5, 0.7, 1.0, 0.3]),
    st.booleans(),
    st.sampled_from([1, 2, 5]),
)
def test_scores_are_final_row_by_row_with_the_bits_of_whole_sums(
    shape: tuple[int, int, int], patch: tuple[int, ...], step: float, gaussian: bool, batch: int
) -> None:
    model = make_model(patch=patch, step=step, gaussian=gaussian)
    voxels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32))

    def network(window: torch.Tensor) -> torch.Tensor:
        mixed = window.cumsum(-1) * 0.3 + window.cumsum(2)
        return torch.stack([mixed[:, 0], mixed[:, 1], mixed.prod(1)], dim=1)

    done: list[int] = []
    placing = Placing(lambda: batch)
    planes = score_planes(voxels.unbind(1), shape, model, network, lambda n, _: done.append(n), placing)
    made = torch.stack([plane.clone() for plane in planes], dim=1)
    assert torch.equal(made, whole_scores(voxels, model, network))
    assert done[-1] == count_windows(shape, model)
    assert all(1 <= more <= batch for more in np.diff([0, *done]))
    assert batch > 1 or len(done) == done[-1]


def test_no_more_planes_of_scores_are_held_than_a_window_is_deep() -> None:
    model, shape = make_model(patch=(4, 4, 4)), (40, 4, 4)
    read: list[int] = []

    def planes() -> Iterator[torch.Tensor]:
        for n in range(shape[0]):
            read.append(n)
            yield torch.ones((1, 4, 4))

    scores = score_planes(planes(), shape, model, lambda window: window.repeat(1, 3, 1, 1, 1), lambda *_: None)
    assert all(read[-1] < n + 4 for n, _ in enumerate(scores))


def dense(scores: NDArray[np.float16], grids: Grids, model: NnUNet) -> NDArray[Any]:
    """Labels of all voxels by all heads: mixed along one axis after the other in double, half, the highest."""
    axis = separate_axis(model.scores, grids.model_mm, grids.spacing_mm)
    mixed = torch.from_numpy(scores).double()
    if grids.shape != grids.cropped:
        for n in range(3):
            is_nearest = model.scores.order == 0 or n == axis
            mixed = Mix.of(grids.shape[n], grids.cropped[n], is_nearest=is_nearest).along(mixed, n + 1)
    half = mixed.half()
    made = np.zeros(grids.whole, np.uint8)
    if model.labels.order is None:
        made[grids.box] = half.float().numpy().argmax(0)
        return made
    for head, label in zip(half, model.labels.order, strict=True):
        made[grids.box][(head.float().sigmoid() > 0.5).numpy()] = label
    return made


@FEW
@given(
    st.integers(0, 1 << 16),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 14), st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 4.0, 1.0)]),
    st.sampled_from([None, (2, 1, 3, 4, 5, 6)]),
    st.sampled_from([0.01, 1.0, 300.0]),
    st.sampled_from([0, 1]),
)
def test_labels_are_those_of_all_scores_of_the_volume(
    seed: int,
    shape: tuple[int, int, int],
    cropped: tuple[int, int, int],
    spacing: tuple[float, float, float],
    order: tuple[int, ...] | None,
    size: float,
    spline: int,
) -> None:
    random = np.random.default_rng(seed)
    model = make_model(scores=Resampler(Method.SPLINE, spline), labels=Labels(6, NAMES, order, ()))
    z, y, x = cropped
    box = slice(0, z), slice(1, y + 1), slice(0, x)
    grids = Grids((z + 2, y + 2, x + 2), box, shape, spacing, (1.0, 1.0, 1.0))
    coarse = random.normal(size=(6, *(-(-length // 3) for length in shape)))  # so that much is settled, and ties happen
    scores = np.repeat(np.repeat(np.repeat(coarse, 3, 1), 3, 2), 3, 3)[:, : shape[0], : shape[1], : shape[2]]
    half = (size * np.round(scores, 1 if seed % 2 else 9)).astype(np.float16)
    for all_heads in (False, True):
        made = np.stack(list(label_planes(torch.from_numpy(half).unbind(1), grids, model, all_heads=all_heads)))
        assert np.array_equal(made, dense(half, grids, model))


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 1), (5, 9), (90, 37), (37, 90), (70, 71)])
def test_planes_along_an_axis_are_those_of_scipys_zoom(old: int, new: int, order: int) -> None:
    volume = np.random.default_rng(0).normal(size=(old, 6, 5))
    made = np.stack(list(along(iter(volume), old, new, order)))
    assert np.abs(made - overshot(volume, (new, 6, 5), order)).max() < 1e-13


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    ("old", "new"), [((1, 6), (3, 9)), ((21, 34), (13, 34)), ((9, 8, 30), (14, 5, 29)), ((5, 6, 7), (5, 6, 7))]
)
def test_an_image_by_matrices_is_that_of_scipys_zoom(old: tuple[int, ...], new: tuple[int, ...], order: int) -> None:
    image = np.random.default_rng(0).normal(size=old)
    made = DeviceZoom(torch.device("cpu"))(image, new, order)
    assert made.shape == new
    assert np.abs(made - overshot(image, new, order)).max() < 1e-13


def test_where_a_device_has_no_room_an_image_is_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    zoom, image = DeviceZoom(torch.device("cpu")), np.random.default_rng(0).normal(size=(9, 8))
    monkeypatch.setattr(DeviceZoom, "_made", full)
    assert np.array_equal(zoom(image, (5, 12), 3), overshot(image, (5, 12), 3))


def test_scores_that_wait_come_back_as_they_were_as_often_as_wanted() -> None:
    planes = torch.randn(5, 3, 4, 6).half()
    waiting = WaitingScores(plane[:, 1:, ::2] for plane in planes)
    for _ in range(2):
        assert torch.equal(torch.stack(list(waiting)), planes[:, :, 1:, ::2])


@pytest.mark.parametrize(
    "facts",
    [
        {"channels": (InputChannel("MR", Scheme.Z_SCORE, True),)},
        {"previous_stage": "3d_lowres"},
        {"cleanup": ((1,),)},
        {"flat": True},
        {"image": Resampler(Method.SPLINE, 3, order_z=1)},
        {"image": Resampler(Method.TORCH)},
        {"scores": Resampler(Method.SPLINE, 3)},
    ],
)
def test_what_needs_the_whole_volume_says_why(facts: dict[str, Any]) -> None:
    assert why_whole(make_model()) is None
    assert why_whole(make_model(**facts))
