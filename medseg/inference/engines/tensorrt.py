"""TensorRT, on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from medseg.inference.engines.case import AUTOCAST, Case, Run, in_batches_of


def tensorrt_missing(device: torch.device, _: str) -> str | None:
    if device.type != "cuda":
        return "TensorRT needs a CUDA device"
    return None if find_spec("torch_tensorrt") else "TensorRT is not installed: pip install 'medseg[tensorrt]'"


def make_tensorrt(case: Case, folder: Path) -> None:
    import torch_tensorrt

    example = (case.example(),)
    low = AUTOCAST.get(case.precision)
    compiled = torch_tensorrt.dynamo.compile(
        torch.export.export(case.network, example),
        arg_inputs=example,
        device=case.device,
        disable_tf32=True,
        use_explicit_typing=True,
        enable_autocast=low is not None,
        autocast_low_precision_type=low,
    )
    torch_tensorrt.save(compiled, str(folder / "model.ep"), arg_inputs=list(example))


def load_tensorrt(case: Case, folder: Path) -> Run:
    import torch_tensorrt  # noqa: F401 - registers the operators that the file is made of

    module = torch.export.load(folder / "model.ep").module()

    def run(windows: Tensor) -> Tensor:
        with torch.inference_mode(), torch.cuda.device(case.device):
            scores: Tensor = module(windows)
            return scores

    return in_batches_of(case.fixed, run)
