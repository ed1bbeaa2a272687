"""What nnU-Net does between an image and its labels, as its plans and its dataset say it.

Axes are those of the array that its reader gives, (z, y, x) = (k, j, i), and after `transpose` those of the plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    """How a channel is normalised; the values are nnU-Net's names."""

    CT = "CTNormalization"
    Z_SCORE = "ZScoreNormalization"
    RESCALE = "RescaleTo01Normalization"
    RGB = "RGBTo01Normalization"
    NONE = "NoNormalization"


class Method(StrEnum):
    """How an array is brought to another shape; the values are nnU-Net's names."""

    SPLINE = "resample_data_or_seg_to_shape"
    TORCH = "resample_torch_fornnunet"
    NONE = "no_resampling_hack"


@dataclass(frozen=True)
class InputChannel:
    """An input channel. masked: statistics are those of what is not zero, which alone changes.

    low, high, mean, deviation: of the foreground in the training images; for Scheme.CT alone.
    """

    name: str
    scheme: Scheme
    masked: bool
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True)
class Resampler:
    """order, order_z: of the splines in a plane and between planes, where the axis of the thickest voxels is apart.

    separate: whether it is; None: where voxels are more than `threshold` times as long along it.
    """

    method: Method
    order: int = 1
    order_z: int = 0
    separate: bool | None = None
    threshold: float = 3.0

    @property
    def by_planes(self) -> bool:
        """Whether a new plane is made of two old ones at most."""
        return self.method is Method.SPLINE and self.order <= 1 and self.order_z == 0


@dataclass(frozen=True)
class Labels:
    """What the network's heads mean.

    heads: output channels. names: of each label in the result, by its number, 0 left out.
    order: for heads that are regions, the label that each one paints; None where the highest head is the label.
    foreground: label values that a cascade's second stage has as channels.
    """

    heads: int
    names: tuple[tuple[int, str], ...]
    order: tuple[int, ...] | None
    foreground: tuple[int, ...]


@dataclass(frozen=True)
class NnUNet:
    """A configuration of nnU-Net's plans with what else decides its result.

    spacing_mm: of the network's voxels; two numbers where it runs slice by slice. transpose: of the reader's axes.
    orientation: axes of the reader's array (i, j, k) that DICOM is turned to, such as "RAS"; None: as it lies.
    reorients: NIfTI is turned to it, too, as nnU-Net's own reader does. flat: each slice is a case of its own, whose
    pixels are 1 wide (NaturalImage2DIO).
    step: of windows, as a part of a window. cleanup: labels whose union keeps its largest piece alone, one by one.
    cleanup_unread: there is post-processing as a pickle only, which is not read.
    """

    configuration: str
    patch: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    transpose: tuple[int, int, int]
    channels: tuple[InputChannel, ...]
    image: Resampler
    scores: Resampler
    labelmap: Resampler
    labels: Labels
    previous_stage: str | None = None
    orientation: str | None = None
    reorients: bool = False
    flat: bool = False
    step: float = 0.5
    gaussian: bool = True
    cleanup: tuple[tuple[int, ...], ...] = ()
    cleanup_unread: bool = False
