"""Cases in memory, prepared as the bundle's recipe prepares an image in inference.

The steps that move voxels run once, for image and label alike. Those that change intensities run on every sample,
after it was varied: the statistics of the volume they use are part of what varies. For a 2D network, which sees
slices, they run once on the whole volume: a slice has not its statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Spacing
from torch import Tensor

from medseg.bundle.recipe import Orient, Resample, Step
from medseg.inference.grids.prepare import scale
from medseg.training.data import LabelledCase, UnusableCase

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sample:
    """A case on the model's grid: image (1, *S) float32 in modality values, label (*S) uint8."""

    image: Tensor
    label: Tensor


@dataclass(frozen=True, eq=False)
class SliceStack:
    """A case of a 2D network, prepared: image (D, *S) float32 and label (D, *S) uint8, slice after slice.

    The image is `darkest + contrast * image`, kept as 0 to 1. labelled: slices that hold a label. slices: how many
    the network sees at once.
    """

    image: Tensor
    label: Tensor
    darkest: float
    contrast: float
    labelled: tuple[int, ...]
    slices: int


def slice_stack(sample: Sample, prepare: Prepare, axis: int, slices: int) -> SliceStack:
    """The slices of a case along an axis of its volume, prepared with the whole volume's statistics."""
    image = prepare(sample.image)[0].movedim(axis, 0)
    darkest, brightest = (float(value) for value in torch.aminmax(image))
    contrast = max(brightest - darkest, 1e-6)
    label = sample.label.movedim(axis, 0).contiguous()
    labelled = tuple(torch.nonzero(label.flatten(1).any(dim=1)).flatten().tolist())
    return SliceStack(((image - darkest) / contrast).contiguous(), label, darkest, contrast, labelled, slices)


def load_sample(case: LabelledCase, steps: Sequence[Step], classes: int) -> Sample:
    """Read, orient and resample a case; the label, whole numbers below `classes`, by nearest neighbour.

    Raises UnusableCase.
    """
    image = Compose(moves(steps, label=False))(read(case.image))
    label = Compose(moves(steps, label=True))(read(case.label))
    if image.shape != label.shape:
        raise UnusableCase(case.id, f"image {tuple(image.shape[1:])} and label {tuple(label.shape[1:])} differ in grid")
    if float(label.max()) >= classes:
        raise UnusableCase(case.id, f"expected labels below {classes}, found {float(label.max()):g}")
    return Sample(image.as_tensor().float(), label.as_tensor()[0].to(torch.uint8))


def read(path: Path) -> MetaTensor:
    """A volume with its affine: (1, *S) float32."""
    volume = nibabel.load(path)
    voxels = torch.from_numpy(np.asarray(volume.dataobj, dtype=np.float32))
    return MetaTensor(voxels[None], affine=torch.from_numpy(volume.affine))


def moves(steps: Sequence[Step], *, label: bool) -> list[Any]:
    """The recipe's steps that move voxels, as MONAI transforms."""
    found: list[Any] = []
    for step in steps:
        match step:
            case Orient(axcodes):
                found.append(Orientation(axcodes=axcodes, labels=None))
            case Resample(spacing_mm, interpolation, padding, align_corners, scale_extent):
                found.append(
                    Spacing(
                        pixdim=spacing_mm,
                        mode="nearest" if label else str(interpolation),
                        padding_mode=str(padding),
                        align_corners=align_corners,
                        scale_extent=scale_extent,
                    )
                )
            case _:
                pass
    return found


def intensity(steps: Sequence[Step]) -> Prepare:
    """The recipe's steps that change intensities, as one function of a tensor (1, *S)."""

    def prepare(image: Tensor) -> Tensor:
        image = image.clone()
        for step in steps:
            if not isinstance(step, Orient | Resample):
                image = scale(image, step)
        return image

    return prepare
