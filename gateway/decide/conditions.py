"""Whether the conditions of a rule hold for a series, and why.

    holds         a pattern admits a value
    fails         none does
    not known     there is nothing to compare: the number, moment, age or plane is absent or malformed
    not known yet the series is still arriving, or nobody has said who sent it

    and   fails      before   not known yet   before   not known   before   holds
    any   holds      before   not known yet   before   not known   before   fails
    not   turns holds and fails round; what is not known stays so

So neither a comparison with nothing nor its opposite holds. An absent text is an empty text, which can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pydicom.datadict import dictionary_VR, tag_for_keyword

from gateway.settings.when import CALLED_AE, CALLING_AE, PLANE, SLICES, Condition, Either, Not, Term, conditions
from medseg.dicom.planes import plane

#: What an age is made of where there is none, and the plane: subject to DICOM keywords.
_MADE_OF = {"PatientAge": ("PatientAge", "PatientBirthDate", "StudyDate"), PLANE: ("ImageOrientationPatient",)}

#: What tells who somebody is outside the patient's group (0010,xxxx): identifiers, names, and dates and times.
_IDENTIFIERS = {"AccessionNumber", "StudyID", "AdmissionID", "RequestedProcedureID", "ScheduledProcedureStepID"}
_PERSONAL_VRS = {"PN", "DA", "DT", "TM", "AS"}


class RuleVerdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    UNKNOWN = "not known"
    OPEN = "not known yet"


NOTHING = "nothing"  # was found
_SIGNS = {
    RuleVerdict.HOLDS: "is",
    RuleVerdict.FAILS: "is not",
    RuleVerdict.UNKNOWN: "cannot be compared with",
    RuleVerdict.OPEN: "may become",
}
_OPPOSITE = {RuleVerdict.HOLDS: RuleVerdict.FAILS, RuleVerdict.FAILS: RuleVerdict.HOLDS}
_WEAKEST_FIRST = (RuleVerdict.FAILS, RuleVerdict.OPEN, RuleVerdict.UNKNOWN, RuleVerdict.HOLDS)
_STRONGEST_FIRST = (RuleVerdict.HOLDS, RuleVerdict.OPEN, RuleVerdict.UNKNOWN, RuleVerdict.FAILS)


class Facts(Protocol):
    """What can be asked of a series, as `gateway.decide.rules.SeriesFacts` has it."""

    @property
    def tags(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def calling_ae(self) -> str | None: ...
    @property
    def called_ae(self) -> str | None: ...
    @property
    def slices(self) -> int | None: ...


@dataclass(frozen=True)
class ConditionFinding:
    """A condition, or several in a `not` or `any`, and whether it holds. key: as in the file.

    found: what a condition saw, for people; it never shows what tells who the patient is. inner: what it is made of.
    """

    key: str
    verdict: RuleVerdict
    found: str = ""
    wanted: str = ""
    inner: tuple[ConditionFinding, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.inner:
            yield f"{self.key}: {self.verdict}"
            for finding in self.inner:
                yield from (f"  {line}" for line in finding.lines())
        elif self.verdict is RuleVerdict.UNKNOWN and self.found == NOTHING:
            yield f"{self.key}: there is nothing to compare with {self.wanted}"
        else:
            yield f"{self.key}: {self.found} {_SIGNS[self.verdict]} {self.wanted}"


def findings_of(terms: Iterable[Term], facts: Facts) -> tuple[ConditionFinding, ...]:
    """What each term comes to."""
    return tuple(_look(term, facts) for term in terms)


def together(findings: Iterable[ConditionFinding]) -> RuleVerdict:
    """Whether all of them hold."""
    return _first(_WEAKEST_FIRST, findings, RuleVerdict.HOLDS)


def keywords(terms: Iterable[Term]) -> frozenset[str]:
    """The DICOM keywords that conditions look at."""
    subjects = {condition.subject for condition in conditions(terms)} - {CALLED_AE, CALLING_AE, SLICES}
    return frozenset(keyword for subject in subjects for keyword in _MADE_OF.get(subject, (subject,)))


def _first(order: tuple[RuleVerdict, ...], findings: Iterable[ConditionFinding], without: RuleVerdict) -> RuleVerdict:
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
            return ConditionFinding("any", _first(_STRONGEST_FIRST, named, RuleVerdict.FAILS), inner=named)


def _compare(condition: Condition, facts: Facts) -> ConditionFinding:
    wanted = " or ".join(map(str, condition.wanted))
    values = _values(condition.subject, facts)
    if values is None:
        return ConditionFinding(condition.key, RuleVerdict.OPEN, "what is not known yet", wanted)
    answers = {pattern.admits(value) for pattern in condition.wanted for value in values}
    verdict = RuleVerdict.HOLDS if True in answers else RuleVerdict.FAILS if False in answers else RuleVerdict.UNKNOWN
    return ConditionFinding(condition.key, verdict, _shown(condition.subject, values), wanted)


def _shown(subject: str, values: tuple[str, ...]) -> str:
    return NOTHING if not any(values) else "the value" if _is_personal(subject) else "\\".join(values)


def _values(subject: str, facts: Facts) -> tuple[str, ...] | None:
    """What a condition looks at; an absent value is an empty text. None where it is not known yet."""
    known = {CALLING_AE: facts.calling_ae, CALLED_AE: facts.called_ae, SLICES: facts.slices}
    if subject in known:
        value = known[subject]
        return None if value is None else (str(value),)
    if subject == PLANE:
        return (_plane(facts.tags.get("ImageOrientationPatient", ())),)
    if subject == "PatientAge":
        return _age(facts.tags)
    return facts.tags.get(subject) or ("",)


def _age(tags: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The Age String; where there is none, the dates of birth and of the study, if there are both."""
    dates = ["".join(tags.get(keyword, ())).replace(".", "") for keyword in ("PatientBirthDate", "StudyDate")]
    stated = tags.get("PatientAge", ())
    return stated if any(stated) else ("-".join(dates) if all(dates) else "",)


def _plane(orientation: Iterable[str]) -> str:
    try:
        return plane([float(part) for part in orientation])
    except ValueError:
        return ""


def _is_personal(subject: str) -> bool:
    """Whether a value tells who the patient or anybody else is, or when they were there."""
    tag: Any = tag_for_keyword(subject)
    return tag is not None and (tag >> 16 == 0x0010 or subject in _IDENTIFIERS or dictionary_VR(tag) in _PERSONAL_VRS)
