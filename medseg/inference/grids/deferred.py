"""Planes that wait on disk for what a step needs to know of all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medseg.bundle.recipe import Intensity, needs_whole
from medseg.errors import OutputNotWritable
from medseg.inference.grids.prepare import scale_settled
from medseg.inference.grids.statistics import VolumeStatistics
from medseg.inference.planes import PlaneStore


class DeferredPlanes:
    """Intensity steps, one of which needs the whole volume: planes 0, 1, ... go in, and once all have, come out."""

    def __init__(self, steps: Sequence[Intensity]) -> None:
        """Raises OutputNotWritable where there is no room for temporary files."""
        at = next(n for n, step in enumerate(steps) if needs_whole(step))
        self._early, self._late = tuple(steps[:at]), tuple(steps[at + 1 :])
        self._gathering = VolumeStatistics(steps[at])
        self._planes: list[list[tuple[int, int, str]]] = []  # of each, its channels
        self._shape: tuple[int, int] = (0, 0)
        try:
            self._store = PlaneStore()
        except OSError as error:
            raise _no_room(error) from error

    def __len__(self) -> int:
        return len(self._planes)

    def add(self, plane: Tensor) -> None:
        """The next plane (C, rows, columns). Raises OutputNotWritable."""
        plane = scaled(plane, self._early)
        self._gathering.add(plane)
        self._shape = plane.shape[1], plane.shape[2]
        try:
            self._planes.append([self._store.put(channel.numpy()) for channel in plane])
        except OSError as error:
            raise _no_room(error) from error

    def settle(self) -> Intensity:
        """All planes have come: the step that needed them, which now needs nothing else."""
        step = self._gathering.settle(self._again)
        self._late = (step, *self._late)
        return step

    def plane(self, n: int) -> Tensor:
        """After all steps, once they are settled."""
        return scaled(self._waiting(n), self._late)

    def _again(self) -> Iterator[Tensor]:
        return (self._waiting(n) for n in range(len(self)))

    def _waiting(self, n: int) -> Tensor:
        return torch.stack([torch.from_numpy(self._store.get(where, self._shape)) for where in self._planes[n]])


def scaled(plane: Tensor, steps: Sequence[Intensity]) -> Tensor:
    """The plane itself where there is nothing to do, else a new one."""
    plane = plane.clone() if steps else plane
    for step in steps:
        plane = scale_settled(plane, step)
    return plane


def _no_room(error: OSError) -> OutputNotWritable:
    why = f"{error.strerror or error}, for planes that wait for the rest of their volume"
    return OutputNotWritable(Path(tempfile.gettempdir()), why)
