"""Splines on a GPU: along an axis they are a matrix, so that an image is brought to another grid by products.

new samples of an axis = M old ones, where column n of M is what scipy's zoom makes of 1 at sample n and 0 elsewhere
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from medseg.inference.engines.device import is_out_of_memory
from medseg.inference.nnunet.resample import Array, overshot

logger = logging.getLogger(__name__)


class DeviceZoom:
    """As `resample.overshot`, but for a double's last bits, on a device; on the CPU where that has no room."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Beside the network's work, and not behind it.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._full = False

    def __call__(self, image: Array, shape: Sequence[int], order: int) -> Array:
        if not self._full:
            try:
                with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                    return self._made(torch.from_numpy(image), shape, order).cpu().numpy()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._full = True
                logger.warning("out of memory on %s: images are brought to the plans' grid on the CPU", self._device)
        return overshot(image, shape, order)

    def _made(self, image: Tensor, shape: Sequence[int], order: int) -> Tensor:
        made = image.to(self._device)
        for axis, (old, new) in enumerate(zip(image.shape, shape, strict=True)):
            if old != new:
                matrix = torch.from_numpy(spline_matrix(old, new, order)).to(self._device)
                made = torch.tensordot(made, matrix, dims=([axis], [1])).movedim(-1, axis)
        return made.contiguous()


@lru_cache(maxsize=16)
def spline_matrix(old: int, new: int, order: int) -> Array:
    """(new, old), in double."""
    return np.stack([overshot(row, (new,), order) for row in np.eye(old)], axis=1)
