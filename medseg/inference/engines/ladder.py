"""What a job gives up when memory runs out, step by step. Its labels stay what they are.

windows do not fit          8 at a time on a GPU -> 4 -> 2 -> 1, and its mirror images one by one -> 1 on the CPU
                            -> nothing is left
their sums do not fit       stitched on the GPU -> in the machine's memory -> nothing is left
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from medseg.inference.engines.device import CPU


class Step(NamedTuple):
    """Where a job goes on, and what its result is to say of that."""

    ladder: MemoryLadder
    warning: str


@dataclass(frozen=True)
class MemoryLadder:
    """Where a job stands: `batch` windows at a time in `precision` on `device`, their sums on `sums`.

    exact: batches stay as they are, since bits depend on them. mirrored: how many mirror images of a window are
    looked at together, where a bundle has any.
    """

    device: torch.device
    precision: str
    batch: int
    sums: torch.device
    exact: bool = False
    mirrored: int = 1

    def fewer_windows(self) -> Step | None:
        """The next step where windows do not fit; None where nothing is left to give up."""
        if self.batch > 1 and not self.exact:
            half = self.batch // 2
            warning = f"out of memory on {self.device}: going on with {half} windows at a time"
            return Step(replace(self, batch=half), warning)
        if self.mirrored > 1:
            half = self.mirrored // 2
            warning = f"out of memory on {self.device}: going on with {half} mirror images of a window at a time"
            return Step(replace(self, mirrored=half), warning)
        if self.device != CPU:
            # Convolutions in half precision are slower than in single there.
            precision = "fp32" if self.precision == "fp16" else self.precision
            warning = f"out of memory on {self.device} with one window: going on on the CPU"
            return Step(replace(self, device=CPU, precision=precision), warning)
        return None

    def sums_elsewhere(self) -> Step | None:
        """The next step where scores that are added up do not fit; None where they are in the machine's memory."""
        if self.sums == CPU:
            return None
        warning = f"out of memory on {self.device}: scores are stitched in the machine's memory"
        return Step(replace(self, sums=CPU), warning)

    def at_most(self, batch: int, mirrored: int = 1) -> MemoryLadder:
        """The same with no more windows at a time, nor mirror images of one."""
        return replace(self, batch=min(batch, self.batch), mirrored=min(mirrored, self.mirrored))
