"""Why slices are not segmented, by stable names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """What is wrong with a plane, or with planes taken together."""

    # one plane
    LOCALIZER = "localizer"
    MOSAIC = "mosaic"
    COLOUR = "colour"
    MULTIFRAME_WITHOUT_GEOMETRY = "multiframe_without_geometry"
    NO_ORIENTATION = "no_orientation"
    BAD_ORIENTATION = "bad_orientation"
    NO_POSITION = "no_position"
    NO_PIXEL_SPACING = "no_pixel_spacing"
    MALFORMED_HEADER = "malformed_header"
    CT_WITHOUT_RESCALE = "ct_without_rescale"
    CT_NOT_HU = "ct_not_hu"
    # planes that do not belong together
    CONFLICTING_INSTANCES = "conflicting_instances"
    MIXED_PATIENT = "mixed_patient"
    MIXED_FRAME_OF_REFERENCE = "mixed_frame_of_reference"
    MIXED_SIZE = "mixed_size"
    MIXED_PIXEL_SPACING = "mixed_pixel_spacing"
    MIXED_ORIENTATION = "mixed_orientation"
    # planes that do not form a volume
    NO_FRAME_OF_REFERENCE = "no_frame_of_reference"
    TOO_FEW_SLICES = "too_few_slices"
    DUPLICATE_POSITIONS = "duplicate_positions"
    NOT_ON_A_LINE = "not_on_a_line"
    MISSING_SLICES = "missing_slices"
    IRREGULAR_SPACING = "irregular_spacing"
    INTERLEAVED_VOLUMES = "interleaved_volumes"
    # stacks where one was asked for
    SEVERAL_VOLUMES = "several_volumes"


@dataclass(frozen=True)
class Refusal:
    """Slices that are not segmented: why, in one sentence, and how many."""

    reason: Reason
    detail: str
    slices: int
