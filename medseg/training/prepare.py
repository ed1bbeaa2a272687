"""Cases in memory, prepared as the bundle's recipe prepares an image in inference.

The steps that move voxels run once, for image and label alike. Those that change intensities

- run on every sample of a volume, after it was varied, where they begin with the volume's own statistics, which are
  part of what varies;
- run once on the whole volume, and what they give is varied, for a 2D network, which sees slices (a slice has not the
  volume's statistics), and where values have a unit (Hounsfield, SUV), which is part of what is learnt.
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

from medseg.bundle.channels import Channels
from medseg.bundle.recipe import Orient, Resample, Step, needs_whole
from medseg.inference.grids.prepare import scale
from medseg.training.data import LabelledCase, UnusableCase

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sample:
    """A case on the model's grid: image (C, *S) float32 in modality values, label (*S) uint8.

    absent: images that the case has not, zeros. optional: those that it has and the bundle can do without.
    """

    image: Tensor
    label: Tensor
    absent: tuple[int, ...] = ()
    optional: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """A case that is prepared: image (C, *S) float32, label (*S) uint8.

    The image is `darkest + contrast * image`, kept as 0 to 1; these two are (1, C, ...). absent, optional: as above.
    """

    image: Tensor
    label: Tensor
    darkest: Tensor
    contrast: Tensor
    absent: tuple[int, ...] = ()
    optional: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SliceStack(PreparedSample):
    """The same for a 2D network, slice after slice: image (D, C, *S), label (D, *S).

    labelled: slices that hold a label. slices: how many the network sees at once.
    """

    labelled: tuple[int, ...] = ()
    slices: int = 1


InMemory = Sample | PreparedSample


def prepared_sample(sample: Sample, prepare: Prepare) -> PreparedSample:
    """A whole volume, prepared."""
    image, darkest, contrast = stretched(prepare(sample.image)[None])
    return PreparedSample(image[0], sample.label, darkest, contrast, sample.absent, sample.optional)


def slice_stack(sample: Sample, prepare: Prepare, axis: int, slices: int) -> SliceStack:
    """The slices of a case along an axis of its volume, prepared with the whole volume's statistics."""
    image, darkest, contrast = stretched(prepare(sample.image).movedim(axis + 1, 0))
    label = sample.label.movedim(axis, 0).contiguous()
    labelled = tuple(torch.nonzero(label.flatten(1).any(dim=1)).flatten().tolist())
    return SliceStack(image, label, darkest, contrast, sample.absent, sample.optional, labelled, slices)


def stretched(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(D, C, *S) with each of the C images from 0 to 1, its least value, and its range: (1, C, ...)."""
    rest = [axis for axis in range(image.dim()) if axis != 1]
    darkest = image.amin(rest, keepdim=True)
    contrast = (image.amax(rest, keepdim=True) - darkest).clamp_min(1e-6)
    return ((image - darkest) / contrast).contiguous(), darkest, contrast


def has_units(steps: Sequence[Step]) -> bool:
    """Whether values mean the same in every volume: no intensity step begins with the volume's statistics."""
    scaling = [step for step in steps if not isinstance(step, Orient | Resample)]
    return not scaling or not needs_whole(scaling[0])


def load_sample(case: LabelledCase, steps: Sequence[Step], classes: int, channels: Channels | None = None) -> Sample:
    """Read, orient and resample a case; the label, whole numbers below `classes`, by nearest neighbour.

    channels: the bundle's. Raises UnusableCase.
    """
    label = Compose(moves(steps, label=True))(read(case.label))
    volume, absent, optional = read_images(case, channels)
    image = Compose(moves(steps, label=False))(volume)
    if image.shape[1:] != label.shape[1:]:
        sizes = tuple(image.shape[1:]), tuple(label.shape[1:])
        raise UnusableCase(case.id, f"image {sizes[0]} and label {sizes[1]} differ in grid")
    if float(label.max()) >= classes:
        raise UnusableCase(case.id, f"expected labels below {classes}, found {float(label.max()):g}")
    return Sample(image.as_tensor().float(), label.as_tensor()[0].to(torch.uint8), absent, optional)


def read_images(case: LabelledCase, channels: Channels | None) -> tuple[MetaTensor, tuple[int, ...], tuple[int, ...]]:
    """(C, *S) in the channels' order, zeros where the case has none; numbers of those absent; of those optional."""
    reference = read(case.image)
    if channels is None or not case.channels:
        return reference, (), ()
    images, absent = [], []
    for number, name in enumerate(channels.names):
        path = case.channels.get(name)
        image = reference * 0 if path is None else read(path)
        if image.shape != reference.shape or not torch.allclose(image.affine, reference.affine, atol=1e-3):
            raise UnusableCase(case.id, f"channel {name} lies on another grid than {channels.reference}")
        images.append(image.as_tensor())
        absent += [number] * (path is None)
    optional = [n for n, channel in enumerate(channels.each) if channel.optional and n not in absent]
    return MetaTensor(torch.cat(images), affine=reference.affine), tuple(absent), tuple(optional)


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
    """The recipe's steps that change intensities, as one function of a tensor (C, *S)."""

    def prepare(image: Tensor) -> Tensor:
        image = image.clone()
        for step in steps:
            if not isinstance(step, Orient | Resample):
                image = scale(image, step)
        return image

    return prepare
