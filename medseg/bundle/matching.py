"""Which volume of a study is which channel, by a bundle's conditions: pure, and every answer has its reasons.

    judge       a candidate against a channel: fits, and whether all is known; or why not
    choose      the candidates of a channel to the one that is meant, or several, or none

What is not known neither fits nor bars: a candidate fits where something holds and nothing is known to fail, and one
of which all is known goes before others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medseg.bundle.channels import Alternative, Channel, PhaseRule, Pick
from medseg.bundle.seen import VolumeFacts, values_by
from medseg.conditions.findings import ConditionVerdict, findings_of
from medseg.conditions.prefer import preferred
from medseg.dicom.series import Stack


@dataclass(frozen=True, eq=False)
class ChannelCandidate:
    """A volume of a series, as conditions see it.

    stack: itself. place: which of the series' volumes it is, from 1 on. moment: of the series, for comparison; "" where
    it is not known. says: an attribute's values as texts; none where it is absent.
    """

    stack: Stack
    series_uid: str
    number: int | None
    description: str
    modality: str
    place: int
    phase: str
    slices: int
    thickness_mm: float
    moment: str
    says: Callable[[str], tuple[str, ...]]

    def said(self, keyword: str) -> tuple[str, ...]:
        """The values of an attribute, under whichever of its names."""
        return values_by(self.says, keyword)

    @property
    def called(self) -> str:
        """For a person."""
        number = "" if self.number is None else f" {self.number}"
        return f'series{number} "{self.description}"' + (f", {self.phase}" if self.phase else "")


@dataclass(frozen=True)
class Judgement:
    """alternative: the first that the candidate fits, by its place; None where it fits none.

    why: for a person. unknown: what the series does not say.
    """

    alternative: int | None
    why: str
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Choice:
    """What was found for a channel.

    chosen: the one. tied: several that fit alike. judged: every candidate, and what was found of it.
    """

    channel: Channel
    chosen: ChannelCandidate | None
    tied: tuple[ChannelCandidate, ...]
    judged: tuple[tuple[ChannelCandidate, Judgement], ...]
    why: str


def judge(candidate: ChannelCandidate, channel: Channel) -> Judgement:
    """A candidate against a channel: the first alternative of which all is known to hold, else the first that fits."""
    each = [_judge(candidate, channel, number) for number in range(max(len(channel.any), 1))]
    fitting = [one for one in each if one.alternative is not None]
    certain = [one for one in fitting if not one.unknown]
    if fitting:
        return (certain or fitting)[0]
    return Judgement(None, "; ".join(dict.fromkeys(one.why for one in each)))


def _judge(candidate: ChannelCandidate, channel: Channel, number: int) -> Judgement:
    """Against one alternative; a channel that has none takes whatever is of its modality."""
    modality = candidate.modality.upper()
    if channel.modality and modality and modality not in channel.modality:
        return Judgement(None, f"modality {modality}, expected {' or '.join(channel.modality)}")
    if channel.any:
        return _held(candidate, channel.any[number], number)
    return Judgement(0, f"modality {modality}") if modality else Judgement(None, "Modality not known")


def _held(candidate: ChannelCandidate, alternative: Alternative, number: int) -> Judgement:
    facts = VolumeFacts(candidate.says, candidate.slices)
    found = findings_of(alternative.conditions, facts)
    failing = next((one for one in found if one.verdict is ConditionVerdict.FAILS), None)
    if failing is not None:
        return Judgement(None, failing.short)
    for one in findings_of(alternative.barred, facts):
        if one.verdict is ConditionVerdict.HOLDS:
            return Judgement(None, f"{one.short}, expected none that is {one.wanted}")
    unknown = tuple(one.key for one in found if one.verdict is not ConditionVerdict.HOLDS)
    held = [one.short for one in found if one.verdict is ConditionVerdict.HOLDS]
    note = f"{', '.join(unknown)} not known" if unknown else ""
    if found and not held:
        return Judgement(None, note)
    return Judgement(number, ", ".join(text for text in (*held, note) if text) or "fits", unknown)


def choose(channel: Channel, candidates: Iterable[ChannelCandidate]) -> Choice:
    """The one that a channel means: the first alternative with one best candidate wins."""
    volumes = tuple(candidates)
    judged = tuple((candidate, judge(candidate, channel)) for candidate in volumes)
    tied: tuple[ChannelCandidate, ...] = ()
    why = ""
    for number in range(max(len(channel.any), 1)):
        here = [(candidate, _judge(candidate, channel, number)) for candidate in volumes]
        fitting = [(candidate, one) for candidate, one in here if one.alternative is not None]
        certain = [candidate for candidate, one in fitting if not one.unknown]
        left, phase_why = _phases(certain or [candidate for candidate, _ in fitting], channel.phase)
        why = why or phase_why
        left = preferred(left, channel.prefer)
        if len(left) == 1:
            reason = next(one.why for candidate, one in fitting if candidate is left[0])
            return Choice(channel, left[0], (), judged, reason)
        tied = tied or tuple(left)
    return Choice(channel, None, tied, judged, why)


def named(channel: Channel, candidates: Sequence[ChannelCandidate]) -> Choice:
    """The volume that is meant of a series that a person named, whatever the channel's conditions say of it."""
    left, why = _phases(candidates, channel.phase) if len(candidates) > 1 else (list(candidates), "")
    chosen = left[0] if len(left) == 1 else None
    return Choice(channel, chosen, () if chosen else tuple(left or candidates), (), "named" if chosen else why)


def _phases(candidates: Sequence[ChannelCandidate], rule: PhaseRule | None) -> tuple[list[ChannelCandidate], str]:
    """Of each series the volume that is meant; and why of some series it cannot be said."""
    if rule is None:
        return list(candidates), ""
    left: list[ChannelCandidate] = []
    why = ""
    for uid in dict.fromkeys(candidate.series_uid for candidate in candidates):
        volumes = [candidate for candidate in candidates if candidate.series_uid == uid]
        meant = _meant(volumes, rule)
        left += meant
        if not meant:
            why = f"none of {len(volumes)} volumes of series {uid} says that it is {rule}"
    return left, why


def _meant(volumes: Sequence[ChannelCandidate], rule: PhaseRule) -> list[ChannelCandidate]:
    if rule.keyword is None:
        places = [float(volume.place) for volume in volumes]
        return [volume for volume in volumes if volume.place == _picked(places, rule.pick)]
    numbered = [(_number(values[0]), one) for one in volumes if (values := one.said(rule.keyword))]
    known = [(number, volume) for number, volume in numbered if number is not None]
    if not known or len(known) < len(volumes):
        return []
    wanted = _picked([number for number, _ in known], rule.pick)
    return [volume for number, volume in known if number == wanted]


def _picked(numbers: Sequence[float], pick: Pick | float) -> float:
    match pick:
        case Pick.MAX | Pick.LAST:
            return max(numbers)
        case Pick.MIN | Pick.FIRST:
            return min(numbers)
        case _:
            return float(pick)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
