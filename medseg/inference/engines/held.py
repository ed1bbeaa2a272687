"""How much a network holds at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg.inference.engines.cache import EngineCache
from medseg.inference.engines.case import Case

_HELD: Final = "held"
_STEP: Final = 32  # voxels: networks halve a window up to five times


def held_of(case: Case) -> int:
    """As `held_by`, measured once on a machine."""
    kept = EngineCache(case)
    known = (kept.read(_HELD) or {}).get("bytes")
    if isinstance(known, int):
        return known
    found = held_by(case.network, case.shape, case.device)
    kept.write(_HELD, {"bytes": found})
    return found


def held_by(network: nn.Module, shape: Sequence[int], device: torch.device) -> int:
    """Bytes of tensors that a network in torch holds at once for one window (C, *roi), its input and output among them.

    Measured on a small window, since a network's tensors grow with the voxels; on one of that size where it takes no
    other; 0 where it takes none, which the job will tell better. Other precisions and back-ends need less.
    """
    channels, *roi = shape
    for size in (tuple(min(n, max(_STEP, math.ceil(n / 3 / _STEP) * _STEP)) for n in roi), tuple(roi)):
        try:
            with torch.inference_mode(), _Held() as held:
                network(torch.zeros((1, channels, *size), device=device))
        except (RuntimeError, ValueError):
            continue
        peak: int = held.peak
        return math.ceil(peak * math.prod(roi) / math.prod(size))
    return 0


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, as operations make them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[held.cdata] = held, storage.nbytes()
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}  # type: ignore[no-untyped-call]
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result
