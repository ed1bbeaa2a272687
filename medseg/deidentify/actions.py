"""What is done with an attribute: PS3.15 Annex E, its table of attributes (`actions.tsv`) and our reading of it.

the table says      and we
X                   remove it
Z, Z/D              empty it
D                   put a dummy value
U                   put the UID that stands for it
X/Z, X/D, X/Z/D     remove it where no IOD of an image asks for it (`_OPTIONAL`), else empty it or put a dummy
X/Z/U*              keep the sequence; what is in its items goes by this table, too
a date or time      move it (Retain Longitudinal Temporal Information with Modified Dates Option), but for those that
                    are not of an examination (`_NOT_MOVED`)
not in the table    keep it, but for private attributes and those that PS3.6 does not know; UIDs that stand for what
                    is not the standard's are replaced wherever they are
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from importlib import resources
from typing import Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.tag import BaseTag

EDITION: Final = "2026c"


class Action(Enum):
    """What is done with one element."""

    REMOVE = "remove"
    EMPTY = "empty"
    DUMMY = "dummy"
    UID = "uid"
    MOVE = "move"
    ITEMS = "items"  # of a sequence: what is in its items
    KEEP = "keep"


# Of those that the table leaves to the IOD: attributes of type 3 in every IOD of an image.
_OPTIONAL: Final = (
    "AcquisitionDeviceProcessingDescription",
    "DetectorID",
    "InstitutionCodeSequence",
    "InstitutionName",
    "OperatorIdentificationSequence",
    "OperatorsName",
    "ProtocolName",
    "ReferencedPerformedProcedureStepSequence",
    "ReferencedStudySequence",
    "StationName",
)
# Dates that are the same for many patients, or that others know: moved, they would tell by how much. The option leaves
# those of birth, and of a place, to the profile.
_NOT_MOVED: Final = (
    "CalibrationDate",
    "CalibrationDateTime",
    "CalibrationTime",
    "ContextGroupLocalVersion",
    "ContextGroupVersion",
    "DateOfInstallation",
    "DateOfLastCalibration",
    "DateOfLastDetectorCalibration",
    "DateOfManufacture",
    "DateTimeOfLastCalibration",
    "EthicsCommitteeApprovalEffectivenessEndDate",
    "EthicsCommitteeApprovalEffectivenessStartDate",
    "GPSDateStamp",
    "GPSTimeStamp",
    "PatientBirthDate",
    "PatientBirthTime",
    "ProductExpirationDateTime",
    "TemplateLocalVersion",
    "TemplateVersion",
    "TimeOfLastCalibration",
    "TimeOfLastDetectorCalibration",
)
# UIDs that say what something is, not which: private ones, too.
_KINDS: Final = (
    "AffectedSOPClassUID",
    "CodingSchemeUID",
    "ContextUID",
    "EncryptedContentTransferSyntaxUID",
    "MACCalculationTransferSyntaxUID",
    "MappingResourceUID",
    "OriginalSpecializedSOPClassUID",
    "ReferencedRelatedGeneralSOPClassUIDInFile",
    "ReferencedSOPClassUID",
    "ReferencedSOPClassUIDInFile",
    "ReferencedTransferSyntaxUIDInFile",
    "RelatedGeneralSOPClassUID",
    "RequestedSOPClassUID",
    "SOPClassUID",
)
_TEMPORAL: Final = ("DA", "DT", "TM")
_OVERLAYS: Final = (0x50, 0x60)  # groups 50xx and 60xx: curves, and overlays, whose graphics may be text
_DELIMITERS: Final = 0xFFFE  # no attributes; in a data set where it is broken
_LAST: Final = {"X": Action.REMOVE, "Z": Action.EMPTY, "D": Action.DUMMY, "U": Action.UID, "U*": Action.ITEMS}


@cache
def table() -> dict[int, str]:
    """Tag -> what PS3.15 Table E.1-1 says of it for the basic profile."""
    lines = resources.files(__package__).joinpath("actions.tsv").read_text("ascii").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {int(tag, 16): code for tag, code, *_ in rows}


@cache
def action(tag: BaseTag) -> Action:
    """What is done with an attribute."""
    if tag.is_private or tag.element == 0 or tag.group >> 8 in _OVERLAYS or tag.group == _DELIMITERS:
        return Action.REMOVE
    code = table().get(tag)
    if code is None and not dictionary_has_tag(tag):
        return Action.REMOVE
    vr = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
    if vr in _TEMPORAL and tag not in _tags(_NOT_MOVED):
        return Action.MOVE
    if code is None:
        return Action.UID if vr == "UI" and tag not in _tags(_KINDS) else Action.KEEP
    if code == "Z/D":  # type 2 in every IOD that asks for one of them
        return Action.EMPTY
    return Action.REMOVE if tag in _tags(_OPTIONAL) else _LAST[code.rpartition("/")[2]]


@cache
def _tags(keywords: tuple[str, ...]) -> frozenset[int]:
    return frozenset(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)
