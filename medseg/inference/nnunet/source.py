"""A stack as nnU-Net's readers would give it: array axes (z, y, x) and their spacing.

NIfTI is taken as it is stored, as nnU-Net does, unless the plans' reader turns it; DICOM as it lies, unless the bundle
says how training images lay. Images are only turned by quarters: no voxel is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg.bundle.nnunet.model import NnUNet
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.errors import InputError
from medseg.inference.grids.grid import Axes, oriented, source_frame
from medseg.inference.grids.prepare import uniform
from medseg.inference.nnunet.resample import Array

FLAT_MM = (999.0, 1.0, 1.0)  # what NaturalImage2DIO says of any image


@dataclass(frozen=True, eq=False)
class Source:
    """voxels: (channels, k, j, i) in single, on the stack's uniform grid; all that is known of the stack beside."""

    voxels: Array
    stack: Stack

    @classmethod
    def of(cls, stack: Stack, slices: Iterable[Sequence[Pixels]]) -> Source:
        """slices: in the order of the stack, the planes of each in all channels."""
        voxels = np.empty((max(len(stack.channels), 1), *stack.shape), np.float32)
        for k, planes in enumerate(slices):
            for channel, plane in zip(voxels, planes, strict=True):
                channel[k] = plane
        return cls(uniform(torch.from_numpy(voxels), stack.coordinates).numpy(), stack)

    def axes(self, model: NnUNet) -> Axes:
        """From (k, j, i) to the reader's axes."""
        k, j, i = self.voxels.shape[1:]
        return reader_axes(self.stack, (k, j, i), model)

    def spacing_mm(self, model: NnUNet) -> tuple[float, float, float]:
        """Of the reader's axes."""
        return spacing_of(self.stack, self.axes(model), model)

    def volume(self, model: NnUNet) -> Array:
        """(channels, z, y, x): a copy, in memory as a reader's is."""
        if len(self.voxels) != len(model.channels):
            raise InputError(f"expected {len(model.channels)} channels, found {len(self.voxels)}")
        return np.array(self.seen(self.voxels, model), order="C")

    def seen(self, array: Array, model: NnUNet) -> Array:
        """(..., k, j, i) in the reader's axes; a view."""
        axes, lead = self.axes(model), array.ndim - 3
        return array.transpose(*range(lead), *(lead + axis for axis in axes.order))[(..., *_turns(axes))]

    def back(self, labels: Array, model: NnUNet) -> Array:
        """Labels (z, y, x) of the reader's axes as (k, j, i); a view."""
        axes = self.axes(model)
        return labels[_turns(axes)].transpose([axes.model_axis(axis) for axis in range(3)])


def reader_axes(stack: Stack, shape: tuple[int, int, int], model: NnUNet) -> Axes:
    """From (k, j, i) of a stack's uniform grid of `shape` to the reader's axes."""
    stored = stack.stored
    if model.orientation is None or (stored is not None and not model.reorients):
        return Axes((0, 1, 2), (stored is not None and stored.turned, False, False))
    x, y, z = range(3)
    turned = oriented(source_frame(stack.affine, shape), model.orientation).axes
    order, flipped = turned.order, turned.flipped
    return Axes((order[z], order[y], order[x]), (flipped[z], flipped[y], flipped[x]))


def plans_axes(reader: Axes, model: NnUNet) -> Axes:
    """The same to the plans' axes."""
    z, y, x = model.transpose
    order, flipped = reader.order, reader.flipped
    return Axes((order[z], order[y], order[x]), (flipped[z], flipped[y], flipped[x]))


def spacing_of(stack: Stack, axes: Axes, model: NnUNet) -> tuple[float, float, float]:
    """Of a stack's axes as they are turned."""
    if model.flat:
        return FLAT_MM
    mm = stack.spacing_mm if stack.stored is None else stack.stored.spacing_mm
    z, y, x = axes.order
    return mm[z], mm[y], mm[x]


def _turns(axes: Axes) -> tuple[slice, slice, slice]:
    z, y, x = (slice(None, None, -1 if flipped else 1) for flipped in axes.flipped)
    return z, y, x
