"""What a volume says of itself, as conditions of bundles see it. What it does not say is not known: never no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydicom.datadict import tag_for_keyword

from medseg.conditions.subjects import SLICES, Says, said_by, values_of
from medseg.dicom.headers import first_frame, look
from medseg.dicom.series import Stack

#: What vendors, and enhanced objects, write in place of an attribute.
ALIASES: Final = {
    "DiffusionBValue": ("DiffusionBValue", "B_value", "Diffusion B-Factor", "GE b-value"),
    "EchoTime": ("EchoTime", "EffectiveEchoTime"),
    "InversionTime": ("InversionTime", "InversionTimes"),
}


@dataclass(frozen=True, eq=False)
class VolumeFacts:
    """What conditions ask of a volume. slices: None where more may come."""

    says: Says
    slices: int | None

    @property
    def knows_texts(self) -> bool:
        return False

    def values(self, subject: str) -> tuple[str, ...] | None:
        """What a condition looks at; None where it is not known yet."""
        if subject == SLICES:
            return None if self.slices is None else (str(self.slices),)
        return values_of(subject, lambda keyword: values_by(self.says, keyword))


def facts_of(stack: Stack, *, whole: bool = True) -> VolumeFacts:
    """whole: no more slices come."""
    return VolumeFacts(said_by_stack(stack), len(stack.slices) if whole else None)


def values_by(says: Says, keyword: str) -> tuple[str, ...]:
    """The values of an attribute, under whichever of its names; none where it says nothing."""
    said = (says(name) for name in ALIASES.get(keyword, (keyword,)))
    return next((values for values in said if any(value.strip() for value in values)), ())


def said_by_stack(stack: Stack) -> Says:
    """What sets the volume apart goes before what its first image says; of ImageType a phase has a part only. How it
    lies its grid says, which positions and orientations agree on."""
    first = stack.slices[0]
    _, j, i = stack.spacing_mm
    lies = tuple(f"{cosine:g}" for cosine in (*stack.affine[:3, 2] / i, *stack.affine[:3, 1] / j))

    of_series = {"Modality": stack.series.modality, "BodyPartExamined": (stack.series.body_part or "").strip()}

    def says(keyword: str) -> tuple[str, ...]:
        if keyword == "ImageOrientationPatient":
            return lies
        if keyword in of_series:
            return (of_series[keyword],) if of_series[keyword] else ()
        if keyword in first.phase and keyword != "ImageType":
            return tuple(first.phase[keyword].split("\\"))
        if first.instance is None or tag_for_keyword(keyword) is None:  # a vendor's own name
            return ()
        header = first.instance.header
        return said_by(look(header) if first.frame is None else first_frame(header), keyword)

    return says
