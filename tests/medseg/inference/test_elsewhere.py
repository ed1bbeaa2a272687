"""The whole way on another device than the CPU, where there is none: torch's meta device, whose tensors have no values.

An operation on tensors of two devices fails there as it does on a GPU. What comes back is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.bundle.network import load_network
from medseg.bundle.recipe import Normalize, Orient, Resample, ScalePercentiles, ScaleRange, Step, Window
from medseg.dicom.series import StackSource
from medseg.inference import segment as pipeline
from medseg.inference.engines import case, gpu
from medseg.inference.engines.device import CPU
from medseg.inference.engines.engine import Engine
from medseg.inference.nnunet.case import first_network
from medseg.inference.nnunet.need import at_a_time
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
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
)
from tests.medseg.nnunet_folders import plans, write

ELSEWHERE = torch.device("meta")
ROOM = 1 << 30
TURNED = Orient("RAS")
LARGER = Resample((2.5, 1.3, 1.7))
SMALLER = Resample((0.9, 0.8, 0.7))
RANGE = ScaleRange(-100.0, 300.0, 0.0, 1.0, clip=True)
STEPS: dict[str, tuple[Step, ...]] = {
    "range": (TURNED, RANGE),
    "resampled": (TURNED, LARGER, RANGE),
    "resampled early": (TURNED, RANGE, SMALLER),
    "percentiles": (TURNED, ScalePercentiles(1, 99, 0.0, 1.0, clip=True), LARGER),
    "percentiles after": (TURNED, LARGER, ScalePercentiles(1, 99, 0.0, 1.0, clip=True)),
    "not zero": (LARGER, Normalize(nonzero=True)),
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What networks are given, on a device that is chosen where there is no GPU."""
    windows: list[Tensor] = []
    run, cpu, move, there = Engine._scores, Tensor.cpu, Tensor.to, Tensor.__bool__

    def seen(engine: Engine, some: Tensor) -> Tensor:
        windows.append(some)
        return run(engine, some)

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else cpu(tensor)

    monkeypatch.setattr(pipeline, "choose_device", lambda _: ELSEWHERE)
    monkeypatch.setattr(gpu, "share_bytes", lambda _: ROOM)
    monkeypatch.setattr(case.torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(Engine, "_scores", seen)

    def moved(tensor: Tensor, *where: Any, **how: Any) -> Tensor:
        here = where and where[0] in (CPU, "cpu")
        return zeros(tensor) if here and tensor.is_meta else move(tensor, *where, **how)

    monkeypatch.setattr(Tensor, "cpu", zeros)
    monkeypatch.setattr(Tensor, "to", moved)
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: True if tensor.is_meta else there(tensor))
    yield windows
    pipeline.NETWORKS._held.clear()


def check(bundle: Bundle, source: Any, windows: list[Tensor], shape: tuple[int, ...]) -> None:
    sink = Collected()
    result = segment(source, bundle, sink, settings=Settings(engine="torch"))
    assert sink.labels.shape == shape
    assert not sink.labels.any()
    assert windows
    assert {some.device.type for some in windows} == {"meta"}
    assert result.device == "meta"
    assert not result.warnings


@pytest.mark.parametrize("steps", STEPS)
def test_planes_windows_and_scores_stay_on_the_device(steps: str, given: list[Tensor], tmp_path: Path) -> None:
    bundle, stack = make_bundle(tmp_path, steps=STEPS[steps]), make_stack(blobs((20, 24, 22)))
    check(bundle, StackSource(stack), given, (20, 24, 22))
    # As many run together as there is room for, where a row has more than the bundle asks for.
    assert (max(map(len, given)) > bundle.recipe.window.batch) == (steps == "resampled early")


@pytest.mark.parametrize("finish", [SOFTMAX_LABELS, SIGMOID], ids=["labels first", "overlapping"])
def test_whatever_the_end(finish: Any, given: list[Tensor], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, steps=STEPS["resampled"], finish=finish)
    shape = (20, 22, 24) if finish is not SIGMOID else (20, 3, 22, 24)
    check(bundle, StackSource(make_stack(blobs((20, 22, 24)))), given, shape)


