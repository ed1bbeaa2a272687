"""What searches ask of an object: a fixed set of attributes, read from its file once and kept.

The ledger knows no patient, so these come from the headers. A file of the spool never changes under its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydicom.tag import Tag

from gateway.dicomweb.dataset_json import Json, element_json, name_of, tag_of
from medseg.dicom.encoding import find_encoding
from medseg.dicom.headers import MALFORMED, look, read_header

KEPT: Final = 20_000  # objects whose attributes are kept: some 3 KB each


def _names(*keywords: str) -> tuple[str, ...]:
    return tuple(name_of(tag) for keyword in keywords if (tag := tag_of(keyword)) is not None)


#: By level: what is searched for and answered with (PS3.18 10.6.1.2.3, 10.6.3.3), and what viewers list beside it.
STUDY: Final = _names(
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
    "TimezoneOffsetFromUTC", "StudyDescription", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
SERIES: Final = _names(
    "Modality", "SeriesDescription", "SeriesDate", "SeriesTime", "BodyPartExamined", "Laterality", "SeriesInstanceUID",
    "SeriesNumber", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence",
)  # fmt: skip
INSTANCE: Final = _names(
    "ImageType", "SOPClassUID", "SOPInstanceUID", "ContentDate", "ContentTime", "InstanceNumber", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated",
)  # fmt: skip
ALL: Final = (*STUDY, *SERIES, *INSTANCE)


@dataclass(frozen=True)
class Known:
    """What is known of an object. values: by the tags above, those that it has."""

    values: Mapping[str, Json]
    transfer_syntax_uid: str

    def text(self, name: str) -> str:
        """The first value of an attribute as text."""
        values = (self.values.get(name) or {}).get("Value") or [""]
        return str(values[0])


NOTHING: Final = Known({}, "")


@lru_cache(maxsize=KEPT)
def known_of(path: Path) -> Known:
    """Of the object in a file; of one that cannot be read, nothing. Raises OSError where there is no file."""
    with path.open("rb") as stream:
        try:
            header = read_header(stream, find_encoding(stream))
            elements = {name: element_json(header, Tag(int(name, 16))) for name in ALL}
            syntax = look(header.file_meta).text("TransferSyntaxUID")
        except MALFORMED:
            return NOTHING
    return Known({name: element for name, element in elements.items() if element is not None}, syntax)
