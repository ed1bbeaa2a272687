"""The `when` of a rule: conditions that must all hold, and `not` and `any` around some of them.

    when = { modality = "CT", not = { series_description = "*scout*" }, any = [{ plane = "axial" }, { slices = 9 }] }

A condition is a key and what the value may be: one pattern, or a list of which any may admit it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from gateway.settings import patterns
from gateway.settings.patterns import Pattern
from gateway.settings.toml_lines import Key
from medseg.allowed import Allowed, shown

#: What can be asked for that is no DICOM attribute.
CALLED_AE, CALLING_AE, SLICES, PLANE = "called_ae", "calling_ae", "slices", "plane"


@dataclass(frozen=True)
class Condition:
    """Holds when any pattern admits any value of what it looks at.

    key: as in the file. subject: a DICOM keyword, or one of CALLED_AE, CALLING_AE, SLICES, PLANE.
    """

    key: str
    subject: str
    wanted: tuple[Pattern, ...]


@dataclass(frozen=True)
class Not:
    """Holds when its terms do not all hold."""

    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Either:
    """Holds when all terms of any of its ways hold: `any` in the file."""

    ways: tuple[tuple[Term, ...], ...]


Term: TypeAlias = Condition | Not | Either
Report: TypeAlias = Callable[[Key, str], None]

NOT, ANY = "not", "any"
DEEPEST: Final = 8

#: What `when` may ask by a short name. Any other key is a DICOM keyword, and the VR of its value gives the form.
KEYWORDS: Final[Mapping[str, str]] = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "series_description": "SeriesDescription",
    "study_description": "StudyDescription",
    "protocol": "ProtocolName",
    "slice_thickness_mm": "SliceThickness",
}
SUBJECTS: Final[Mapping[str, Allowed[Any]]] = {
    CALLED_AE: patterns.EXACT_AE,
    CALLING_AE: patterns.EXACT_AE,
    SLICES: patterns.NUMBERS,
    PLANE: patterns.PLANE_NAMES,
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


def read_when(table: Any, key: Key, report: Report) -> tuple[Term, ...]:
    """The terms of a table; what is wrong with it is reported by its key, and left out."""
    if not isinstance(table, dict):
        report(key, f'expected a table such as {{ modality = "MR" }}, found {shown(table)}')
        return ()
    read = [_term(name, value, (*key, name), report) for name, value in table.items()]
    return tuple(term for term in read if term is not None)


def conditions(terms: Iterable[Term], *, negated: bool = True) -> Iterator[Condition]:
    """All conditions, however deep. negated: also those under a `not`."""
    for term in terms:
        match term:
            case Condition():
                yield term
            case Not() if negated:
                yield from conditions(term.terms)
            case Either():
                for way in term.ways:
                    yield from conditions(way, negated=negated)


def in_words(terms: Iterable[Term]) -> str:
    """Conditions as they were understood, each with the kind of its values."""
    return " and ".join(map(_in_words, terms))


def _in_words(term: Term) -> str:
    match term:
        case Condition():
            kind = term.wanted[0].kind
            return f"{term.key} is {'' if kind == term.key else f'the {kind} '}{' or '.join(map(str, term.wanted))}"
        case Not():
            return f"not ({in_words(term.terms)})"
    return f"({' or '.join(in_words(way) for way in term.ways)})"


def form_of(name: str) -> Allowed[Any] | None:
    """What the value of a key may be; None where there is no such key, or its values do not compare."""
    subject = KEYWORDS.get(name, name)
    if subject in SUBJECTS:
        return SUBJECTS[subject]
    tag = tag_for_keyword(subject)
    if tag is None:
        return None
    return next((form for vrs, form in VRS if set(dictionary_VR(tag).split(" or ")) <= vrs), None)


def _term(name: str, value: Any, key: Key, report: Report) -> Term | None:
    if sum(part in (NOT, ANY) for part in key) > DEEPEST:
        report(key, f"expected at most {DEEPEST} tables inside each other")
        return None
    if name == NOT:
        example = 'expected a table of conditions such as { series_description = "*scout*" }'
        return Not(read_when(value, key, report)) if _is_filled(value, key, example, report) else None
    if name == ANY:
        example = 'expected a list of tables such as [{ body_part = "HEAD" }, { series_description = "*brain*" }]'
        return _either(value, key, example, report)
    return _condition(name, value, key, report)


def _either(value: Any, key: Key, example: str, report: Report) -> Either | None:
    if not isinstance(value, list) or not value:
        report(key, f"{example}, found {shown(value)}")
        return None
    ways = [(number, table) for number, table in enumerate(value) if _is_filled(table, (*key, number), example, report)]
    return Either(tuple(read_when(table, (*key, number), report) for number, table in ways))


def _is_filled(table: Any, key: Key, example: str, report: Report) -> bool:
    filled = isinstance(table, dict) and bool(table)
    if not filled:
        report(key, f"{example}, found {shown(table)}")
    return filled


def _condition(name: str, value: Any, key: Key, report: Report) -> Condition | None:
    form = form_of(name)
    if form is None:
        report(key, f"no such condition: {_advice(name)}")
        return None
    try:
        items = value if isinstance(value, list) and value else [value]
        return Condition(name, KEYWORDS.get(name, name), tuple(form.read(item) for item in items))
    except ValueError:
        report(key, f"expected {form.allowed}, found {shown(value)}")
        return None


def _advice(name: str) -> str:
    known = [*KEYWORDS, *SUBJECTS, NOT, ANY]
    near = difflib.get_close_matches(name, [*known, *keyword_dict], 1, cutoff=0.8)
    meant = f"did you mean {near[0]}? " if near and form_of(near[0]) else ""
    return f"{meant}known are {', '.join(known)} and the DICOM keywords of texts, numbers, dates, times and ages"
