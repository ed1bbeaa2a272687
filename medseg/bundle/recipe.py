"""What a bundle asks to be done to an image, as data.

A MONAI transform chain becomes a `Recipe`: preparing steps in their order, the sliding window, and the order of
activation, inversion and discretisation. A chain with a step that is allowed but not known here keeps
`fallback` = the reason, and runs through MONAI's own transforms on the whole volume.

Axes are the model's: (x, y, z) after `Orient`, else (i, j, k) = (column, row, slice) as MONAI loads DICOM.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Blend(StrEnum):
    """Weights of overlapping windows (MONAI BlendMode)."""

    CONSTANT = "constant"
    GAUSSIAN = "gaussian"


class Interpolation(StrEnum):
    LINEAR = "bilinear"
    NEAREST = "nearest"


class Padding(StrEnum):
    """Values outside the grid when resampling (grid_sample padding_mode)."""

    BORDER = "border"
    ZEROS = "zeros"
    REFLECTION = "reflection"


@dataclass(frozen=True)
class Orient:
    """Reorder axes to anatomical codes such as "RAS" (Orientationd)."""

    axcodes: str


@dataclass(frozen=True)
class Resample:
    """To a spacing in mm per model axis (Spacingd); a non-positive or missing entry keeps the source's."""

    spacing_mm: tuple[float, ...]
    interpolation: Interpolation = Interpolation.LINEAR
    padding: Padding = Padding.BORDER
    align_corners: bool = False
    scale_extent: bool = False


@dataclass(frozen=True)
class ScaleRange:
    """Linear from [a_min, a_max] to [b_min, b_max]; b_min None: only divide (ScaleIntensityRanged)."""

    a_min: float
    a_max: float
    b_min: float | None
    b_max: float | None
    clip: bool


@dataclass(frozen=True)
class ScalePercentiles:
    """As ScaleRange with a_min, a_max from percentiles of the whole volume (ScaleIntensityRangePercentilesd)."""

    lower: float
    upper: float
    b_min: float | None
    b_max: float | None
    clip: bool
    relative: bool = False


@dataclass(frozen=True)
class ScaleMinMax:
    """Whole volume's minimum and maximum to [minv, maxv] (ScaleIntensityd); both None: v * (1 + factor)."""

    minv: float | None = 0.0
    maxv: float | None = 1.0
    factor: float | None = None


@dataclass(frozen=True)
class Normalize:
    """Subtract, then divide; mean and deviation of the whole volume where not given (NormalizeIntensityd)."""

    subtrahend: float | None = None
    divisor: float | None = None
    nonzero: bool = False


Pointwise: TypeAlias = ScaleRange | ScalePercentiles | ScaleMinMax | Normalize


@dataclass(frozen=True)
class ChannelWise:
    """A step for each channel, of which each has its own statistics (channel_wise); None leaves it as it is."""

    each: tuple[Pointwise | None, ...]


Intensity: TypeAlias = Pointwise | ChannelWise
Step: TypeAlias = Orient | Resample | Intensity


@dataclass(frozen=True)
class Window:
    """The sliding window, as MONAI's SlidingWindowInferer.

    roi: voxels per model axis, a non-positive entry for the whole axis (MONAI's fall_back_tuple); two entries for a
        2D network that runs slice by slice along `slice_axis`.
    overlap: fraction per axis.
    slices: how many neighbouring slices such a network sees as channels, the middle one its own (2.5D); odd.
    """

    roi: tuple[int, ...]
    overlap: tuple[float, ...]
    blend: Blend = Blend.CONSTANT
    sigma_scale: float = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0
    batch: int = 1
    slice_axis: int = 2
    slices: int = 1


class Activation(StrEnum):
    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Order(StrEnum):
    """What is brought back to the source grid."""

    PROBABILITIES_FIRST = "invert probabilities, then discretise"
    LABELS_FIRST = "discretise, then invert labels"


@dataclass(frozen=True)
class Finish:
    """From network output to labels.

    activation: applied to the blended logits before inversion and discretisation.
    threshold: None for argmax over channels (exclusive labels), else each channel on its own (overlapping labels).
    nearest: interpolation of the inversion; else linear.
    keep_largest: MONAI's KeepLargestConnectedComponentd in the chain: labels it applies to, in model space where
        it stands before the inversion; empty for none.
    """

    activation: Activation
    threshold: float | None
    order: Order
    nearest: bool
    keep_largest: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Everything between a volume in modality values and its labels.

    keys: what the configuration calls its channels, where it prepares each under a key of its own; else empty.
    """

    steps: tuple[Step, ...]
    window: Window
    finish: Finish
    fallback: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def exclusive(self) -> bool:
        """Whether each voxel has one label (argmax) rather than one bit per segment."""
        return self.finish.threshold is None

    def barriers(self) -> tuple[str, ...]:
        """Why inference cannot start before the last slice has come; empty where it can."""
        whole = {ScalePercentiles: "percentiles", ScaleMinMax: "minimum and maximum", Normalize: "mean and deviation"}
        kinds = [type(next(filter(needs_whole, _each(step)))) for step in self.steps if needs_whole(step)]
        reasons = [f"{kind.__name__} needs the {whole[kind]} of the whole volume" for kind in kinds]
        if self.zeros_matter and not reasons:
            reasons = ["which voxels are zero after resampling depends on the number of slices"]
        return (*([self.fallback] if self.fallback else []), *reasons)

    @property
    def zeros_matter(self) -> bool:
        """Whether a step after a linear resampling asks which voxels are not zero."""
        steps = iter(self.steps)
        resampled = any(isinstance(step, Resample) and step.interpolation is Interpolation.LINEAR for step in steps)
        after = (one for step in steps for one in _each(step))
        return resampled and any(isinstance(step, Normalize) and step.nonzero for step in after)


def needs_whole(step: Step) -> bool:
    """Whether a step must know of all voxels before it can do anything with one of them."""
    if isinstance(step, ChannelWise):
        return any(one is not None and needs_whole(one) for one in step.each)
    return (
        isinstance(step, ScalePercentiles)
        or (isinstance(step, ScaleMinMax) and (step.minv is not None or step.maxv is not None))
        or (isinstance(step, Normalize) and (step.subtrahend is None or step.divisor is None))
    )


def _each(step: Step) -> tuple[Step, ...]:
    return tuple(one for one in step.each if one is not None) if isinstance(step, ChannelWise) else (step,)
