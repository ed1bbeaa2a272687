"""Rules as data: what is to be done with a series, and why.

    facts of a series --explain--> every rule with each of its conditions, and the first rule whose conditions all hold

A condition on something that is not known yet (the number of slices of a series still arriving) neither holds nor
fails (`medseg.conditions.findings`); the rule is chosen provisionally, and asked again when it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydicom import Dataset

from gateway.settings.model import Mode, Peer, Priority, Rule
from gateway.settings.when import CALLED_AE, CALLING_AE
from medseg.conditions import findings as conditions
from medseg.conditions.findings import ConditionFinding, ConditionVerdict
from medseg.conditions.prefer import keyword_of
from medseg.conditions.subjects import SLICES, said_by, values_of
from medseg.dicom.classes import IMAGES, class_name, made_by_medseg
from medseg.dicom.headers import first_frame

#: How long before its arrival a job counts as due, in seconds: routine work that has waited 50 minutes longer than
#: a stat job goes before it.
HEAD_START_S = {Priority.STAT: 3600.0, Priority.ROUTINE: 600.0, Priority.LOW: 0.0}


@dataclass(frozen=True)
class SeriesFacts:
    """What rules may ask of a series.

    tags: by DICOM keyword, the parts of the value as text; absent or malformed ones may be left out.
    calling_ae, called_ae: empty where the series did not come by DIMSE, None where nobody has said.
    slices: None while it is still arriving.
    ours: made by medseg. number: SeriesNumber; thickness_mm: SliceThickness.
    moment: when it was made, for comparison; never shown.
    """

    study_uid: str
    series_uid: str
    sop_class_uid: str
    tags: Mapping[str, tuple[str, ...]]
    calling_ae: str | None = None
    called_ae: str | None = None
    slices: int | None = None
    ours: bool = False
    number: float | None = None
    thickness_mm: float | None = None
    moment: str = ""

    @property
    def knows_texts(self) -> bool:
        return True

    def values(self, subject: str) -> tuple[str, ...] | None:
        """What a condition looks at; None where it is not known yet."""
        known = {CALLING_AE: self.calling_ae, CALLED_AE: self.called_ae, SLICES: self.slices}
        if subject in known:
            value = known[subject]
            return None if value is None else (str(value),)
        return values_of(subject, lambda keyword: self.tags.get(keyword, ()))


@dataclass(frozen=True)
class Decision:
    """What one rule says to a series. chosen: it is the first whose conditions all hold."""

    rule: Rule
    findings: tuple[ConditionFinding, ...]
    chosen: bool = False

    @property
    def verdict(self) -> ConditionVerdict:
        return conditions.together(self.findings)

    @property
    def matches(self) -> bool:
        """Whether the rule takes the series, as far as is known yet."""
        return self.verdict in (ConditionVerdict.HOLDS, ConditionVerdict.OPEN)


@dataclass(frozen=True)
class Explanation:
    """All rules with what each says. barred: why none of them is asked, or empty."""

    decisions: tuple[Decision, ...]
    barred: str = ""

    @property
    def chosen(self) -> Decision | None:
        return next((decision for decision in self.decisions if decision.chosen), None)

    def lines(self) -> Iterable[str]:
        """For people, a line a thought."""
        if self.barred:
            yield self.barred
        for decision in self.decisions:
            if decision.chosen:
                provisional = " as far as is known yet" if decision.verdict is ConditionVerdict.OPEN else ""
                yield f"{decision.rule.name}: chosen{provisional}, mode {decision.rule.mode}"
            elif not decision.matches:
                yield f"{decision.rule.name}: does not match"
            elif not self.barred:
                yield f"{decision.rule.name}: would match, but an earlier rule does"
            else:
                yield f"{decision.rule.name}: would match"
            yield from (f"  {line}" for finding in decision.findings for line in finding.lines())


def explain(facts: SeriesFacts, rules: Sequence[Rule]) -> Explanation:
    """What every rule says to a series, and which one decides."""
    barred = _barred(facts)
    asked = [Decision(rule, conditions.findings_of(rule.when, facts)) for rule in rules]
    first = next((number for number, one in enumerate(asked) if one.matches), None)
    return Explanation(
        tuple(
            Decision(one.rule, one.findings, chosen=number == first and not barred) for number, one in enumerate(asked)
        ),
        barred,
    )


def choose(facts: SeriesFacts, rules: Sequence[Rule]) -> Rule | None:
    """The rule that decides what is done with a series; None where nothing is: no rule matches, or its mode is off."""
    chosen = explain(facts, rules).chosen
    return chosen.rule if chosen and chosen.rule.mode is not Mode.OFF else None


def takes(explanation: Explanation, rule: Rule) -> bool:
    """Whether a series may be a channel of a rule's bundle: its conditions hold, whichever decides on it by itself.

    Nothing is done with one that a rule with mode off takes.
    """
    chosen = explanation.chosen
    return (
        chosen is not None
        and chosen.rule.mode is not Mode.OFF
        and any(one.matches for one in explanation.decisions if one.rule.name == rule.name)
    )


def choose_early(facts: SeriesFacts, rules: Sequence[Rule]) -> Rule | None:
    """The rule that decides whatever else comes of a series that is still arriving; None where that is not known."""
    chosen = explain(replace(facts, slices=None), rules).chosen
    return chosen.rule if chosen and chosen.verdict is ConditionVerdict.HOLDS else None


def destinations(rule: Rule, calling_ae: str | None, peers: Sequence[Peer]) -> tuple[str, ...]:
    """The peers that a rule's results go to, by name, in order; else the caller, where it is a known peer (the first).

    A name of a peer that was taken out of the settings stays: what goes there becomes a dead letter, and is not lost.
    """
    if rule.send_to is None:
        return tuple(peer.name for peer in peers if calling_ae and peer.ae_title == calling_ae)[:1]
    return tuple(dict.fromkeys(rule.send_to))


def due_s(arrived_s: float, priority: Priority) -> float:
    """When a job is due, for a queue in that order: work of a lower priority is overtaken, and never starved."""
    return arrived_s - HEAD_START_S[priority]


def keywords(rules: Iterable[Rule]) -> frozenset[str]:
    """The DICOM keywords that rules ask for."""
    several = tuple(rules)
    asked = conditions.keywords(term for rule in several for term in rule.when)
    preferred = {keyword_of(preference) for rule in several for preference in rule.prefer}
    return (asked | preferred) - {CALLING_AE, CALLED_AE, SLICES, ""}


def series_facts(
    header: Dataset,
    rules: Iterable[Rule],
    *,
    calling_ae: str | None = None,
    called_ae: str | None = None,
    slices: int | None = None,
) -> SeriesFacts:
    """What `rules` may ask of a series, from the header of one of its instances, leniently."""
    seen = first_frame(header)
    date, time = seen.text("SeriesDate"), seen.text("SeriesTime")
    return SeriesFacts(
        study_uid=seen.text("StudyInstanceUID"),
        series_uid=seen.text("SeriesInstanceUID"),
        sop_class_uid=seen.text("SOPClassUID"),
        tags={keyword: said_by(seen, keyword) for keyword in keywords(rules)},
        calling_ae=calling_ae,
        called_ae=called_ae,
        slices=slices,
        ours=made_by_medseg(header),
        number=seen.number("SeriesNumber"),
        thickness_mm=seen.number("SliceThickness"),
        moment=f"{date} {time}" if date and time else "",
    )


def _barred(facts: SeriesFacts) -> str:
    """Why a series is never segmented, whatever the rules say; so that our own results never loop back."""
    if facts.ours:
        return f"series {facts.series_uid} was made by medseg"
    if facts.sop_class_uid not in IMAGES:
        return f"series {facts.series_uid} has no images to segment: its SOP class is {class_name(facts.sop_class_uid)}"
    return ""
