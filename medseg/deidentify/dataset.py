"""A data set without who it is of: each element by its action (`actions`), at any depth.

What is kept goes over with its bytes as they are, so that nothing of an image depends on how we read a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydicom import DataElement, Dataset, Sequence
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag

import medseg
from medseg.deidentify.actions import EDITION, Action, action
from medseg.deidentify.pseudonyms import Person
from medseg.dicom.headers import MALFORMED

METHOD: Final = f"medseg {medseg.__version__}: PS3.15 {EDITION} basic profile"
PROFILE: Final = (
    codes.cid7050.BasicApplicationConfidentialityProfile,
    codes.cid7050.RetainLongitudinalTemporalInformationModifiedDatesOption,
)
STRUCTURED: Final = codes.cid7050.CleanStructuredContentOption
DESCRIPTORS: Final = codes.cid7050.CleanDescriptorsOption

# In objects of ours, where type 2 (PS3.3 C.17.1, C.8.8.1); optional in images.
_TYPE_2: Final = ("OperatorsName", "ReferencedPerformedProcedureStepSequence")
_OURS: Final = frozenset(map(tag_for_keyword, ("ContentSequence", "ROIName", "StructureSetLabel")))
_CHARACTER_SET: Final = 0x00080005
_TEXT: Final = "REMOVED"
_DUMMIES: Final[dict[str, Any]] = {
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "http://removed.invalid",
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), _TEXT),
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), b"\0" * 8),
}


def deidentified(dataset: Dataset, person: Person, *, ours: bool = False) -> Dataset:
    """A data set of the same object without who it is of, and what says so (PS3.15 E.1.1).

    ours: what it contains are codes, numbers, names of segments and sentences of ours, so they stay (Clean Structured
    Content Option of reports, Clean Descriptors Option of structure sets).
    """
    rules = _Rules(person, ours, has_vrs=not dataset.original_encoding[0])
    changed = _of(dataset, rules)
    for keyword in _TYPE_2 if ours else ():
        if keyword in dataset:
            setattr(changed, keyword, "" if keyword == "OperatorsName" else [])
    changed.PatientName = changed.PatientID = person.pseudonym
    changed.PatientIdentityRemoved = "YES"
    changed.LongitudinalTemporalInformationModified = "MODIFIED"
    method = dataset.get("DeidentificationMethod") or []
    said = [str(one) for one in ([method] if isinstance(method, str) else method)]
    changed.DeidentificationMethod = said if METHOD in said else [*said, METHOD]
    items = list(changed.get("DeidentificationMethodCodeSequence") or [])
    known = {item.get("CodeValue") for item in items}
    used = [*PROFILE]
    used += [STRUCTURED] if ours and "ContentSequence" in dataset else []
    used += [DESCRIPTORS] if ours and "StructureSetROISequence" in dataset else []
    changed.DeidentificationMethodCodeSequence = [*items, *(_coded(code) for code in used if code.value not in known)]
    return changed


def _coded(code: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


@dataclass(frozen=True)
class _Rules:
    """What holds at every depth. ours: see `deidentified`. has_vrs: the data set is written with VRs."""

    person: Person
    ours: bool
    has_vrs: bool


def _of(dataset: Dataset, rules: _Rules) -> Dataset:
    changed = Dataset()
    implicit, little = dataset.original_encoding
    changed.set_original_encoding(implicit, little, dataset.original_character_set)
    for element in _changed(dataset, rules):
        changed[element.tag] = element
    return changed


def _changed(dataset: Dataset, rules: _Rules) -> Iterator[DataElement | RawDataElement]:
    for tag in dataset.keys():  # noqa: SIM118 - iterating converts values
        element = dataset.get_item(tag)
        what = Action.KEEP if rules.ours and tag in _OURS else action(tag)
        if what is Action.REMOVE:
            continue
        vr = _vr(element)
        if vr == "SQ":
            yield from _sequence(dataset, element, what, rules)
        elif what in (Action.KEEP, Action.ITEMS):
            # An item that was written as UN has no VRs (PS3.5 6.2.2), whatever is around it.
            yield _converted(dataset, element) if not element.VR and rules.has_vrs else element
        elif what is Action.EMPTY:
            yield _empty(tag, vr)
        elif what is Action.MOVE:
            yield from _moved(element, vr, rules.person)
        else:
            yield from _replaced(element, vr, rules.person)


def _vr(element: DataElement | RawDataElement) -> str:
    """The VR of an element; of one that does not say, that of the dictionary."""
    tag = BaseTag(element.tag)
    if element.VR in (None, "UN") and dictionary_has_tag(tag):
        return dictionary_VR(tag).split(" or ")[0]
    return str(element.VR or "UN")


def _sequence(
    dataset: Dataset, element: DataElement | RawDataElement, what: Action, rules: _Rules
) -> Iterator[DataElement]:
    """A sequence, by what is to be done with it; none where its items cannot be read."""
    if what is Action.EMPTY:
        yield DataElement(element.tag, "SQ", Sequence())
        return
    try:
        items = _converted(dataset, element).value or Sequence()
    except MALFORMED:
        return
    if not isinstance(items, Sequence):
        return
    if what is Action.DUMMY:
        yield DataElement(element.tag, "SQ", Sequence(_dummies(item, rules.person) for item in items))
    else:
        yield DataElement(element.tag, "SQ", Sequence(_of(item, rules) for item in items))


def _dummies(dataset: Dataset, person: Person) -> Dataset:
    """An item of a sequence that is replaced: what it has, and no value of it."""
    changed = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - as above
        element = dataset.get_item(tag)
        if action(tag) is Action.REMOVE:
            continue
        vr = _vr(element)
        if vr == "SQ":
            changed[tag] = DataElement(tag, "SQ", Sequence())
        elif tag == _CHARACTER_SET:
            changed[tag] = element
        elif action(tag) is Action.EMPTY:
            changed[tag] = _empty(tag, vr)
        else:
            for one in _replaced(element, vr, person):
                changed[tag] = one
    return changed


def _moved(element: DataElement | RawDataElement, vr: str, person: Person) -> Iterator[DataElement | RawDataElement]:
    """A date moved; a time of day as it is."""
    if vr == "TM":
        yield element
    else:
        yield DataElement(element.tag, vr, person.date(_text(element)))


def _replaced(element: DataElement | RawDataElement, vr: str, person: Person) -> Iterator[DataElement]:
    """A UID by what stands for it, anything else by a dummy; an empty one stays empty."""
    if vr == "UI":
        yield DataElement(element.tag, vr, [person.uid(uid) for uid in _text(element).split("\\")])
    elif vr in _DUMMIES:
        yield DataElement(element.tag, vr, _DUMMIES[vr])


def _empty(tag: BaseTag, vr: str) -> DataElement:
    return DataElement(tag, vr, None if vr in ("OB", "OW", "UN") else "")


def _text(element: DataElement | RawDataElement) -> str:
    """The value of a UID or date, parts joined by backslashes."""
    value = element.value
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").strip("\0 ")
    parts = [value] if value is None or isinstance(value, str) else value
    return "\\".join(str(part) for part in parts) if value is not None else ""


def _converted(dataset: Dataset, element: DataElement | RawDataElement) -> DataElement:
    """With its value as data; the data set keeps its bytes, which take less memory."""
    if isinstance(element, RawDataElement):
        return convert_raw_data_element(element, encoding=dataset.original_character_set or None, ds=dataset)
    return element
