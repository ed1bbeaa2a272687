"""Windows on their way to a GPU."""

from __future__ import annotations

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
        """(B, ...) on the CPU -> the same on the device, for work on its current stream; on the CPU as they are."""
        if self._device.type != "cuda":
            return windows
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
