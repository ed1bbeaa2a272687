"""Several looks at a window as one network: mirrored (test-time flips), and by several sets of weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of what networks say of a window and of its mirror images, laid back: (B, C, *S) -> (B, K, *S).

    flips: axes of the window along which it is mirrored; every combination of them is looked at, so n axes take 2^n
        times as long. Scores are averaged before any activation, one after the other: no more than two exist.
    """

    def __init__(self, members: Sequence[nn.Module], flips: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        counts = range(len(flips) + 1)
        self._mirrored = [dims for n in counts for dims in itertools.combinations([2 + axis for axis in flips], n)]

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for dims in self._mirrored:
            seen = x.flip(dims) if dims else x
            for member in self.members:
                scores: Tensor = member(seen)
                scores = scores.flip(dims) if dims else scores
                total = scores if total is None else total + scores
        assert total is not None
        return total / (len(self._mirrored) * len(self.members))
