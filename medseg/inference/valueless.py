"""Voxels of the source without a value (NaN, infinity): the network is given the floor there, and no label stays.

planes, decoded in their order -> see -> the same without gaps, for the network
labels of plane n              -> clear -> the same without labels where plane n has no value
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Pixels
from medseg.inference.labels import LabelPlane


class Valueless:
    """What has no value in the planes that passed. floor: what stands in its place. voxels: how many there are."""

    def __init__(self, floor: float = 0.0) -> None:
        self.floor = np.float32(floor)
        self.voxels = 0
        self._count = 0
        self._packed: dict[int, bytes] = {}

    def __len__(self) -> int:
        """How many planes have passed."""
        return self._count

    def see(self, plane: Pixels) -> tuple[Pixels, Pixels]:
        """The next plane (rows, columns): with the floor where there is no value, and its values alone."""
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.isfinite(plane.sum())  # as nearly always; what is not finite would show in the sum
        good = None if whole else np.isfinite(plane)
        if good is None or good.all():
            self._count += 1
            return plane, plane
        self._packed[self._count] = zlib.compress(np.packbits(good).tobytes(), 1)
        self.voxels += int(good.size - np.count_nonzero(good))
        self._count += 1  # last, since another thread goes by it
        return np.where(good, plane, self.floor), plane[good]

    def clear(self, n: int, labels: LabelPlane) -> LabelPlane:
        """Labels (rows, columns), or (segments, rows, columns), of plane n, which has passed."""
        packed = self._packed.get(n)
        if packed is None:
            return labels
        bits = np.frombuffer(zlib.decompress(packed), np.uint8)
        rows, columns = labels.shape[-2:]
        good: NDArray[np.uint8] = np.unpackbits(bits, count=rows * columns).reshape(rows, columns)
        return labels * good
