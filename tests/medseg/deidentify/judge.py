"""What PS3.15 asks of a data set without who it is of, by dicom-anonymizer's table and none of our code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR

from tests.medseg.deidentify.published import published

UID = re.compile(r"2\.25\.[1-9]\d{0,38}")
TEMPORAL = {"DA", "DT", "TM"}
TEXTS = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
#: The option with modified dates leaves these to the profile (PS3.15 2026c, Table E.1-1).
NOT_TEMPORAL = {(0x0010, 0x0030), (0x0010, 0x0032), (0x0016, 0x0077)}


@cache
def table() -> dict[tuple[int, int], str]:
    return published()


def elements(dataset: Dataset) -> Iterator[DataElement]:
    """All elements, those in items of sequences and of the file meta information, too."""
    yield from dataset.iterall()
    yield from getattr(dataset, "file_meta", ())


#: What stays in objects of ours by the options for content and descriptors that are known to be clean.
OURS = {"113104": ("ContentSequence",), "113105": ("ROIName", "StructureSetLabel")}


def complaints(dataset: Dataset) -> list[str]:
    """What is still there and should not be."""
    codes = {item.CodeValue for item in dataset.get("DeidentificationMethodCodeSequence", [])}
    kept = {keyword for code in codes & set(OURS) for keyword in OURS[code]}
    left = (one for one in elements(dataset) if one.keyword not in kept)
    said = [f"{one.tag} {one.keyword}: {why}" for one in left if (why := _why(one))]
    if dataset.get("PatientIdentityRemoved") != "YES" or not dataset.get("DeidentificationMethod"):
        said.append("not said to be without identity")
    return said if {"113100", "113107"} <= codes else [*said, f"codes {codes}"]


def _why(element: DataElement) -> str:
    """What is wrong with an element."""
    tag = (element.tag.group, element.tag.element)
    action = table().get(tag, "")
    if element.tag.is_private:
        return "private"
    if (element.VR in TEMPORAL and tag not in NOT_TEMPORAL) or not element.value:
        return "not removed" if action == "X" and element.VR not in TEMPORAL else ""
    if action == "X":
        return "not removed"
    if action in ("Z", "Z/D") and element.keyword not in ("PatientName", "PatientID"):
        return "not empty"
    if action == "U":
        uids = [element.value] if isinstance(element.value, str) else element.value
        return "" if all(map(UID.fullmatch, uids)) else "not replaced"
    if action in ("D", "X/D", "X/Z/D") and element.VR in TEXTS:
        return "" if element.value == "REMOVED" else "not a dummy"
    if action == "D" and element.VR == "SQ":
        inner = [each for item in element.value for each in item if each.VR == "SQ" and each.value]
        return "items of items left" if inner else ""
    return ""


def vr_of(tag: int) -> str:
    return dictionary_VR(tag).split(" or ")[0]
