"""Which volume of a study is which channel, by a bundle's conditions: pure, and every answer has its reasons.

    holds       a condition holds, does not, or cannot be known, since the series does not say
    judge       a candidate against a channel: fits, and whether all is known; or why not
    choose      the candidates of a channel to the one that is meant, or several, or none

What is not known neither fits nor bars: a candidate fits where something holds and nothing is known to fail, and one
of which all is known goes before others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Final

from medseg.bundle.channels import Alternative, Between, Channel, Condition, Globs, PhaseRule, Pick, Presence
from medseg.dicom.series import Stack

#: What vendors, and enhanced objects, write in place of an attribute.
ALIASES: Final = {
    "DiffusionBValue": ("DiffusionBValue", "B_value", "Diffusion B-Factor", "GE b-value"),
    "EchoTime": ("EchoTime", "EffectiveEchoTime"),
    "InversionTime": ("InversionTime", "InversionTimes"),
}
_NOTHING: Final = frozenset({"NONE", "NO", "N"})  # as a value, says that there is nothing


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


def holds(condition: Condition, values: Sequence[str]) -> bool | None:
    """None where it cannot be known."""
    values = [value.strip() for value in values if value.strip()]
    if not values:
        return None
    match condition:
        case Globs(patterns, words):
            return any(_like(pattern, words).search(value) for pattern in patterns for value in values)
        case Between(least, most):
            numbers = [number for number in map(_number, values) if number is not None]
            inside = ((least is None or n >= least) and (most is None or n <= most) for n in numbers)
            return any(inside) if numbers else None
        case Presence():
            nothing = all(value.upper() in _NOTHING for value in values)
            return nothing is (condition is Presence.ABSENT)


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
    unknown: list[str] = []
    held: list[str] = []
    for keyword, condition in alternative.conditions:
        values = _values(candidate, keyword)
        answer = holds(condition, values)
        told = f"{keyword} {_listed(values)}"
        if answer is None:
            unknown.append(keyword)
        elif answer:
            held.append(told)
        else:
            return Judgement(None, f"{told}, expected {condition}")
    for keyword, condition in alternative.barred:
        values = _values(candidate, keyword)
        if holds(condition, values):
            return Judgement(None, f"{keyword} {_listed(values)}, expected none that is {condition}")
    note = f"{', '.join(unknown)} not known" if unknown else ""
    if alternative.conditions and not held:
        return Judgement(None, note)
    return Judgement(number, ", ".join(text for text in (*held, note) if text) or "fits", tuple(unknown))


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
        left = _preferred(left, channel.prefer)
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
    numbered = [(_number(values[0]), one) for one in volumes if (values := _values(one, rule.keyword))]
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


def _preferred(candidates: list[ChannelCandidate], prefer: Iterable[str]) -> list[ChannelCandidate]:
    """Those that each preference leaves, in turn; one that none of them meets is passed over."""
    for preference in prefer:
        if len(candidates) < 2:
            break
        if preference == "most_slices":
            best = max(one.slices for one in candidates)
            candidates = [one for one in candidates if one.slices == best]
        elif preference == "thinnest":
            thinnest = min(one.thickness_mm for one in candidates)
            candidates = [one for one in candidates if one.thickness_mm <= thinnest * 1.001]
        elif preference == "latest":
            latest = max(one.moment for one in candidates)
            candidates = [one for one in candidates if one.moment == latest and latest] or candidates
        else:
            keyword, _, value = preference.partition(":")
            met = [one for one in candidates if holds(Globs((value,)), _values(one, keyword))]
            candidates = met or candidates
    return candidates


def _values(candidate: ChannelCandidate, keyword: str) -> tuple[str, ...]:
    said = (candidate.says(name) for name in ALIASES.get(keyword, (keyword,)))
    return next((values for values in said if any(value.strip() for value in values)), ())


@lru_cache(maxsize=512)
def _like(pattern: str, words: bool) -> re.Pattern[str]:
    if words:
        return re.compile(rf"(?<![^\W_]){re.escape(pattern.strip())}(?![^\W_])", re.IGNORECASE)
    return re.compile(r"\A" + translate(pattern.strip()), re.IGNORECASE)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _listed(values: Sequence[str]) -> str:
    return "\\".join(values)[:80]
