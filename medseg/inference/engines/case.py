"""What is to be run, and what a back-end is.

    network, shape of windows, precision, device --make--> a folder --load--> run: (B, C, *roi) -> (B, K, *roi)

What is made depends on the network, the shape of its windows, the precision and the machine alone, so it is kept
(`cache`) and loaded in a fraction of the time. torch itself needs nothing made. Windows have one shape throughout, and
so has what is exported: on a CPU one window, so that a window's scores cannot depend on what else is in its batch; on a
GPU batches of the bundle's size, the last filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from medseg.inference.engines.company import AsInCompany

AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
TORCH: Final = "torch"
OPENVINO: Final = "openvino"
Run: TypeAlias = Callable[[Tensor], Tensor]
"""(B, C, *roi) -> (B, K, *roi), on the case's device; any B. 2D windows have two entries in roi."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be run. shape: (C, *roi) of a window; batch: windows at a time; digest: of the network's bundle.

    mirrored: how many mirror images of them torch runs together, where the network is an `Ensemble` of several.
    plain: a window alone has the bits that torch gives a batch of one, not those that it has in company.
    """

    network: nn.Module
    device: torch.device
    precision: str
    shape: tuple[int, ...]
    batch: int
    digest: str
    mirrored: int = 1
    plain: bool = False

    @property
    def fixed(self) -> int:
        """Windows in a call of what has one shape."""
        return 1 if self.device.type == "cpu" else self.batch

    def example(self) -> Tensor:
        return torch.zeros(self.fixed, *self.shape, device=self.device)


@dataclass(frozen=True)
class BackEnd:
    """One way to run a network.

    cost_s: about how long a race waits for it to be made, on two cores and a network of a few million weights.
    missing: what it lacks on a device in a precision, and what to do; None where it can run.
    make: fills an empty folder with all that `load` needs, of a network that it may change. Either raises one of
        `FAILURES` where it cannot.
    """

    name: str
    cost_s: float
    missing: Callable[[torch.device, str], str | None]
    make: Callable[[Case, Path], None]
    load: Callable[[Case, Path], Run]


# What compilers of networks raise for a network that they do not know, or in a machine that they do not like.
FAILURES: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    OSError,
    MemoryError,
)


def eager(case: Case, precision: str | None = None) -> Run:
    """The network as it is; what it gives need not be one tensor. precision: another than the case's."""
    dtype = AUTOCAST.get(precision or case.precision)
    in_company = case.device.type == "cpu" and dtype is None and not case.plain

    def run(windows: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            _full_precision(case.device),
            nullcontext() if len(windows) > 1 or not in_company else AsInCompany(),
            torch.autocast(case.device.type, dtype, enabled=dtype is not None),
        ):
            together = {"together": case.mirrored} if case.mirrored > 1 else {}
            scores: Tensor = case.network(windows, **together)
            return scores

    return run


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """float32 on CUDA means float32: cuDNN rounds it to TF32 (10 bits) unless told, and may change its algorithm."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def in_batches_of(size: int, run: Run) -> Run:
    """`run` for any number of windows, where it takes `size` of them: the last are filled up with one of them."""

    def runs(windows: Tensor) -> Tensor:
        done = []
        for part in torch.split(windows, size):
            missing = size - len(part)
            given = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part.contiguous()
            done.append(run(given)[: len(part)])
        return done[0] if len(done) == 1 else torch.cat(done)

    return runs
