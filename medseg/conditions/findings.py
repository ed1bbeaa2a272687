"""Whether conditions hold for a series, and why.

    holds         a pattern admits a value
    fails         none does
    not known     there is nothing to compare: the number, moment, age or plane is absent or malformed
    not known yet the series is still arriving, or nobody has said who sent it

    and   fails      before   not known yet   before   not known   before   holds
    any   holds      before   not known yet   before   not known   before   fails
    not   turns holds and fails round; what is not known stays so

So neither a comparison with nothing nor its opposite holds. What that means for the whole, who asks says: a rule takes
no series for what is not known of it; a bundle is barred from none. To a rule an absent text is an empty text, which
can be compared; to a bundle it is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from medseg.conditions.patterns import NOT_KNOWN, OF_TEXT, BodyCode, ContrastPattern, Pattern, Presence
from medseg.conditions.subjects import BODY_PART, MADE_OF, PLANE, is_moment, is_personal
from medseg.conditions.terms import Condition, Either, Not, Term, conditions
from medseg.dicom.planes import OBLIQUE_DEG, PLANES


class ConditionVerdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    UNKNOWN = "not known"
    OPEN = "not known yet"


NOTHING = "nothing"  # was found
_SIGNS = {
    ConditionVerdict.HOLDS: "is",
    ConditionVerdict.FAILS: "is not",
    ConditionVerdict.UNKNOWN: "cannot be compared with",
    ConditionVerdict.OPEN: "may become",
}
_OPPOSITE = {ConditionVerdict.HOLDS: ConditionVerdict.FAILS, ConditionVerdict.FAILS: ConditionVerdict.HOLDS}
_WEAKEST_FIRST = (ConditionVerdict.FAILS, ConditionVerdict.OPEN, ConditionVerdict.UNKNOWN, ConditionVerdict.HOLDS)
_STRONGEST_FIRST = (ConditionVerdict.HOLDS, ConditionVerdict.OPEN, ConditionVerdict.UNKNOWN, ConditionVerdict.FAILS)


class Facts(Protocol):
    """What can be asked of a series. knows_texts: an absent text is an empty one, and not one that is not known."""

    @property
    def knows_texts(self) -> bool: ...

    def values(self, subject: str) -> tuple[str, ...] | None:
        """What a condition looks at; none where nothing is known, None where it is not known yet."""
        ...


@dataclass(frozen=True)
class ConditionFinding:
    """A condition, or several in a `not` or `any`, and whether it holds. key: as in the file.

    found: what a condition saw, for people; it never shows what tells who the patient is. inner: what it is made of.
    """

    key: str
    verdict: ConditionVerdict
    found: str = ""
    wanted: str = ""
    inner: tuple[ConditionFinding, ...] = ()

    @property
    def short(self) -> str:
        """In one line: what was found, and where that is not what is wanted, what is."""
        holds = self.verdict is ConditionVerdict.HOLDS
        if self.key == "not":
            return "" if holds else f"not expected: {' and '.join(one.short for one in self.inner)}"
        if self.key == "all":
            first = next(one for one in self.inner if one.verdict is self.verdict)
            return " and ".join(one.short for one in self.inner) if holds else first.short
        if self.key == "any":
            alike = [one.short for one in self.inner if one.verdict is self.verdict]
            return alike[0] if holds else "; or ".join(alike)
        if self.verdict in (ConditionVerdict.UNKNOWN, ConditionVerdict.OPEN):
            return f"{self.key} {self.verdict}"
        return f"{self.key} {self.found}" + ("" if holds else f", expected {self.wanted}")

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.inner:
            yield f"{self.key}: {self.verdict}"
            for finding in self.inner:
                yield from (f"  {line}" for line in finding.lines())
        elif self.verdict is ConditionVerdict.UNKNOWN and self.found == NOTHING:
            yield f"{self.key}: there is nothing to compare with {self.wanted}"
        else:
            yield f"{self.key}: {self.found} {_SIGNS[self.verdict]} {self.wanted}"


def findings_of(terms: Iterable[Term], facts: Facts) -> tuple[ConditionFinding, ...]:
    """What each term comes to."""
    return tuple(_look(term, facts) for term in terms)


def together(findings: Iterable[ConditionFinding]) -> ConditionVerdict:
    """Whether all of them hold."""
    return _first(_WEAKEST_FIRST, findings, ConditionVerdict.HOLDS)


def keywords(terms: Iterable[Term]) -> frozenset[str]:
    """The DICOM keywords, and what is none, that conditions look at."""
    subjects = {condition.subject for condition in conditions(terms)}
    return frozenset(keyword for subject in subjects for keyword in MADE_OF.get(subject, (subject,)))


def _first(
    order: tuple[ConditionVerdict, ...], findings: Iterable[ConditionFinding], without: ConditionVerdict
) -> ConditionVerdict:
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in order if verdict in verdicts), without)


def _look(term: Term, facts: Facts) -> ConditionFinding:
    match term:
        case Condition():
            return _compare(term, facts)
        case Not():
            inner = findings_of(term.terms, facts)
            verdict = together(inner)
            return ConditionFinding("not", _OPPOSITE.get(verdict, verdict), inner=inner)
        case Either():
            ways = [findings_of(way, facts) for way in term.ways]
            named = tuple(
                way[0] if len(way) == 1 else ConditionFinding("all", together(way), inner=way) for way in ways
            )
            return ConditionFinding("any", _first(_STRONGEST_FIRST, named, ConditionVerdict.FAILS), inner=named)


def _compare(condition: Condition, facts: Facts) -> ConditionFinding:
    wanted = "what is asked for" if is_moment(condition.subject) else " or ".join(map(str, condition.wanted))
    values = facts.values(condition.subject)
    if values is None:
        return ConditionFinding(condition.key, ConditionVerdict.OPEN, "what is not known yet", wanted)
    answers = {answer for pattern in condition.wanted for answer in _answers(pattern, values, facts.knows_texts)}
    verdict = (
        ConditionVerdict.HOLDS
        if True in answers
        else ConditionVerdict.FAILS
        if False in answers
        else ConditionVerdict.UNKNOWN
    )
    return ConditionFinding(condition.key, verdict, _shown(condition, values), wanted)


def _answers(pattern: Pattern, values: tuple[str, ...], knows_texts: bool) -> set[bool | None]:
    if isinstance(pattern, Presence):
        return {pattern.admits("\\".join(values))}
    if isinstance(pattern, OF_TEXT) and not knows_texts:
        return {pattern.admits(value) if value else None for value in values}
    return {pattern.admits(value) for value in values or ("",)}


def _shown(condition: Condition, values: tuple[str, ...]) -> str:
    if not any(values):
        return NOT_KNOWN if ContrastPattern(NOT_KNOWN) in condition.wanted else NOTHING
    if is_personal(condition.subject):
        return "the value"
    if condition.subject == PLANE:
        return _plane_shown(values[0], any(" " in pattern.text for pattern in condition.wanted))
    if condition.subject == BODY_PART and not any(isinstance(pattern, BodyCode) for pattern in condition.wanted):
        values = values[:1]
    return "\\".join(values)


def _plane_shown(value: str, with_degrees: bool) -> str:
    name, _, deg = value.partition(" ")
    plain = name if float(deg) < OBLIQUE_DEG else PLANES[-1]
    return f"{plain}, {float(deg):.0f} degrees out of {name}," if with_degrees else plain
