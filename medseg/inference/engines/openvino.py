"""OpenVINO, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from medseg.inference.engines.case import Case, Run
from medseg.inference.engines.means import in_means
from medseg.inference.engines.polyphase import in_phases
from medseg.inference.engines.summed import in_sums


def openvino_missing(device: torch.device, precision: str) -> str | None:
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install openvino"
    if device.type != "cpu":
        return "OpenVINO runs on CPUs here"
    if precision == "fp16" or (precision == "bf16" and not torch.cpu._is_avx512_bf16_supported()):
        return f"this CPU does not compute in {precision}"
    return None


def load_openvino() -> Any:
    """OpenVINO, silenced: as it comes, its import and every conversion are reported to its makers over the network."""
    if "openvino_telemetry" not in sys.modules:
        nothing: Any = None
        sys.modules["openvino_telemetry"] = nothing  # as if it were not installed: there is a stub for that
    import openvino

    return openvino


def make_openvino(case: Case, folder: Path) -> None:
    openvino = load_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    _quiet(TorchFXPythonDecoder)
    network = in_means(in_phases(in_sums(case.network)))
    exported = torch.export.export(network, (case.example(),))
    decoder = TorchFXPythonDecoder.from_exported_program(exported, dynamic_shapes=False)  # outlives what is made of it
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(decoder))
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    _survive(case, folder / "model.xml")


def _quiet(decoder: Any) -> None:
    """The table of decompositions that the decoder would make, without a logged stack trace for each it does not find.

    Where a later version keeps no such table, this does nothing.
    """
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    from torch.export.decomp_utils import CustomDecompTable

    if getattr(decoder, "_decomp_table", 0) is None:
        table: Any = CustomDecompTable()  # type: ignore[no-untyped-call]
        for operator in ops_to_not_decompose():
            table.pop(operator, None)
        decoder._decomp_table = table


_TRIAL: Final = """
import json, sys
sys.modules["openvino_telemetry"] = None
import numpy, openvino
model, options, shape = sys.argv[1], *map(json.loads, sys.argv[2:])
openvino.Core().compile_model(model, "CPU", options)(numpy.zeros(shape, "float32"))
"""


_TRIAL_S: Final = 120.0


def _survive(case: Case, model: Path) -> None:
    """Compile and run it in a process of its own first. Raises RuntimeError, OSError.

    Some networks end the process (OpenVINO 2026.4: a DeepLab with group norm, a PSPNet with instance norm), and with it
    all else that runs there.
    """
    facts = (json.dumps(_openvino_options(case)), json.dumps(case.example().shape))
    try:
        tried = subprocess.run([sys.executable, "-c", _TRIAL, model, *facts], timeout=_TRIAL_S, capture_output=True)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"OpenVINO took more than {_TRIAL_S:.0f} s for one window") from error
    if tried.returncode:
        said = tried.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else f"OpenVINO ended its process ({tried.returncode})")


def _openvino_options(case: Case) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if case.precision == "bf16" else "f32",
        "NUM_STREAMS": _streams(case),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same cores
    }


def _streams(case: Case) -> int:
    """Windows that run side by side, each on its share of the threads, which then wait for each other less. One alone
    where there is memory for one."""
    return min(case.batch, torch.get_num_threads(), 2)


_HELD: Final = 32 << 20  # bytes of scores that a request may keep


class OwnThreads:
    """What OpenVINO made of a network; it goes on by itself with windows that it was begun with. Safe to share between
    threads."""

    def __init__(self, compiled: Any) -> None:
        self._compiled, self._idle = compiled, deque[Any]()
        self._tensor, self._shape = load_openvino().Tensor, tuple(compiled.output(0).shape)

    def __call__(self, windows: Tensor) -> Tensor:
        scores = torch.empty(len(windows), *self._shape[1:])
        with ExitStack() as stack:  # whatever fails, none of them runs any more afterwards
            for window, under in zip(torch.split(windows, 1), torch.split(scores, 1), strict=True):
                stack.callback(self._start(window.contiguous(), under))
        return scores

    def begin(self, window: Tensor) -> Callable[[], Tensor]:
        """(1, C, *roi), to be left as it is until there is the answer, (1, K, *roi)."""
        scores = torch.empty(self._shape)
        wait = self._start(window.contiguous(), scores)

        def answer() -> Tensor:
            wait()
            return scores

        return answer

    def _start(self, window: Tensor, scores: Tensor) -> Callable[[], None]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.set_input_tensor(self._tensor(window.numpy(), shared_memory=True))
        request.set_output_tensor(self._tensor(scores.numpy(), shared_memory=True))
        request.start_async()

        def wait() -> None:
            request.wait()
            if scores.nbytes <= _HELD:  # it holds on to its tensors until it has others
                self._idle.append(request)

        return wait


def load_made_openvino(case: Case, folder: Path) -> Run:
    core = load_openvino().Core()
    return OwnThreads(core.compile_model(folder / "model.xml", "CPU", _openvino_options(case)))
