"""Voxels on their way to a GPU, and labels on their way back: through pinned memory, while it computes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Staging:
    """Two pinned buffers in turns: the device copies out of one while the other is filled.

    Memory is pinned once, since pinning it anew for each batch takes longer than the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[tuple[Tensor, torch.cuda.Event]] = []  # the one that was used longest ago first

    def __call__(self, windows: Tensor) -> Tensor:
        """(B, ...) -> the same on the device, for work on its current stream; as they are where they are there."""
        if self._device.type != "cuda" or windows.device.type != "cpu":
            return windows.to(self._device)
        if len(self._buffers) < 2:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._buffers.insert(0, (torch.empty(windows.shape, pin_memory=True), event))
        buffer, copied = self._buffers.pop(0)
        copied.synchronize()  # at once, where nothing was recorded yet
        if len(buffer) < len(windows) or buffer.shape[1:] != windows.shape[1:]:
            buffer = torch.empty(windows.shape, pin_memory=True)
        there = buffer[: len(windows)].copy_(windows).to(self._device, non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        self._buffers.append((buffer, copied))
        return there


def on_its_way(plane: Tensor) -> Callable[[], Tensor]:
    """A plane begins its way to the CPU; what waits for it gives it there. torch keeps pinned memory for the next."""
    if not plane.is_cuda:
        return plane.cpu
    there = torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True)
    there.copy_(plane, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(plane.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return there

    return wait
