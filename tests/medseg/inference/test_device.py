"""Devices, precisions, and memory that runs out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.dicom.series import StackSource
from medseg.errors import InvalidBundle, OutOfMemory, ResourceError, UsageError
from medseg.inference.engines.device import choose_device, choose_precision, memory_errors
from medseg.inference.engines.engine import Engine, Networks, copy_on
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from tests.medseg.inference.phantoms import Collected, blobs, make_bundle, make_stack

CPU = torch.device("cpu")


class Greedy(nn.Module):
    """Cannot take more than `most` windows at once; raises what torch and Python raise then."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error, self.batches = most, error, []

    def forward(self, windows: Tensor) -> Tensor:
        self.batches.append(len(windows))
        if len(windows) > self.most:
            raise self.error
        return windows.repeat(1, 3, 1, 1, 1)


ERRORS = [
    MemoryError("no"),
    torch.cuda.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_and_says_so(error: Exception, tmp_path: Path) -> None:
    network = Greedy(2, error)
    engine = Engine(network, make_bundle(tmp_path), CPU, batch=8)
    windows = torch.arange(8.0).reshape(8, 1, 1, 1, 1) * torch.ones(1, 1, 4, 4, 4)
    assert torch.equal(engine(windows), windows.repeat(1, 3, 1, 1, 1))
    assert network.batches == [8, 4, 2, 2, 2, 2]
    assert len(engine.warnings) == 2
    assert "2 windows at a time" in engine.warnings[-1]
    engine(windows[:4])  # the lesson is remembered
    assert network.batches[-2:] == [2, 2]


def test_when_one_window_does_not_fit_the_error_says_what_to_do(tmp_path: Path) -> None:
    engine = Engine(Greedy(0, MemoryError()), make_bundle(tmp_path), CPU, batch=2)
    with pytest.raises(OutOfMemory, match="smaller window"):
        engine(torch.zeros(2, 1, 4, 4, 4))


def test_other_errors_are_not_mistaken_for_memory(tmp_path: Path) -> None:
    engine = Engine(Greedy(0, RuntimeError("shapes differ")), make_bundle(tmp_path), CPU)
    with pytest.raises(RuntimeError, match="shapes differ"):
        engine(torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(OutOfMemory), memory_errors():
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes differ")


def test_a_volume_that_does_not_fit_is_out_of_memory(tmp_path: Path) -> None:
    stack = make_stack(blobs((4, 8, 8)))

    def starve() -> None:
        raise MemoryError("cannot allocate")

    stack = replace(stack, slices=(replace(stack.slices[0], read=starve), *stack.slices[1:]))
    with pytest.raises(OutOfMemory):
        segment(StackSource(stack), make_bundle(tmp_path), Collected())


@pytest.mark.parametrize("network", [nn.Conv3d(1, 5, 1), nn.MaxPool3d(2)], ids=["channels", "size"])
def test_a_network_of_another_shape_than_said_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="expected"):
        Engine(network, make_bundle(tmp_path), CPU)(torch.zeros(1, 1, 4, 4, 4))


def test_bf16_is_used_only_where_the_bundle_allows_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    with pytest.raises(UsageError, match="not checked in bf16"):
        choose_precision("bf16", bundle, CPU)
    allowed = replace(bundle, precisions=("fp32", "bf16"))
    assert choose_precision("bf16", allowed, CPU) == "bf16"
    assert choose_precision("fp32", allowed, CPU) == "fp32"
    assert choose_precision("auto", bundle, CPU) == "fp32"
    with pytest.raises(UsageError, match="no such precision"):
        choose_precision("int4", allowed, CPU)


@pytest.mark.parametrize(
    ("able", "amx", "taken"), [(True, True, "bf16"), (True, False, "fp32"), (False, False, "fp32")]
)
def test_auto_is_a_lower_precision_only_where_that_is_faster(
    able: bool, amx: bool, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    allowed = replace(make_bundle(tmp_path), precisions=("fp32", "bf16"))
    assert choose_precision("auto", allowed, CPU) == taken


def test_bf16_gives_nearly_the_same_labels(tmp_path: Path) -> None:
    bundle = replace(make_bundle(tmp_path), precisions=("fp32", "bf16"))
    stack = make_stack(blobs((12, 16, 16)))
    exact, rough = Collected(), Collected()
    segment(StackSource(stack), bundle, exact)
    result = segment(StackSource(stack), bundle, rough, settings=Settings(precision="bf16"))
    assert result.precision == "bf16"
    assert 0.97 < (exact.labels == rough.labels).mean() < 1


def test_devices_by_name() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="no such device"):
        choose_device("quantum")
    with pytest.raises(UsageError, match="not supported"):
        choose_device("meta")
    with pytest.raises(ResourceError, match="is not here"):
        choose_device("cuda:99")


def test_networks_are_built_once_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    bundles = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        bundles.append(make_bundle(folder, seed=seed))
    networks = Networks(keep=2)
    first = networks.get(bundles[0], CPU)
    assert networks.get(bundles[0], CPU) is first
    assert not first.training
    second = networks.get(bundles[1], CPU)
    networks.get(bundles[0], CPU)
    networks.get(bundles[2], CPU)
    assert networks.get(bundles[0], CPU) is first
    assert networks.get(bundles[1], CPU) is not second


def test_scores_that_do_not_fit_on_the_device_are_stitched_in_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is one that makes no tensors at all here; what is made is on the CPU, and it is said once."""
    zeros, elsewhere = torch.zeros, torch.device("meta")

    def scarce(*shape: int, device: torch.device = CPU, dtype: torch.dtype | None = None) -> Tensor:
        if device != CPU:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", scarce)
    engine = Engine(Greedy(2, ERRORS[0]), make_bundle(tmp_path), elsewhere)
    assert [engine.room(2, 3).device for _ in range(2)] == [CPU, CPU]
    assert [said for said in engine.warnings if "stitched in the machine's memory" in said] == engine.warnings
    assert len(engine.warnings) == 1
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: scarce(device=elsewhere))
    with pytest.raises(torch.OutOfMemoryError):
        engine.room(2, 3)


def test_a_careful_run_is_the_same_one_window_at_a_time(tmp_path: Path) -> None:
    bundle, stack = make_bundle(tmp_path), make_stack(blobs((20, 20, 20)))
    sinks = Collected(), Collected()
    segment(StackSource(stack), bundle, sinks[0])
    result = segment(StackSource(stack), bundle, sinks[1], settings=Settings(careful=True))
    assert np.array_equal(sinks[0].labels, sinks[1].labels)
    assert any("one window at a time" in said for said in result.warnings)


def test_a_network_that_leaves_its_device_stays_there_for_others() -> None:
    """Two studies share it: one that runs out of memory goes on with a copy."""
    shared = nn.Conv3d(1, 2, 1)
    network = nn.ModuleDict({"one": shared, "same": shared, "norm": nn.BatchNorm3d(2)}).to("meta")
    moved = copy_on(torch.device("meta"), network)
    assert moved is not network
    assert moved["one"] is moved["same"] is not shared
    assert {name: tensor.shape for name, tensor in moved.state_dict().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }
    there = nn.Conv3d(1, 2, 1)
    assert torch.equal(copy_on(CPU, there)(torch.ones(1, 1, 2, 2, 2)), there(torch.ones(1, 1, 2, 2, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_cuda_gives_the_labels_of_the_cpu(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    stack = make_stack(blobs((20, 30, 30)))
    here, there = Collected(), Collected()
    segment(StackSource(stack), bundle, here, settings=Settings(device="cpu"))
    result = segment(StackSource(stack), bundle, there, settings=Settings(device="cuda"))
    assert result.device == "cuda:0"
    assert np.mean(here.labels == there.labels) >= 0.9999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_a_gpu_without_memory_hands_over_to_the_cpu(tmp_path: Path) -> None:
    class Crowded(Greedy):
        def forward(self, windows: Tensor) -> Tensor:
            self.most = 0 if windows.is_cuda else 1
            return super().forward(windows)

    engine = Engine(Crowded(0, ERRORS[1]), make_bundle(tmp_path), torch.device("cuda:0"))
    assert engine(torch.zeros(1, 1, 4, 4, 4)).device == CPU
    assert any("on the CPU" in warning for warning in engine.warnings)
