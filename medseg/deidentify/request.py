"""What is asked for when results are to be without who they are of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medseg.deidentify.actions import EDITION
from medseg.deidentify.dataset import DESCRIPTORS, METHOD, PROFILE, STRUCTURED
from medseg.deidentify.pseudonyms import Pseudonyms

#: What a person who is given results must know; docs/deidentification.md says more.
_GONE = (
    "names, IDs, accession numbers, birth dates, ages, sex, weight; institutions, devices' serial numbers, people; "
    "descriptions and comments; private attributes; overlays and curves"
)
_KEPT = (
    "pixels, geometry, how images were acquired, manufacturer and model, modality, body part, numbers of series and "
    "images; times of day, and days between dates"
)
_REPLACED = "UIDs, patients' IDs and names, names of inputs: by pseudonyms under the key; dates: moved, as the key says"
_NOT_HANDLED = "faces that can be recognised in images of heads, and in copies what is written into pixels"


@dataclass(frozen=True)
class Deidentify:
    """What is asked for.

    copy_sources: copies of the source images, too. allow_burned_in: take images whose pixels may show whose they are.
    """

    pseudonyms: Pseudonyms
    copy_sources: bool = False
    allow_burned_in: bool = False

    @property
    def settings(self) -> str:
        """What distinguishes results made so from others, and from those under other keys."""
        return f"{self.pseudonyms.fingerprint}{' sources' if self.copy_sources else ''}"

    def statement(self) -> dict[str, Any]:
        """What stays, and what goes, for the manifest."""
        return {
            "key": self.pseudonyms.fingerprint,
            "edition": f"PS3.15 {EDITION}",
            "method": METHOD,
            "codes": [f"{code.value} {code.meaning}" for code in PROFILE],
            "codes_of_reports": [f"{STRUCTURED.value} {STRUCTURED.meaning}"],
            "codes_of_structure_sets": [f"{DESCRIPTORS.value} {DESCRIPTORS.meaning}"],
            "sources_copied": self.copy_sources,
            "burned_in_allowed": self.allow_burned_in,
            "gone": _GONE,
            "replaced": _REPLACED,
            "kept": _KEPT,
            "not_handled": _NOT_HANDLED,
        }
