"""Numbers that become more, slice by slice, in one block.

As an array for each slice they would stand between windows and slices that come and go in the same memory, and what is
free between them would become more with every slice.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


class Gathered(Generic[T]):
    """kind: of the numbers. shape: of an item."""

    def __init__(self, kind: type[T], *shape: int) -> None:
        self._kind, self._shape = kind, shape
        self._bytes = bytearray()

    def add(self, items: NDArray[np.generic]) -> None:
        """(n, *shape), which come behind the others."""
        self._bytes += items.astype(self._kind).tobytes()

    def all(self) -> NDArray[T]:
        """(n, *shape): a copy."""
        return np.frombuffer(self._bytes, self._kind).reshape(-1, *self._shape).copy()
