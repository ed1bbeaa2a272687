"""What only a GPU can show: `make gpu-check` runs these where one is (docs/engines.md)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.bundle.recipe import Window
from medseg.dicom.series import StackSource
from medseg.inference.engines.backends import BACKENDS, made
from medseg.inference.engines.case import Case, eager
from medseg.inference.engines.device import runs_in
from medseg.inference.engines.engine import Engine
from medseg.inference.engines.pinned import Staging
from medseg.inference.segment import NETWORKS, segment
from medseg.inference.settings import Settings
from medseg.job.plan import plan_nifti
from tests.medseg.inference.phantoms import Arriving, Collected, as_instances, blobs, make_bundle, make_stack
from tests.medseg.nnunet_cases import CASES, folder_of, image

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]
GPU = torch.device("cuda:0")
UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [8, 16, 32],
    "strides": [2, 2],
    "num_res_units": 1,
}


def unet(folder: Path) -> Bundle:
    return make_bundle(folder, network=UNET, window=Window((16, 16, 16), (0.5, 0.5, 0.5), batch=4))


def labels_of(bundle: Bundle, settings: Settings, shape: tuple[int, int, int] = (40, 48, 48)) -> Collected:
    found = Collected()
    segment(StackSource(make_stack(blobs(shape))), bundle, found, settings=settings)
    return found


def test_scores_in_fp32_are_those_of_the_cpu(tmp_path: Path) -> None:
    bundle = unet(tmp_path)
    windows = torch.randn(4, 1, 16, 16, 16)
    here = Engine(NETWORKS.get(bundle, torch.device("cpu")), bundle, torch.device("cpu"), batch=4)(windows)
    there = Engine(NETWORKS.get(bundle, GPU), bundle, GPU, batch=4)(windows)
    assert there.is_cuda  # stitched there
    assert float((there.cpu() - here).abs().max()) <= 1e-4 * float(here.abs().max())  # TF32 would be 1e-3


def test_two_runs_have_the_same_bits(tmp_path: Path) -> None:
    bundle, settings = unet(tmp_path), Settings(device="cuda", engine="torch")
    assert (labels_of(bundle, settings).labels == labels_of(bundle, settings).labels).all()
    windows = torch.randn(3, 1, 16, 16, 16)
    engine = Engine(NETWORKS.get(bundle, GPU), bundle, GPU, batch=4)
    assert torch.equal(engine(windows), engine(windows))


def test_labels_while_slices_come_are_those_of_the_cpu(tmp_path: Path) -> None:
    bundle, stack = unet(tmp_path), as_instances(make_stack(blobs((40, 48, 48))))
    found = Collected()
    result = segment(Arriving(stack, range(40)), bundle, found, settings=Settings(device="cuda", engine="torch"))
    here = labels_of(bundle, Settings(device="cpu", engine="torch"))
    assert result.streamed
    assert (found.labels == here.labels).mean() >= 0.9999


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_autocast_gives_nearly_the_same_labels(precision: str, tmp_path: Path) -> None:
    if not runs_in(precision, GPU):
        pytest.skip(f"this GPU does not compute in {precision}")
    bundle = replace(unet(tmp_path), precisions=("fp32", precision))
    low = labels_of(bundle, Settings(device="cuda", engine="torch", precision=precision))
    plain = labels_of(bundle, Settings(device="cuda", engine="torch"))
    assert (low.labels == plain.labels).mean() > 0.99


@pytest.mark.parametrize("engine", [name for name in BACKENDS if name != "torch"])
@pytest.mark.parametrize("windows", [1, 4, 6])
def test_every_engine_computes_what_torch_does(engine: str, windows: int, tmp_path: Path) -> None:
    why = BACKENDS[engine].missing(GPU, "fp32")
    if why is not None:
        pytest.skip(why)
    network = NETWORKS.get(unet(tmp_path), GPU)
    case = Case(network, GPU, "fp32", (1, 16, 16, 16), 4, "digest")
    folder = tmp_path / "made"
    folder.mkdir()
    given = torch.randn(windows, 1, 16, 16, 16, device=GPU)
    scores, plain = made(case, BACKENDS[engine], folder)(given), eager(case)(given)
    assert float((scores - plain).abs().max()) <= 1e-4 * float(plain.abs().max())


def test_what_is_on_its_way_is_not_overwritten() -> None:
    """Buffers are filled again while the device may still read them; each batch must arrive as it was."""
    staging, sent = Staging(GPU), []
    windows = torch.empty(4, 1, 64, 64, 64)
    for n in range(20):
        windows.fill_(n)
        sent.append(staging(windows if n % 3 else windows[:2]))
    assert [float(there.min()) for there in sent] == [float(there.max()) for there in sent] == list(range(20))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """So much of the GPU's memory that one window fits, and a batch does not."""
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 600e6 / total), GPU)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_out_of_memory_costs_nothing_but_time(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path, network=UNET | {"channels": [32, 64, 128]}, window=Window((64, 64, 64), (0.25, 0.25, 0.25), batch=16)
    )
    found = Collected()
    stack = make_stack(blobs((96, 96, 96)))
    result = segment(StackSource(stack), bundle, found, settings=Settings(device="cuda", engine="torch"))
    assert any("out of memory" in said for said in result.warnings)
    here = labels_of(bundle, Settings(device="cpu", engine="torch"), (96, 96, 96))
    assert (found.labels == here.labels).mean() >= 0.9999


