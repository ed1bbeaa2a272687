"""How two grids lie to each other in the patient: the map between them, and how much of one the other covers.

(k, j, i, 1) of one  --affine-->  LPS mm  --inverse of the other's affine-->  (k, j, i, 1) of the other
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from medseg.dicom.instance import Vector
from medseg.dicom.series import Stack

ASSUMED: Final = "registration_assumed"  # of a finding: that images lie on each other was said by a person

_STILL: Final = 0.01  # of a voxel: what moves none by more is the same place, since positions are rounded
_EDGE: Final = 0.501  # a voxel reaches half its size beyond its centre
_SAMPLES: Final = 64  # places along an axis, the ends among them


def grid_shape(stack: Stack) -> tuple[int, int, int]:
    """Size (k, j, i) of the uniform grid, gaps included."""
    return (round(float(stack.coordinates[-1])) + 1, *stack.shape[1:])


def between(grid: Stack, other: Stack) -> Vector:
    """4x4: (k, j, i, 1) of one uniform grid to those of the other."""
    return np.asarray(np.linalg.solve(other.affine, grid.affine), dtype=np.float64)


def same_grid(grid: Stack, other: Stack) -> bool:
    """Whether slices of both lie on each other, voxel on voxel."""
    if grid.shape != other.shape or not np.allclose(grid.coordinates, other.coordinates, atol=_STILL):
        return False
    corners = _places(grid, 2)
    return bool(np.abs(corners @ between(grid, other).T - corners).max() < _STILL)


def coverage(grid: Stack, other: Stack) -> float:
    """The share of one grid's voxel centres that lie in voxels of the other: 1.0 for all."""
    places = _places(grid, _SAMPLES) @ between(grid, other).T
    return float(inside(places[:, :3], grid_shape(other)).mean())


def inside(places: Vector, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Which places (..., 3) of a grid lie in its voxels."""
    return np.asarray(inside_along(places, np.array(shape)).all(axis=-1))


def inside_along(places: Vector, size: NDArray[np.int64] | int) -> NDArray[np.bool_]:
    """Which places on an axis lie in its `size` voxels."""
    return np.asarray((places >= -_EDGE) & (places <= size - 1 + _EDGE))


def coarser(grid: Stack, other: Stack) -> float:
    """How many times as far the other's voxels are apart, along the axis where that is most."""
    edges = [np.linalg.norm(stack.affine[:3, :3], axis=0) for stack in (other, grid)]
    directions = [stack.affine[:3, :3] / size for stack, size in zip((other, grid), edges, strict=True)]
    nearest = np.abs(directions[0].T @ directions[1]).argmax(axis=0)  # the other's axis along each of the grid's
    return float((edges[0][nearest] / edges[1]).max())


def _places(grid: Stack, most: int) -> Vector:
    """Voxels (n, 4) spread over a grid, its corners among them."""
    axes = [np.linspace(0, size - 1, min(size, most)) for size in grid_shape(grid)]
    k, j, i = np.meshgrid(*axes, indexing="ij")
    return np.stack([k.ravel(), j.ravel(), i.ravel(), np.ones(k.size)], axis=1)
