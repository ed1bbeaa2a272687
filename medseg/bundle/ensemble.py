"""Several looks at a window as one network: mirrored (test-time flips), and by several sets of weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of what networks say of a window and of its mirror images, laid back: (B, C, *S) -> (B, K, *S).

    flips: axes of the window along which it is mirrored; every combination of them is looked at, so n axes take 2^n
        times as long. Scores are averaged before any activation, one after the other: no more than two exist, but for
        those of mirror images that run together.
    """

    def __init__(self, members: Sequence[nn.Module], flips: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        counts = range(len(flips) + 1)
        self._mirrored = [dims for n in counts for dims in itertools.combinations([2 + axis for axis in flips], n)]

    def forward(self, x: Tensor, together: int = 1) -> Tensor:
        """together: how many mirror images run as one batch."""
        total: Tensor | None = None
        for first in range(0, len(self._mirrored), together):
            some = self._mirrored[first : first + together]
            seen = [x.flip(dims) if dims else x for dims in some]
            batch = seen[0] if len(seen) == 1 else torch.cat(seen)
            for member in self.members:
                made: Tensor = member(batch)
                for dims, scores in zip(some, (made,) if len(some) == 1 else torch.split(made, len(x)), strict=True):
                    laid_back = scores.flip(dims) if dims else scores
                    total = laid_back if total is None else total + laid_back
        assert total is not None
        return total / (len(self._mirrored) * len(self.members))
