"""Codes that a label's name suggests, for a person to check: what DICOM's context groups call by that very name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final, cast

ANATOMY: Final = "SCT:123037004"  # Anatomical structure
ABNORMAL: Final = "SCT:49755003"  # Morphologically abnormal structure
SIDES: Final = {"left": "SCT:7771000", "right": "SCT:24028007"}
# words of names -> the keyword that DICOM has for them
SYNONYMS: Final = {
    "bladder": "urinarybladder",
    "cancer": "neoplasm",
    "gallbladder": "gallbladder",
    "metastasis": "metastasis",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
}
MORPHOLOGY: Final = (
    "cyst",
    "edema",
    "hemorrhage",
    "infarct",
    "lesion",
    "mass",
    "metastasis",
    "necrosis",
    "neoplasm",
    "nodule",
)
_WORDS: Final = re.compile(r"[A-Za-z]+")


def proposed(label: str) -> dict[str, str]:
    """`category`, `type` and maybe `laterality` for a segment of that name; empty where nothing is known by it."""
    words = [word.lower() for word in _WORDS.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))]
    sides = [word for word in words if word in SIDES]
    name = "".join(word for word in words if word not in SIDES)
    known = _by_keyword()
    for candidate in (name, name.removesuffix("s")):
        keyword = SYNONYMS.get(candidate, candidate)
        if keyword in known and len(sides) < 2:
            category = ABNORMAL if keyword in MORPHOLOGY else ANATOMY
            side = {"laterality": SIDES[sides[0]]} if sides else {}
            return {"category": category, "type": f"SCT:{known[keyword]}", **side}
    return {}


@cache
def _by_keyword() -> dict[str, str]:
    """SNOMED CT values by keyword, of concepts that some context group uses (PS3.16)."""
    from pydicom.sr._concepts_dict import concepts

    table = cast(Mapping[str, Mapping[str, tuple[str, list[int]]]], concepts["SCT"])
    return {
        keyword.lower(): value
        for keyword, entries in table.items()
        for value, (_, groups) in sorted(entries.items(), reverse=True)
        if groups
    }
