"""The 48 ways that a volume may lie to its model's axes."""

from __future__ import annotations

from itertools import permutations, product

from medseg.inference.grids.grid import Axes

ALL_AXES = [Axes(order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)]
