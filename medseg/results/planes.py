"""Label planes kept after the pipeline has let go of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from medseg.bundle.bundle import Segment
from medseg.dicom.series import Stack
from medseg.inference.labels import LabelPlane


class LabelSpool:
    """A LabelSink that keeps planes compressed in memory: a few kB each, so thousands are no burden.

    Afterwards iterating yields planes k = 0 .. K-1 as they were given, as often as wanted.
    """

    def __init__(self) -> None:
        self._planes: list[bytes] = []

    def begin(self, stack: Stack, segments: tuple[Segment, ...], *, exclusive: bool) -> None:
        self.stack, self.segments, self.exclusive = stack, segments, exclusive
        self._shape = stack.shape[1:] if exclusive else (len(segments), *stack.shape[1:])

    def plane(self, k: int, labels: LabelPlane) -> None:
        if k != len(self._planes) or labels.shape != self._shape:
            raise ValueError(f"plane {k} of shape {labels.shape}: expected plane {len(self._planes)} of {self._shape}")
        self._planes.append(zlib.compress(np.ascontiguousarray(labels, np.uint8).tobytes(), 1))

    def end(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self._planes)

    def __getitem__(self, k: int) -> LabelPlane:
        return np.frombuffer(zlib.decompress(self._planes[k]), np.uint8).reshape(self._shape)

    def __iter__(self) -> Iterator[LabelPlane]:
        return (self[k] for k in range(len(self)))
