"""Planes of scores that wait on disk for those of the next fold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.errors import OutputNotWritable


class WaitingScores:
    """Planes (K, y, x) in half, all of one shape: iterating gives new ones with the same values."""

    def __init__(self, planes: Iterable[Tensor]) -> None:
        """Raises OutputNotWritable where there is no room for temporary files."""
        self._shape: tuple[int, ...] = ()
        self._count = 0
        try:
            self._file = tempfile.TemporaryFile(prefix="medseg-")  # noqa: SIM115 - goes with us
        except OSError as error:
            raise _no_room(error) from error
        for plane in planes:
            self._shape = tuple(plane.shape)
            try:
                self._file.write(plane.cpu().contiguous().numpy().data)
            except OSError as error:
                raise _no_room(error) from error
            self._count += 1

    def __iter__(self) -> Iterator[Tensor]:
        self._file.seek(0)
        for _ in range(self._count):
            plane = np.empty(self._shape, np.float16)
            self._file.readinto(plane.data)
            yield torch.from_numpy(plane)


def _no_room(error: OSError) -> OutputNotWritable:
    why = f"{error.strerror or error}, for scores that wait for the next fold's"
    return OutputNotWritable(Path(tempfile.gettempdir()), why)
