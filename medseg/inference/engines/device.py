"""Which device, which precision, and what running out of memory looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from medseg.bundle.bundle import Bundle
from medseg.errors import NoDevice, OutOfMemory, UncheckedPrecision, UsageError
from medseg.inference.engines.case import AUTOCAST

CPU: Final = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA device where there is one. Raises UsageError, ResourceError."""
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no such device: {name!r}; known are auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise NoDevice(name, count)
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise UsageError(f"device {name!r} is not supported; known are auto, cpu, cuda, cuda:N")
    return device


def choose_precision(name: str, bundle: Bundle, device: torch.device) -> str:
    """fp32, bf16 or fp16. Others than fp32 only where the bundle was checked with them; "auto" is the first that is and
    in which the device computes faster.

    Raises UsageError for a precision that the bundle does not name.
    """
    if name == "fp32":
        return name
    if name == "auto":
        usable = (lower for lower in bundle.precisions if lower in AUTOCAST and is_faster_in(lower, device))
        return next(usable, "fp32")
    if name not in AUTOCAST:
        raise UsageError(f"no such precision: {name!r}; known are auto, fp32, {', '.join(AUTOCAST)}")
    if name not in bundle.precisions:
        raise UncheckedPrecision(bundle.name, name, bundle.precisions)
    return name


def runs_in(precision: str, device: torch.device) -> bool:
    """Whether the device computes in that precision itself rather than emulating it."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16" and torch.cpu._is_avx512_bf16_supported()


def is_faster_in(precision: str, device: torch.device) -> bool:
    """Whether the device computes in that precision itself, and faster than in fp32.

    A CPU does so with AMX. With AVX512-BF16 alone a product of matrices took 1.6 times as long in bf16 as in fp32
    (torch 2.13), each convolution of a U-Net 1.2 to 2 times (OpenVINO 2026.4).
    """
    return runs_in(precision, device) and (device.type != "cpu" or torch.cpu._is_amx_tile_supported())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch means that memory did not suffice."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what Python and torch raise when memory runs out into `OutOfMemory`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"memory did not suffice: {error}".splitlines()[0]) from error


def steady_batch(batch: int) -> int:
    """Windows at a time on a CPU, at most: `batch`, within limits. Small ones gain by a second; for 16 and more torch
    takes other convolutions on one thread (use_mkldnn in ATen's Convolution.cpp), and scores would have other bits."""
    return min(max(batch, 2), 15)