@pytest.mark.parametrize("window", [Window((16, 16), (0.5, 0.5)), Window((16, 16), (0.5, 0.5), slices=3)], ids=str)
def test_slice_by_slice(window: Window, given: list[Tensor], tmp_path: Path) -> None:
    stack = make_stack(blobs((20, 24, 24)))
    check(make_bundle(tmp_path, window=window), StackSource(stack), given, (20, 24, 24))


@pytest.mark.parametrize("end", [1, -1], ids=["from the feet", "from the head"])
def test_while_slices_come(end: int, given: list[Tensor], tmp_path: Path) -> None:
    stack = as_instances(make_stack(blobs((40, 24, 24))))
    check(make_bundle(tmp_path), Arriving(stack, range(40)[::end], 40), given, (40, 24, 24))


def test_slices_that_lie_unevenly_and_aslant(given: list[Tensor], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, finish=SOFTMAX)
    check(bundle, StackSource(make_stack(blobs((20, 24, 24)), tilt_mm=0.5)), given, (20, 24, 24))


@pytest.mark.parametrize(
    ("room", "windows", "images"),
    [(1 << 30, 2, 8), (800_000, 1, 4), (400_000, 1, 2), (0, 1, 1)],
)
@pytest.mark.usefixtures("given")
def test_windows_and_their_mirror_images_fill_half_of_the_room(
    room: int, windows: int, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(write(tmp_path / "model", mirrored=(0, 1, 2)))
    fold = first_network(bundle)
    engine = Engine(pipeline.NETWORKS.get(fold, ELSEWHERE), fold, ELSEWHERE, batch=gpu.MOST)
    engine._ladder = replace(engine._ladder, mirrored=8)  # as on a GPU
    monkeypatch.setattr(gpu, "share_bytes", lambda _: room)
    assert at_a_time(engine, (20, 30, 30)) == (windows, images)


LABELS = {"background": 0, "a": 1, "b": 2}
REGIONS = {"background": 0, "a": [1, 2], "b": [2]}


def nnunet(folder: Path, scheme: str, labels: dict[str, Any], mirrored: Any = None) -> Bundle:
    order = {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    made = plans(scheme=scheme, spacing=[3.0, 1.3, 1.2])
    return load_bundle(write(folder / "model", made, labels=labels, channels=("CT",), mirrored=mirrored, **order))


@pytest.mark.parametrize(
    ("scheme", "labels", "mirrored"),
    [
        ("CTNormalization", LABELS, None),
        ("CTNormalization", REGIONS, (0, 1, 2)),
        ("ZScoreNormalization", LABELS, (0, 1, 2)),
    ],
    ids=["labels", "regions", "whole"],
)
def test_nnunet(scheme: str, labels: dict[str, Any], mirrored: Any, given: list[Tensor], tmp_path: Path) -> None:
    bundle = nnunet(tmp_path, scheme, labels, mirrored)
    check(bundle, StackSource(make_stack(blobs((20, 24, 22)))), given, (20, 24, 22))
    assert max(map(len, given)) > 1


@pytest.mark.parametrize("what", ["resampled early", "percentiles", "labels", "regions"])
def test_a_device_that_is_full_half_way_hands_over_to_the_cpu(
    what: str, given: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is prepared, stitched and brought back lies on both then."""
    if what in STEPS:
        bundle = make_bundle(tmp_path, steps=STEPS[what])
    else:
        bundle = nnunet(tmp_path, "CTNormalization", LABELS if what == "labels" else REGIONS)
    run = Engine._scores

    def full(engine: Engine, some: Tensor) -> Tensor:
        if len(given) > 3 and some.is_meta:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(engine, some)

    moved: list[torch.device] = []

    def copied(device: torch.device, _: Any) -> Any:
        moved.append(device)
        return load_network(bundle if bundle.nnunet is None else first_network(bundle), device)

    monkeypatch.setattr(Engine, "_scores", full)
    monkeypatch.setattr("medseg.inference.engines.engine.copy_on", copied)
    sink = Collected()
    stack = make_stack(blobs((40, 24, 22)))
    result = segment(StackSource(stack), bundle, sink, settings=Settings(engine="torch"))
    assert (moved, result.device) == ([CPU], "cpu")
    assert {some.device.type for some in given} == {"meta", "cpu"}
    assert sink.labels.shape == (40, 24, 22)
    assert any("going on on the CPU" in warning for warning in result.warnings)
