"""What a job will take, what is free, and what becomes of a job that does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from medseg.bundle.bundle import Bundle
from medseg.bundle.recipe import Window
from medseg.dicom.series import Stack, StackSource
from medseg.errors import OutOfMemory
from medseg.inference import memory
from medseg.inference.engines.device import CPU
from medseg.inference.engines.held import held_by
from medseg.inference.grids.grid import Axes
from medseg.inference.memory import fitting, free_bytes, need
from medseg.inference.segment import NETWORKS, segment
from medseg.inference.settings import Settings
from medseg.inference.windows.layout import lay_out
from tests.medseg.inference.phantoms import Collected, blobs, make_bundle, make_stack

GIB = 1 << 30
AS_IT_LIES = Axes((0, 1, 2), (False, False, False))
SPLEEN_LIKE = Window((96, 96, 96), (0.5,) * 3, batch=4)


def ct(classes: int, spacing_mm: float, slices: int = 1600, batch: int = 1) -> int:
    """A CT of 512 x 512 voxels of 0.75 mm on a grid of that spacing, and a UNet that holds 300 numbers a voxel."""
    side = round(512 * 0.75 / spacing_mm)
    where = lay_out((slices, side, side), AS_IT_LIES, SPLEEN_LIKE)
    held = 300 * 4 * 96**3
    return need(where, (512, 512), channels=1, classes=classes, exclusive=True, activations=held).of(batch)


def test_what_is_needed_goes_by_the_grid_the_classes_and_the_batch_not_by_the_slices() -> None:
    assert ct(2, 1.5, slices=1600) == pytest.approx(ct(2, 1.5, slices=100), rel=0.02)
    assert ct(2, 1.5) < 2 * GIB
    assert ct(105, 3) < 4 * GIB
    assert ct(105, 1.5) > 4 * GIB
    assert ct(2, 1.5, batch=2) > ct(2, 1.5) > ct(2, 3)


@pytest.mark.parametrize(
    ("free", "on_device", "expected"),
    [
        (1000, None, 8),
        (499, None, 4),  # 100 + 50 a window
        (150, None, 1),
        (149, None, 0),
        (90, 799, 8),  # on a GPU: 90 in the machine's memory; 50 a window in half of the device's
        (90, 798, 4),
        (90, 5, 1),  # the engine goes on elsewhere
        (89, 800, 0),
    ],
)
def test_the_batch_is_halved_until_it_fits(free: int, on_device: int | None, expected: int) -> None:
    assert fitting(memory.Need(scores=10, window=50, rest=90), 8, free, on_device) == expected


def test_a_whole_volume_that_does_not_fit_is_seen_before_it_is_read() -> None:
    where = lay_out((100, 64, 64), AS_IT_LIES, SPLEEN_LIKE)
    volumes = (100 * 512 * 512, 100 * 64 * 64)
    takes = need(where, (512, 512), channels=1, classes=2, exclusive=True, activations=0, volumes=volumes)
    assert takes.before > 100 * 512 * 512 * 4


def test_what_a_network_holds_is_measured_as_operations_make_it() -> None:
    """Input 1, then 1 + 4, then 4 + 4 while the next is made of it, in numbers a voxel."""
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 2, 1))
    assert held_by(network, (1, 96, 64, 48), CPU) == (1 + 4 + 4) * 4 * 96 * 64 * 48


def test_a_network_for_one_size_alone_is_measured_at_that() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(96 * 96, 5))
    assert held_by(network, (1, 96, 96), CPU) >= 96 * 96 * 4
    assert held_by(network, (1, 80, 80), CPU) == 0


def test_the_least_of_machine_and_control_groups_is_free(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    inner = cgroups / "jobs" / "one"
    (proc / "self").mkdir(parents=True)
    inner.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\nHugePages_Total: 0\n")
    (proc / "self/cgroup").write_text("1:name=systemd:/\n0::/jobs/one\n")
    assert free_bytes(CPU, proc, cgroups) == 8000 << 10
    for folder, most, taken in ((inner, "max", 500), (inner.parent, "3000", 2900)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{taken}\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 150\nactive_file 50\n")
    assert free_bytes(CPU, proc, cgroups) == 3000 - 2900 + 200
    (inner / "memory.max").write_text("550\n")
    assert free_bytes(CPU, proc, cgroups) == 550 - 500 + 200


def test_a_group_of_the_first_version_counts_too(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("4:memory:/docker/abc\n0::/\n")
    (tmp_path / "cgroup/memory").mkdir(parents=True)  # a container sees its own group as the root
    (tmp_path / "cgroup/memory/memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "cgroup/memory/memory.usage_in_bytes").write_text("400\n")
    assert free_bytes(CPU, tmp_path, tmp_path / "cgroup") == 600


def test_where_nobody_tells_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(CPU, tmp_path, tmp_path) is None
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    segment(StackSource(make_stack(blobs((9, 16, 14)))), make_bundle(tmp_path), Collected())


def one_window_needs(bundle: Bundle, stack: Stack) -> int:
    """Bytes, by the refusal of a job that has none."""
    window = bundle.recipe.window
    where = lay_out(stack.shape, AS_IT_LIES, window)
    held = held_by(NETWORKS.get(bundle, CPU), (1, *window.roi), CPU)
    sizes = {"channels": 1, "classes": bundle.out_channels, "exclusive": True, "activations": held}
    return need(where, stack.shape[1:], **sizes).of(1)


def test_a_job_that_does_not_fit_is_refused_with_its_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100 << 20)
    sink = Collected()
    with pytest.raises(OutOfMemory, match=r"series 1\.2\.3\.4: about 0\.\d GiB of memory needed, 0\.1 GiB free: 3 cla"):
        segment(StackSource(make_stack(blobs((24, 16, 14)))), make_bundle(tmp_path), sink)


@pytest.mark.parametrize("uneven", [False, True])
def test_fewer_windows_at_a_time_where_memory_is_short_and_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uneven: bool
) -> None:
    coordinates = np.array([*range(20), 21.5, 22.5, 23.5, 24.5]) if uneven else None
    stack = make_stack(blobs((24, 48, 40)), coordinates=coordinates)
    bundle = make_bundle(tmp_path, window=Window((16, 16, 16), (0.5,) * 3, batch=8))
    plain, short = Collected(), Collected()
    assert segment(StackSource(stack), bundle, plain).warnings == ()
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(1.003 * one_window_needs(bundle, stack)))
    result = segment(StackSource(stack), bundle, short)
    assert any("instead of 8 windows at a time" in one for one in result.warnings)
    assert np.array_equal(plain.labels, short.labels)
    with pytest.raises(OutOfMemory):
        segment(StackSource(stack), bundle, Collected(), settings=Settings(exact=True))
