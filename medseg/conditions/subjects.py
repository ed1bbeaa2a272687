"""What conditions look at: DICOM attributes by their keywords, and what is made of several of them.

slices                how many images there are; whoever asks says so
plane                 ImageOrientationPatient            "axial 3.5": the nearest, and by how many degrees off
contrast              what says of an agent that it was given, or was not
body_part             BodyPartExamined, and the code of the anatomic region
PatientAge            or the dates of birth and of the study
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from pydicom.datadict import dictionary_VR, tag_for_keyword

from medseg.allowed import Allowed
from medseg.conditions import patterns
from medseg.conditions.body_parts import canonical, code_of, term_of
from medseg.conditions.patterns import GIVEN, NO_CONTRAST, NOTHING_TOLD
from medseg.dicom.headers import Attributes
from medseg.dicom.planes import nearest_plane

#: What can be asked for that is no DICOM attribute.
SLICES, PLANE, CONTRAST, BODY_PART = "slices", "plane", "contrast", "body_part"

#: What may be asked for by a short name. Any other key is a DICOM keyword, and the VR of its value gives the form.
KEYWORDS: Final[Mapping[str, str]] = {
    "modality": "Modality",
    "series_description": "SeriesDescription",
    "study_description": "StudyDescription",
    "protocol": "ProtocolName",
    "slice_thickness_mm": "SliceThickness",
}
SUBJECTS: Final[Mapping[str, Allowed[Any]]] = {
    BODY_PART: patterns.BODY_PARTS,
    SLICES: patterns.NUMBERS,
    PLANE: patterns.PLANE_NAMES,
    CONTRAST: patterns.CONTRAST_NAMES,
}
VRS: Final[tuple[tuple[frozenset[str], Allowed[Any]], ...]] = (
    (frozenset({"CS", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "PN"}), patterns.GLOB),
    (frozenset({"DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "UV", "SV"}), patterns.NUMBERS),
    (frozenset({"DA"}), patterns.DATES),
    (frozenset({"TM"}), patterns.TIMES),
    (frozenset({"DT"}), patterns.DATE_TIMES),
    (frozenset({"AS"}), patterns.AGES),
    (frozenset({"AE"}), patterns.EXACT_AE),
    (frozenset({"UI"}), patterns.EXACT_UID),
)

#: The attributes that a subject is made of, where it is none itself.
_AGE: Final = ("PatientAge", "PatientBirthDate", "StudyDate")
_AGENTS: Final = ("ContrastBolusAgentSequence", "ContrastBolusIngredient", "ContrastBolusVolume")
MADE_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "PatientAge": _AGE,
    PLANE: ("ImageOrientationPatient",),
    CONTRAST: ("ContrastBolusAgent", *_AGENTS),
    BODY_PART: ("BodyPartExamined", "AnatomicRegionSequence"),
}

#: What tells who somebody is outside the patient's group (0010,xxxx): identifiers, names, and dates and times.
_IDENTIFIERS: Final = {"AccessionNumber", "StudyID", "AdmissionID", "RequestedProcedureID", "ScheduledProcedureStepID"}
_MOMENTS: Final = {"DA", "DT", "TM"}

#: The values of an attribute as texts; none where it is absent.
Says: TypeAlias = Callable[[str], tuple[str, ...]]


def said_by(seen: Attributes, keyword: str) -> tuple[str, ...]:
    """The values of an attribute as texts; of a code sequence, SCHEME:VALUE and meaning of its first item."""
    if not keyword.endswith("Sequence"):
        return seen.texts(keyword)
    items = seen.value(keyword) or ()
    if not items:
        return ()
    code = Attributes(items[0])
    value, scheme, meaning = (code.text(name) for name in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
    return f"{scheme}:{value}", meaning


def values_of(subject: str, says: Says) -> tuple[str, ...]:
    """What a condition on a subject looks at; none where nothing is known. `slices` is for who asks."""
    match subject:
        case "PatientAge":
            return _age(says)
        case _ if subject == PLANE:
            return _plane(says("ImageOrientationPatient"))
        case _ if subject == CONTRAST:
            return _contrast(says)
        case _ if subject == BODY_PART:
            return _body_part(says)
    return says(subject)


def is_moment(subject: str) -> bool:
    """Whether a value is a date or a time: neither it, nor what it is compared with, is shown."""
    tag = tag_for_keyword(subject)
    return tag is not None and dictionary_VR(tag) in _MOMENTS


def is_personal(subject: str) -> bool:
    """Whether a value tells who the patient or anybody else is, or when they were there."""
    tag: Any = tag_for_keyword(subject)
    return tag is not None and (
        names_somebody(subject) or tag >> 16 == 0x0010 or dictionary_VR(tag) in {*_MOMENTS, "AS"}
    )


def names_somebody(subject: str) -> bool:
    """Whether a value says who somebody is, by a name or an identifier."""
    tag: Any = tag_for_keyword(subject)
    if tag is None:
        return False
    kind = dictionary_VR(tag)
    return subject in _IDENTIFIERS or kind == "PN" or (tag >> 16 == 0x0010 and kind in ("LO", "SH", "LT", "UT", "UC"))


def _age(says: Says) -> tuple[str, ...]:
    """The Age String; where there is none, the dates of birth and of the study, if there are both."""
    dates = ["".join(says(keyword)).replace(".", "") for keyword in _AGE[1:]]
    stated = says("PatientAge")
    return stated if any(stated) else (("-".join(dates),) if all(dates) else ())


def _plane(orientation: tuple[str, ...]) -> tuple[str, ...]:
    try:
        nearest = nearest_plane([float(part) for part in orientation])
    except ValueError:
        return ()
    return () if nearest is None else (f"{nearest[0]} {nearest[1]}",)


def _contrast(says: Says) -> tuple[str, ...]:
    """That an agent is named says that one was given; that none is named says nothing."""
    agent = [text.upper() for text in says("ContrastBolusAgent") if text]
    if any(text not in NOTHING_TOLD for text in agent) or any(_some(says(keyword)) for keyword in _AGENTS):
        return (GIVEN,)
    return (NO_CONTRAST,) if agent else ()


def _some(values: tuple[str, ...]) -> bool:
    """Whether there is something, and not a volume of 0."""
    return any(text and text.strip("0.+- ") for text in values)


def _body_part(says: Says) -> tuple[str, ...]:
    """A text, and a code where one is known; of each the other, where it stands alone."""
    text = next((text for text in says("BodyPartExamined") if text), "")
    code, meaning = says("AnatomicRegionSequence") or ("", "")
    code = canonical(code) if code else code_of(text)
    text = text or term_of(code) or meaning
    return tuple(part for part in (text, code) if part)
