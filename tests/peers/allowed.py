"""Errors of dciodvfy in our SEG that the source itself causes, per source, each with its reason.

Patient and study are copied as they stand, so what is wrong there in the source is wrong in the result.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowed:
    source: str
    error: str
    reason: str


LABELMAP: tuple[str, ...] = ("Information Object Not found", "SegmentNumber not monotonically increasing")
"""Debian's dciodvfy is of 2022: it does not know label maps, whose numbers begin with the background's 0."""

ALLOWED: tuple[Allowed, ...] = (
    Allowed(
        "pydicom_files/693_UNCR.dcm",
        "Missing attribute Type 1C Conditional Element=<DeidentificationMethod",
        "PatientIdentityRemoved is YES and no method is named; dciodvfy finds the same in the source",
    ),
    Allowed(
        "pydicom_files/bad_sequence.dcm",
        "Illegal root for UID",
        "the source's UIDs are hexadecimal digests; references to them repeat them",
    ),
    Allowed(
        "pydicom_files/bad_sequence.dcm",
        "Value invalid for this VR",
        "its UIDs and StudyID are hexadecimal digests, its PatientAge is 22Y",
    ),
    Allowed(
        "pydicom_files/bad_sequence.dcm",
        "contains invalid data values for Value Representations",
        "the sum of the errors before",
    ),
    Allowed(
        "pydicom_files/bad_sequence.dcm",
        "Missing attribute Type 1C Conditional Element=<DeidentificationMethod",
        "PatientIdentityRemoved is YES and no method is named; dciodvfy finds the same in the source",
    ),
    Allowed(
        "pydicom_files/dicomdirtests",
        "StudyInstanceUID has same value as FrameOfReferenceUID",
        "the source's study and frame of reference share one UID",
    ),
)


def unexpected(source: str, errors: list[str]) -> list[str]:
    """Errors that are not on the list for `source`."""
    known = [row.error for row in ALLOWED if row.source == source]
    return [error for error in errors if not any(text in error for text in known)]
