"""The ways that a volume may lie to the patient's axes."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

Direction = tuple[float, float, float]

#: All 48: rows are the directions of k, j, i. Eight for each order of the axes, signs as in `product`.
ORIENTATIONS: list[NDArray[np.float64]] = [
    np.array([np.eye(3)[axis] * sign for axis, sign in zip(order, signs, strict=True)])
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]

_AXES: list[Direction] = [
    (sign * x, sign * y, sign * z)
    for x, y, z in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    for sign in (1.0, -1.0)
]
#: The 24 ways to lay rows and columns of an image; the order of slices makes 48 of them.
ROW_AND_COLUMN: list[tuple[Direction, Direction]] = [
    (row, column) for row, column in permutations(_AXES, 2) if np.dot(row, column) == 0
]
