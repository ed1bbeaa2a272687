"""Voxel grids: the source's, the model's, and the affine map between them.

A volume stays in the source's axis order (k, j, i) = (slice, row, column) from reader to result. What MONAI would
have permuted and flipped is only remembered, as `Axes`:

    stored (k, j, i)  --Axes.to_model-->  what the network sees, e.g. (x, y, z) in RAS
                      <-Axes.to_source--
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from torch import Tensor

from medseg.bundle.recipe import Resample
from medseg.dicom.instance import Vector
from medseg.dicom.nifti import LPS_TO_RAS

STILL = 0.01  # of a voxel
SAME_MM = 1e-3  # MONAI's AFFINE_TOL: spacings and affines that differ by less are the same


@dataclass(frozen=True)
class Axes:
    """order[m]: the stored axis that is model axis m; flipped[m]: whether it runs the other way."""

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def model_axis(self, stored: int) -> int:
        return self.order.index(stored)

    def to_model(self, tensor: Tensor) -> Tensor:
        """(..., k, j, i) -> (..., *model axes); a view unless an axis is flipped."""
        lead = tensor.ndim - 3
        view = tensor.permute(*range(lead), *(lead + axis for axis in self.order))
        dims = [lead + m for m in range(3) if self.flipped[m]]
        return view.flip(dims) if dims else view

    def to_source(self, tensor: Tensor) -> Tensor:
        """(..., *model axes) -> (..., k, j, i): undoes `to_model`."""
        lead = tensor.ndim - 3
        dims = [lead + m for m in range(3) if self.flipped[m]]
        view = tensor.flip(dims) if dims else tensor
        return view.permute(*range(lead), *(lead + self.model_axis(axis) for axis in range(3)))


@dataclass(frozen=True, eq=False)
class ModelFrame:
    """A grid as a MONAI transform sees it.

    shape: voxels per model axis. affine: 4x4 float64, model voxel index to RAS mm.
    axes: how model axes are stored; storing is not touched by `oriented`.
    """

    shape: tuple[int, int, int]
    affine: Vector
    axes: Axes

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        k, j, i = (self.shape[self.axes.model_axis(axis)] for axis in range(3))
        return k, j, i

    def from_stored(self) -> Vector:
        """4x4: index in stored order to index in model order."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for m, axis in enumerate(self.axes.order):
            matrix[m, axis] = -1.0 if self.axes.flipped[m] else 1.0
            matrix[m, 3] = self.shape[m] - 1 if self.axes.flipped[m] else 0.0
        return matrix


def source_frame(affine: Vector, shape: tuple[int, int, int]) -> ModelFrame:
    """The source as MONAI loads DICOM: axes (i, j, k) = (column, row, slice).

    affine: 4x4, (k, j, i, 1) to LPS mm. shape: (k, j, i).
    """
    return ModelFrame(shape[::-1], LPS_TO_RAS @ affine[:, [2, 1, 0, 3]], Axes((2, 1, 0), (False, False, False)))


def oriented(frame: ModelFrame, axcodes: str) -> ModelFrame:
    """Axes reordered and flipped to the anatomical codes nearest to `axcodes`, as Orientationd."""
    turn = ornt_transform(io_orientation(frame.affine), axcodes2ornt(tuple(axcodes)))
    source_axes = np.argsort(turn[:, 0]).astype(int)  # new axis n comes from old axis source_axes[n]
    flips = [bool(turn[old, 1] < 0) for old in source_axes]
    x, y, z = (int(old) for old in source_axes)
    axes = Axes(
        (frame.axes.order[x], frame.axes.order[y], frame.axes.order[z]),
        (frame.axes.flipped[x] != flips[0], frame.axes.flipped[y] != flips[1], frame.axes.flipped[z] != flips[2]),
    )
    shape = (frame.shape[x], frame.shape[y], frame.shape[z])
    return ModelFrame(shape, frame.affine @ inv_ornt_aff(turn, frame.shape), axes)


