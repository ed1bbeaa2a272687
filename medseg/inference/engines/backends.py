"""The back-ends, in the order of what they cost; those of torch itself are here."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Final

import torch
from torch import Tensor, nn

from medseg.inference.engines.case import AUTOCAST, OPENVINO, TORCH, BackEnd, Case, Run, eager, in_batches_of
from medseg.inference.engines.openvino import load_made_openvino, make_openvino, openvino_missing
from medseg.inference.engines.tensorrt import load_tensorrt, make_tensorrt, tensorrt_missing


def _nothing(case: Case, folder: Path) -> None:
    """torch is ready as it is."""


def _channels_last_missing(device: torch.device, precision: str) -> str | None:
    return None if precision in AUTOCAST or device.type == "cuda" else "in fp32 on a CPU it is several times slower"


def _load_channels_last(case: Case, _: Path) -> Run:
    layout = torch.channels_last_3d if len(case.shape) == 4 else torch.channels_last
    network = copy.deepcopy(case.network).to(memory_format=layout)  # type: ignore[call-overload]
    plain = eager(Case(network, case.device, case.precision, case.shape, case.batch, case.digest))
    return lambda windows: plain(windows.contiguous(memory_format=layout)).contiguous()


def _compile_missing(device: torch.device, _: str) -> str | None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "no C++ compiler is here: install g++"
    return "Triton is not installed" if device.type == "cuda" and find_spec("triton") is None else None


class _Cast(nn.Module):
    """A network that sees to its precision by itself."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.network, self._device, self._dtype = case.network, case.device.type, AUTOCAST.get(case.precision)

    def forward(self, windows: Tensor) -> Tensor:
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            scores: Tensor = self.network(windows)
        return scores.float()


def _make_compiled(case: Case, folder: Path) -> None:
    exported = torch.export.export(_Cast(case).eval(), (case.example(),))
    # In this process: helpers that compile side by side would stay, each with a torch of its own.
    options = {"compile_threads": 1, "freezing": case.device.type == "cpu"}
    torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "model.pt2"), inductor_configs=options)


def _load_compiled(case: Case, folder: Path) -> Run:
    compiled = torch._inductor.aoti_load_package(str(folder / "model.pt2"))

    def run(windows: Tensor) -> Tensor:
        with torch.inference_mode():
            scores: Tensor = compiled(windows)
            return scores

    return in_batches_of(case.fixed, run)


def _here(_device: torch.device, _precision: str) -> None:
    return None


BACKENDS: Final[dict[str, BackEnd]] = {
    one.name: one
    for one in (
        BackEnd(TORCH, 0, _here, _nothing, lambda case, _: eager(case)),
        BackEnd("torch-channels-last", 1, _channels_last_missing, _nothing, _load_channels_last),
        BackEnd(OPENVINO, 8, openvino_missing, make_openvino, load_made_openvino),
        BackEnd("compile", 60, _compile_missing, _make_compiled, _load_compiled),
        BackEnd("tensorrt", 90, tensorrt_missing, make_tensorrt, load_tensorrt),
    )
}
"""In the order of what they cost: a race that is not worth all of them takes the first."""


_MAKING: Final = Lock()


def made(case: Case, backend: BackEnd, folder: Path) -> Run:
    """The back-end, made in an empty folder and loaded. Raises one of `FAILURES`.

    It is made of a copy: while torch exports a network, that one's weights are stand-ins without numbers, and another
    thread may run it, where a job gave up waiting for its engine. And torch exports one network at a time.
    """
    with _MAKING, warnings.catch_warnings():  # of the compilers, about themselves
        warnings.simplefilter("ignore")
        with torch.no_grad():
            backend.make(replace(case, network=copy.deepcopy(case.network)), folder)
        return backend.load(case, folder)
