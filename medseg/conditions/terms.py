"""Conditions that must all hold, and `not` and `any` around some of them, read from a table (TOML, JSON).

    when = { modality = "CT", not = { series_description = "*scout*" }, any = [{ plane = "axial" }, { slices = 9 }] }

A condition is a key and what the value may be: one pattern, or a list of which any may admit it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from medseg.allowed import Allowed, is_number, shown, text
from medseg.conditions import patterns
from medseg.conditions.patterns import PRESENCES, Pattern, Presence, Wildcard
from medseg.conditions.subjects import KEYWORDS, SUBJECTS, VRS


@dataclass(frozen=True)
class Condition:
    """Holds when any pattern admits any value of what it looks at.

    key: as in the file. subject: a DICOM keyword, or one of SUBJECTS or of those that a language has beside them.
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
#: Names of tables and keys, numbers of the items of a list: ("rule", 0, "when", "modality").
Path: TypeAlias = tuple[str | int, ...]
Report: TypeAlias = Callable[[Path, str], object]

NOT, ANY = "not", "any"
DEEPEST: Final = 8


@dataclass(frozen=True)
class Language:
    """What a table of conditions may ask, and how. subjects: beside SUBJECTS.

    of_bundles: texts have ? beside *, [least, most] is a range, null for no limit; "present" and "absent" are no texts.
    bars: why an attribute may not be asked for; empty where it may.
    """

    subjects: Mapping[str, Allowed[Any]] = field(default_factory=dict)
    of_bundles: bool = False
    bars: Callable[[str], str] = lambda _: ""


def read_when(table: Any, key: Path, report: Report, language: Language = Language()) -> tuple[Term, ...]:
    """The terms of a table; what is wrong with it is reported by its key, and left out."""
    if not isinstance(table, dict):
        report(key, f'expected a table such as {{ modality = "MR" }}, found {shown(table)}')
        return ()
    read = [_term(name, value, (*key, name), report, language) for name, value in table.items()]
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


def wanted(term: Term) -> str:
    """A term for a person, short."""
    match term:
        case Condition():
            return f"{term.key} {' or '.join(map(str, term.wanted))}"
        case Not():
            return f"not ({' and '.join(map(wanted, term.terms))})"
    return f"({' or '.join(' and '.join(map(wanted, way)) for way in term.ways)})"


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


def form_of(name: str, language: Language = Language()) -> Allowed[Any] | None:
    """What the value of a key may be; None where there is no such key, or its values do not compare."""
    subject = KEYWORDS.get(name, name)
    own = SUBJECTS.get(subject) or language.subjects.get(subject)
    tag = tag_for_keyword(subject)
    if own is not None or tag is None:
        return own
    return next((form for vrs, form in VRS if set(dictionary_VR(tag).split(" or ")) <= vrs), None)


def _term(name: str, value: Any, key: Path, report: Report, language: Language) -> Term | None:
    if sum(part in (NOT, ANY) for part in key) > DEEPEST:
        report(key, f"expected at most {DEEPEST} tables inside each other")
        return None
    if name == NOT:
        example = 'expected a table of conditions such as { series_description = "*scout*" }'
        return Not(read_when(value, key, report, language)) if _is_filled(value, key, example, report) else None
    if name == ANY:
        return _either(value, key, report, language)
    return _condition(name, value, key, report, language)


def _either(value: Any, key: Path, report: Report, language: Language) -> Either | None:
    example = 'expected a list of tables such as [{ body_part = "HEAD" }, { series_description = "*brain*" }]'
    if not isinstance(value, list) or not value:
        report(key, f"{example}, found {shown(value)}")
        return None
    ways = [(number, table) for number, table in enumerate(value) if _is_filled(table, (*key, number), example, report)]
    return Either(tuple(read_when(table, (*key, number), report, language) for number, table in ways))


def _is_filled(table: Any, key: Path, example: str, report: Report) -> bool:
    filled = isinstance(table, dict) and bool(table)
    if not filled:
        report(key, f"{example}, found {shown(table)}")
    return filled


def _condition(name: str, value: Any, key: Path, report: Report, language: Language) -> Condition | None:
    form, subject = form_of(name, language), KEYWORDS.get(name, name)
    if form is None:
        report(key, f"no such condition: {_advice(name, language)}")
        return None
    if why := language.bars(subject):
        report(key, why)
        return None
    read = _of_bundles if language.of_bundles else _of_settings
    try:
        return Condition(name, subject, read(form, value))
    except ValueError:
        more = ', [least, most], "present" or "absent"' if language.of_bundles else ""
        report(key, f"expected {form.allowed}{more}, found {shown(value):.80}")
        return None


def _of_settings(form: Allowed[Any], value: Any) -> tuple[Pattern, ...]:
    return tuple(form.read(item) for item in (value if isinstance(value, list) and value else [value]))


def _of_bundles(form: Allowed[Any], value: Any) -> tuple[Pattern, ...]:
    if isinstance(value, list) and any(is_number(item) or item is None for item in value):
        return (patterns.pair(value),)
    return tuple(_text_of_bundle(form, item) for item in (value if isinstance(value, list) and value else [value]))


def _text_of_bundle(form: Allowed[Pattern], item: Any) -> Pattern:
    if form in SUBJECTS.values():
        return form.read(item)
    if item in PRESENCES:
        return Presence(item)
    if form in _TEXTS or (isinstance(item, str) and re.search(r"[*?]", item)):
        return Wildcard(text(item))
    return form.read(item)


_TEXTS: Final = (patterns.GLOB, patterns.EXACT_AE, patterns.EXACT_UID)


def _advice(name: str, language: Language) -> str:
    known = [*KEYWORDS, *SUBJECTS, *language.subjects, NOT, ANY]
    near = difflib.get_close_matches(name, [*known, *keyword_dict], 1, cutoff=0.8)
    meant = f"did you mean {near[0]}? " if near and form_of(near[0], language) else ""
    return f"{meant}known are {', '.join(known)} and the DICOM keywords of texts, numbers, dates, times and ages"
