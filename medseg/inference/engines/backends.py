"""The back-ends, each a row of one table: may it run here, how it is made, how what was made is run.

    network --torch.export--> artifact, a folder of files --load--> run: (B, C, *roi) -> (B, K, *roi)

What is made depends on the network, the shape of its windows, the precision and the machine alone, so it is kept
(`shelf`) and loaded in a fraction of the time. torch itself needs nothing made. Windows have one shape throughout, and
so has what is exported: on a CPU one window, so that a window's scores cannot depend on what else is in its batch; on a
GPU batches of the bundle's size, the last filled.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from medseg.inference.engines.phases import in_phases

AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
TORCH: Final = "torch"
OPENVINO: Final = "openvino"

Run: TypeAlias = Callable[[Tensor], Tensor]
"""(B, C, *roi) -> (B, K, *roi), on the case's device; any B. 2D windows have two entries in roi."""


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be run. shape: (C, *roi) of a window; batch: windows at a time; digest: of the network's bundle."""

    network: nn.Module
    device: torch.device
    precision: str
    shape: tuple[int, ...]
    batch: int
    digest: str

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

    def run(windows: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            _full_precision(case.device),
            torch.autocast(case.device.type, dtype, enabled=dtype is not None),
        ):
            scores: Tensor = case.network(windows)
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


def _nothing(case: Case, folder: Path) -> None:
    """torch is ready as it is."""


# ---- torch, channels last: convolutions in lower precisions may like that better


def _channels_last_missing(device: torch.device, precision: str) -> str | None:
    return None if precision in AUTOCAST or device.type == "cuda" else "in fp32 on a CPU it is several times slower"


def _load_channels_last(case: Case, _: Path) -> Run:
    layout = torch.channels_last_3d if len(case.shape) == 4 else torch.channels_last
    network = copy.deepcopy(case.network).to(memory_format=layout)  # type: ignore[call-overload]
    plain = eager(Case(network, case.device, case.precision, case.shape, case.batch, case.digest))
    return lambda windows: plain(windows.contiguous(memory_format=layout)).contiguous()


# ---- torch.compile, ahead of time (AOTInductor): a library made by a C++ compiler or Triton


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

    return _by(case.fixed, run)


# ---- OpenVINO, on a CPU


def _openvino_missing(device: torch.device, precision: str) -> str | None:
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


def _make_openvino(case: Case, folder: Path) -> None:
    openvino = load_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    _quiet(TorchFXPythonDecoder)
    exported = torch.export.export(in_phases(case.network), (case.example(),))
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
            self._idle.append(request)

        return wait


def _load_openvino(case: Case, folder: Path) -> Run:
    core = load_openvino().Core()
    return OwnThreads(core.compile_model(folder / "model.xml", "CPU", _openvino_options(case)))


# ---- TensorRT, on a GPU


def _tensorrt_missing(device: torch.device, _: str) -> str | None:
    if device.type != "cuda":
        return "TensorRT needs a CUDA device"
    return None if find_spec("torch_tensorrt") else "TensorRT is not installed: pip install 'medseg[tensorrt]'"


def _make_tensorrt(case: Case, folder: Path) -> None:
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


def _load_tensorrt(case: Case, folder: Path) -> Run:
    import torch_tensorrt  # noqa: F401 - registers the operators that the file is made of

    module = torch.export.load(folder / "model.ep").module()

    def run(windows: Tensor) -> Tensor:
        with torch.inference_mode(), torch.cuda.device(case.device):
            scores: Tensor = module(windows)
            return scores

    return _by(case.fixed, run)


# ---- all of them


def _by(size: int, run: Run) -> Run:
    """`run` for any number of windows, where it takes `size` of them: the last are filled up with one of them."""

    def runs(windows: Tensor) -> Tensor:
        done = []
        for part in torch.split(windows, size):
            missing = size - len(part)
            given = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part.contiguous()
            done.append(run(given)[: len(part)])
        return done[0] if len(done) == 1 else torch.cat(done)

    return runs


def _here(_device: torch.device, _precision: str) -> None:
    return None


BACKENDS: Final[dict[str, BackEnd]] = {
    one.name: one
    for one in (
        BackEnd(TORCH, 0, _here, _nothing, lambda case, _: eager(case)),
        BackEnd("torch-channels-last", 1, _channels_last_missing, _nothing, _load_channels_last),
        BackEnd(OPENVINO, 8, _openvino_missing, _make_openvino, _load_openvino),
        BackEnd("compile", 60, _compile_missing, _make_compiled, _load_compiled),
        BackEnd("tensorrt", 90, _tensorrt_missing, _make_tensorrt, _load_tensorrt),
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