def straight(affine: Vector, spacing_mm: Vector) -> Vector:
    """An affine of that spacing whose axes are orthogonal, the first along the given one's first (MONAI zoom_affine).

    Shear (gantry tilt) is dropped by a QR decomposition that keeps axis directions; no translation.
    """
    columns = affine[:3, :3]
    upper = np.linalg.cholesky(columns.T @ columns).T
    result = np.eye(4)
    result[:3, :3] = columns @ np.linalg.inv(upper) @ np.diag(np.sign(np.diag(upper)) * np.abs(spacing_mm))
    return result


def spacing_of(affine: Vector) -> Vector:
    """Lengths (mm) of an affine's three axes."""
    lengths: Vector = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return lengths


def resampled(frame: ModelFrame, step: Resample) -> ModelFrame:
    """The grid after Spacingd: its size, spacing and origin by MONAI's rules.

    Size along an axis: round((n - 1) * old / new + 1), voxel centres of the first corner on each other;
    with `scale_extent` round(n * old / new), outer edges on each other.
    """
    old = spacing_of(frame.affine)
    new = old.copy()
    for axis, wanted in enumerate(step.spacing_mm[:3]):
        if wanted > 0 and abs(wanted - old[axis]) > SAME_MM:
            new[axis] = wanted
    affine = straight(frame.affine, new)
    shape, origin = _extent(frame, affine, step.scale_extent)
    affine[:3, 3] = origin
    if shape == frame.shape and np.allclose(affine, frame.affine, atol=SAME_MM):
        return frame
    return replace(frame, shape=shape, affine=affine)


def _extent(frame: ModelFrame, affine: Vector, scale_extent: bool) -> tuple[tuple[int, int, int], Vector]:
    """Size and origin of a grid that covers `frame` (MONAI compute_shape_offset)."""
    size = np.array(frame.shape, dtype=float)
    ends = [(-0.5, n - 0.5) if scale_extent else (0.0, n - 1.0) for n in size]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    corners = np.concatenate([corners, np.ones_like(corners[:1])])
    inside = (np.linalg.solve(affine, frame.affine) @ corners)[:3]
    reach: Vector = inside.max(axis=1) - inside.min(axis=1)
    shape = np.round(reach if scale_extent else reach + 1.0)
    first = [n for n in range(8) if np.allclose((inside - inside[:, n : n + 1]).min(axis=1), 0.0, rtol=SAME_MM)]
    origin: Vector
    if first:
        origin = (frame.affine @ corners)[:3, first[0]]
    else:  # sheared: no corner is the least along every axis, so the centres are laid on each other
        centre = frame.affine[:3, :3] @ (size / 2.0) + frame.affine[:3, 3]
        origin = np.asarray(centre - affine[:3, :3] @ (shape / 2.0))
    if scale_extent:
        shift = np.append(0.5 * (size / shape - 1.0), 1.0)
        origin = np.asarray(np.abs((frame.affine @ shift)[:3]) * np.sign(origin), dtype=np.float64)
    i, j, k = (int(n) for n in shape)
    return (i, j, k), origin


def between(old: ModelFrame, new: ModelFrame) -> Vector:
    """4x4: index on the new grid to index on the old one, both in model order; the frames have the same axes."""
    return np.asarray(np.linalg.solve(old.affine, new.affine), dtype=np.float64)


def index_map(old: ModelFrame, new: ModelFrame) -> Vector:
    """4x4: index on the new grid to index on the old one, both in stored order."""
    result: Vector = np.linalg.inv(old.from_stored()) @ np.linalg.solve(old.affine, new.affine) @ new.from_stored()
    return result


def parallel(old: ModelFrame, new: ModelFrame, *, still: float = STILL) -> bool:
    """Whether the axes of two frames run along each other, so that each can be resampled on its own.

    Directions in headers are rounded: what moves no voxel by as much of one as `still` is no slant.
    """
    matrix = between(old, new)[:3, :3]
    slant = np.abs(matrix - np.diag(np.diag(matrix)))
    return bool((slant @ np.array(new.shape)).max() < still)