def test_a_gpu_that_is_full_half_way_hands_over_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label planes then lie between scores of the GPU and of the CPU."""
    bundle, calls = unet(tmp_path), []
    network = NETWORKS.get(bundle, GPU)

    def full(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].is_cuda:
            calls.append(1)
            if len(calls) > 5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = network.register_forward_pre_hook(full)
    found = Collected()
    try:
        stack = make_stack(blobs((40, 48, 48)))
        result = segment(StackSource(stack), bundle, found, settings=Settings(device="cuda", engine="torch"))
    finally:
        hook.remove()
    assert result.device == "cpu"
    here = labels_of(bundle, Settings(device="cpu", engine="torch"))
    assert (found.labels == here.labels).mean() >= 0.9999


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["ct", "regions", "masked", "slices, mirrored", "cascade", "average that passes"])
def test_labels_of_nnunet_are_its_own(name: str, precision: str, tmp_path: Path) -> None:
    bundle = load_bundle(folder_of(CASES[name], tmp_path))
    stack = plan_nifti(image(tmp_path, **CASES[name].image), [bundle], explicit=True).jobs[0].stack
    found = Collected()
    settings = Settings(device="cuda", engine="torch", precision=precision)
    result = segment(StackSource(stack), bundle, found, settings=settings)
    assert result.device == "cuda:0"
    assert not result.warnings
    here = Collected()
    segment(StackSource(stack), bundle, here, settings=Settings(device="cpu", engine="torch"))
    assert (found.labels == here.labels).mean() >= (0.999 if precision == "fp32" else 0.98)


def test_mirror_images_together_are_those_one_by_one(tmp_path: Path) -> None:
    bundle = replace(unet(tmp_path), flips=(0, 1, 2), digest="mirrored")
    network, windows = NETWORKS.get(bundle, GPU), torch.randn(2, 1, 16, 16, 16, device=GPU)
    with torch.inference_mode():
        one_by_one, together = network(windows), network(windows, together=8)
    assert float((one_by_one - together).abs().max()) <= 1e-3 * float(
        one_by_one.abs().max()
    )  # TF32 is not kept off here


def test_two_studies_at_once_are_each_as_alone(tmp_path: Path) -> None:
    bundle, settings = unet(tmp_path), Settings(device="cuda", engine="torch")
    alone = labels_of(bundle, settings)
    with ThreadPoolExecutor(2) as pool:
        both = [job.result() for job in [pool.submit(labels_of, bundle, settings) for _ in range(2)]]
    assert all((found.labels == alone.labels).mean() >= 0.9999 for found in both)
