"""What is given up when memory runs out: a table of where a job stands and where it goes on."""

from __future__ import annotations

import pytest
import torch

from medseg.inference.engines.device import CPU
from medseg.inference.engines.ladder import MemoryLadder, Step

GPU = torch.device("cuda:0")


def at(
    device: torch.device, batch: int, precision: str = "fp32", *, exact: bool = False, mirrored: int = 1
) -> MemoryLadder:
    return MemoryLadder(device, precision, batch, GPU, exact, mirrored)


@pytest.mark.parametrize(
    ("before", "after", "warning"),
    [
        (at(GPU, 8), at(GPU, 4), "out of memory on cuda:0: going on with 4 windows at a time"),
        (at(GPU, 5), at(GPU, 2), "out of memory on cuda:0: going on with 2 windows at a time"),
        (at(CPU, 3), at(CPU, 1), "out of memory on cpu: going on with 1 windows at a time"),
        (at(GPU, 1), at(CPU, 1), "out of memory on cuda:0 with one window: going on on the CPU"),
        (at(GPU, 1, "fp16"), at(CPU, 1, "fp32"), "out of memory on cuda:0 with one window: going on on the CPU"),
        (at(GPU, 1, "bf16"), at(CPU, 1, "bf16"), "out of memory on cuda:0 with one window: going on on the CPU"),
        (at(GPU, 2, "fp16"), at(GPU, 1, "fp16"), "out of memory on cuda:0: going on with 1 windows at a time"),
        (at(GPU, 2, mirrored=8), at(GPU, 1, mirrored=8), "out of memory on cuda:0: going on with 1 windows at a time"),
        (
            at(GPU, 1, mirrored=8),
            at(GPU, 1, mirrored=4),
            "out of memory on cuda:0: going on with 4 mirror images of a window at a time",
        ),
        (at(CPU, 1), None, ""),
        (at(CPU, 4, exact=True), None, ""),  # MONAI's bits depend on its batches
    ],
)
def test_where_windows_do_not_fit(before: MemoryLadder, after: MemoryLadder | None, warning: str) -> None:
    assert before.fewer_windows() == (None if after is None else Step(after, warning))


def test_every_way_down_ends() -> None:
    ladder, steps = at(GPU, 15, "fp16"), 0
    while (step := ladder.fewer_windows()) is not None:
        ladder, steps = step.ladder, steps + 1
    assert (ladder, steps) == (MemoryLadder(CPU, "fp32", 1, GPU), 4)


def test_where_sums_do_not_fit() -> None:
    step = at(GPU, 4).sums_elsewhere()
    assert step is not None
    assert step.ladder == MemoryLadder(GPU, "fp32", 4, CPU)
    assert step.warning == "out of memory on cuda:0: scores are stitched in the machine's memory"
    assert step.ladder.sums_elsewhere() is None


def test_a_batch_never_grows() -> None:
    assert at(GPU, 4).at_most(8) == at(GPU, 4)
    assert at(GPU, 4).at_most(2) == at(GPU, 2)
    assert at(GPU, 4, mirrored=8).at_most(8, 4) == at(GPU, 4, mirrored=4)
