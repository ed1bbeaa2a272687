"""A bundle as the rest of medseg sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medseg.bundle.nnunet.model import NnUNet
from medseg.bundle.recipe import Recipe
from medseg.bundle.region import Region

if TYPE_CHECKING:  # which need numpy and pydicom
    from medseg.bundle.channels import Channels
    from medseg.conditions.terms import Term

DESCRIBED: Final = "described"  # a default of what a series describes, in metadata


MOST_LESIONS: Final = 20
"""Of a segment that are measured one by one, unless the bundle says how many."""


@dataclass(frozen=True)
class Code:
    """A coded concept (PS3.16): SCT 10200004 "Hippocampus"."""

    scheme: str
    value: str
    meaning: str


class Side(StrEnum):
    """Of the patient."""

    LEFT = "left"
    RIGHT = "right"


#: By codes of PS3.16 CID 244, as now and as formerly.
_SIDES = {
    ("SCT", "7771000"): Side.LEFT,
    ("SCT", "24028007"): Side.RIGHT,
    ("SRT", "G-A101"): Side.LEFT,
    ("SRT", "G-A100"): Side.RIGHT,
}


@dataclass(frozen=True)
class Segment:
    """One thing the bundle can find. `number` is its label value and its SegmentNumber, the same in every result.

    color: sRGB, 0-255. volume_ml: (least, most) plausible, or None. one_piece: it is one by nature. beside_middle:
    images show the patient from side to side, and its centre lies on its own side of their middle.
    """

    number: int
    label: str
    category: Code
    type: Code
    region: Code | None
    laterality: Code | None
    color: tuple[int, int, int]
    volume_ml: tuple[float, float] | None
    one_piece: bool = False
    beside_middle: bool = False

    @property
    def side(self) -> Side | None:
        """Of the patient, where it is of one alone."""
        return None if self.laterality is None else _SIDES.get((self.laterality.scheme, self.laterality.value))


@dataclass(frozen=True)
class Expects:
    """What a series must be for the bundle to fit; None or empty: anything.

    fov_mm: (least, most) extent along x, y, z of the patient (LPS axes nearest to the volume's own).
    values: (least, most) range in which the volume's 1st and 99th percentile must lie, modality units.
    when: further conditions; what a series does not say of them bars nothing. prefer: which of a study's series that
    fit is meant; none: each. pixels: what its voxels must show.
    """

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    series_description: str | None = None
    fov_mm: tuple[tuple[float, float], ...] | None = None
    values: tuple[float, float] | None = None
    min_slices: int = 1
    when: tuple[Term, ...] = ()
    prefer: tuple[str, ...] = ()
    pixels: PixelCheck | None = None


@dataclass(frozen=True)
class PixelCheck:
    """What the voxels of a series must show where its description cannot be trusted; modality units.

    values: (least, most) of the 1st and 99th percentile. fov_mm: as of `Expects`. air: (least, most) share of voxels
    below `air_below`. dim: (least, most) share of what is dim of that which is no background (`pixel_check.dim_share`).
    refuse: a series that differs is refused; else its result is flagged.
    """

    values: tuple[float, float] | None = None
    fov_mm: tuple[tuple[float, float], ...] | None = None
    air: tuple[float, float] | None = None
    air_below: float = -500.0
    dim: tuple[float, float] | None = None
    refuse: bool = False


@dataclass(frozen=True)
class Postprocess:
    """Clean-up on the source grid. keep_largest: segment numbers that are one piece of tissue each."""

    keep_largest: tuple[int, ...] = ()
    fill_holes: bool = False
    min_volume_ml: float = 0.0


@dataclass(frozen=True, eq=False)
class MergedPart:
    """One of several models that make one result. numbers: of its labels there -> in the result."""

    bundle: Bundle
    numbers: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle. Loading reads JSON and hashes files; the network is built by `network.load_network`.

    digest: SHA-256 (hex) over the configuration files and the weights.
    network: the resolved `network_def` configuration.
    weights: the file that is loaded. weights_twin: one beside it that must hold the same tensors. weights_entry: of a
        checkpoint of several, the state dict that is the network's.
    flips: axes of a window along which it is also looked at mirrored. members: further weights of the same network;
        scores are averaged over them all (`ensemble`).
    preprocessing, postprocessing: the resolved transform chains, for the fallback through MONAI's transforms.
    trusted: the user vouched for its code (`--trust-bundle`); network and transforms come from MONAI's ConfigParser.
    nnunet: it is nnU-Net's, and this is what is done. previous: a cascade's first stage, whose labels it looks at.
    channels: of several input channels, or one of which the metadata says what it is: which series they are.
    parts: models whose labels are merged into one result; network and weights are the first one's then.
    averaged: models of nnU-Net whose probabilities are averaged into one result; the same then.
    region: where the network looks, if not everywhere. first_pass: the bundle that finds it, where one does.
    default: of several that fit a series, this one is meant. described: only where the series' description says so.
    lesions: how many of a segment are measured one by one, the largest.
    """

    name: str
    version: str
    path: Path
    digest: str
    description: str
    licence: str
    network: Mapping[str, Any]
    weights: Path
    in_channels: int
    out_channels: int
    recipe: Recipe
    expects: Expects
    segments: tuple[Segment, ...]
    postprocess: Postprocess
    precisions: tuple[str, ...]
    default: bool
    research_only: bool
    weights_twin: Path | None = None
    weights_entry: str | None = None
    flips: tuple[int, ...] = ()
    members: tuple[Path, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    postprocessing: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False
    lesions: int = MOST_LESIONS
    nnunet: NnUNet | None = None
    previous: Bundle | None = None
    parts: tuple[MergedPart, ...] = ()
    averaged: tuple[Bundle, ...] = ()
    channels: Channels | None = None
    region: Region | None = None
    first_pass: Bundle | None = None
    described: bool = False

    @property
    def image_channels(self) -> int:
        """Series of a study that are looked at together, one channel each."""
        if self.nnunet is not None:
            return len(self.nnunet.channels)
        return self.in_channels // self.recipe.window.slices

    @property
    def spatial_dims(self) -> int:
        return len(self.recipe.window.roi)
