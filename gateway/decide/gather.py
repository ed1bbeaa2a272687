"""What a study comes to for a bundle of several channels: its series as channels, or what is missing.

    complete series ──Look──> channels, all of them ─────────────────────────> a job, at once
                              an optional one is absent, and may yet come ───> waits, until `channels_within_s` is over
                              one is missing, or cannot be looked at so ─────> waits; then held, with the sentence
                              nothing fits any, or the bundle fits nothing ──> waits; then passed over

Nothing is decided because it was quiet: series come to complete, the rule's time passes, or a sender says that the
study is whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.ledger.study_jobs import NewChannel
from gateway.settings.model import ChannelWords, Rule
from medseg.bundle.bundle import Bundle
from medseg.bundle.channels import with_words
from medseg.bundle.matching import ChannelCandidate, Choice
from medseg.dicom.series import Series, Stack
from medseg.errors import ChannelRefused, ChannelsMissing, DoesNotFit, InputError, MedsegError
from medseg.job.channels import Named, Study, explain, stack_of_channels, study_of, volumes_of


@dataclass(frozen=True)
class Said:
    """What a person said of the channels of a study.

    channels: the series of some, by name: "UID", or "UID#2". assume_registered: they lie to each other as they say.
    rule: by which it is done, whatever its conditions; None where rules are asked. anew: it is done again, though
    nothing else came.
    """

    channels: Mapping[str, str] = field(default_factory=dict)
    assume_registered: bool = False
    rule: str | None = None
    anew: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Said:
        return cls(**record)


@dataclass(frozen=True, eq=False)
class Look:
    """What was found in a study.

    channels: as far as there are series for them. missing: why they make no job; None where they do. absent: optional
    channels for which there is none. no_channel: why each other series is none, by its UID. fits: whether any series
    fits any channel, and the bundle what they show. choices: what was found for each channel, and why. unfit: series
    that fit no channel whatever else comes.
    """

    channels: tuple[NewChannel, ...]
    missing: MedsegError | None
    absent: tuple[str, ...]
    no_channel: Mapping[str, str]
    fits: bool
    choices: tuple[Choice, ...] = ()
    unfit: frozenset[str] = frozenset()


class NotThere(InputError):
    """A series that a person named as a channel is not here, or more of it may come."""

    code = "channel_not_there"

    def __init__(self, study_uid: str, name: str, what: str) -> None:
        super().__init__(f"study {study_uid}: channel {name}: {what} is no series of it that is complete")


def with_site_words(bundle: Bundle, words: Mapping[str, Mapping[str, ChannelWords]]) -> Bundle:
    """A bundle whose channels are also known by what the settings say."""
    own = {name: one.also for name, one in words.get(bundle.name, {}).items()}
    return replace(bundle, channels=with_words(bundle.channels, own)) if bundle.channels is not None else bundle


def look(
    study_uid: str, series: Sequence[Series], revisions: Mapping[str, int], bundle: Bundle, rule: Rule, said: Said
) -> Look:
    """series: those of a study that may be channels. revisions: of each, by UID."""
    study = study_of(series, assume_frame_of_reference=rule.assume_frame_of_reference)
    study = replace(study, uid=study_uid)
    try:
        given = _given(study, series, said, rule)
    except NotThere as error:
        return Look((), error, (), {}, fits=True)
    choices = explain(study, bundle, given)
    missing, fits = _wrong(study, bundle, given, said)
    return Look(
        tuple(_channel(one, one.chosen, revisions) for one in choices if one.chosen is not None),
        missing,
        tuple(one.channel.name for one in choices if one.chosen is None),
        _no_channel(study, bundle, choices),
        fits and any(one.chosen or one.tied for one in choices),
        choices,
        _unfit(series, choices),
    )


def _unfit(series: Sequence[Series], choices: Sequence[Choice]) -> frozenset[str]:
    judged = [one for choice in choices for one in choice.judged]
    fitting = {volume.series_uid for volume, one in judged if one.alternative is not None}
    named = {one.chosen.series_uid for one in choices if one.chosen is not None}
    return frozenset(one.series_uid for one in series) - fitting - named


def _wrong(study: Study, bundle: Bundle, given: Named, said: Said) -> tuple[MedsegError | None, bool]:
    """Why the channels of a study cannot be looked at together, and whether the bundle fits it."""
    try:
        stack_of_channels(study, bundle, given, assume_registered=said.assume_registered)
    except DoesNotFit as error:
        return error, False
    except (ChannelsMissing, ChannelRefused) as error:
        return error, True
    return None, True


def _given(study: Study, series: Sequence[Series], said: Said, rule: Rule) -> dict[str, Sequence[Stack]]:
    """The volumes of the series that a person named. Raises NotThere."""
    by_uid = {one.series_uid: one for one in series}
    given: dict[str, Sequence[Stack]] = {}
    for name, what in said.channels.items():
        uid, _, number = what.partition("#")
        stacks: Sequence[Stack] = ()
        if uid in by_uid:
            stacks, _ = volumes_of(by_uid[uid], assume_frame_of_reference=rule.assume_frame_of_reference)
        if re.fullmatch(r"\d+", number):
            stacks = stacks[int(number) - 1 : int(number)]
        if not stacks:
            raise NotThere(study.uid, name, what)
        given[name] = stacks
    return given


def _channel(choice: Choice, chosen: ChannelCandidate, revisions: Mapping[str, int]) -> NewChannel:
    return NewChannel(choice.channel.name, chosen.series_uid, revisions[chosen.series_uid], chosen.place)


def _no_channel(study: Study, bundle: Bundle, choices: Sequence[Choice]) -> dict[str, str]:
    """Why each series that is no channel is none."""
    taken = {one.chosen.series_uid for one in choices if one.chosen is not None}
    reasons: dict[str, str] = {series.series_uid: f"it forms no volume: {why}" for series, why in study.without}
    for volume in study.volumes:
        if volume.series_uid not in taken | reasons.keys():
            told = [f"{one.channel.name}: {why}" for one in choices if (why := _why(one, volume))]
            reasons[volume.series_uid] = "; ".join(told)
    return {uid: f"no channel of bundle {bundle.name}: {why}" for uid, why in reasons.items()}


def _why(choice: Choice, volume: ChannelCandidate) -> str:
    """Why a volume is not chosen for a channel."""
    judged = next((one for candidate, one in choice.judged if candidate is volume), None)
    if judged is None:
        return ""
    if judged.alternative is None:
        return judged.why
    return "it fits as others do" if choice.chosen is None else f"it fits, and {choice.chosen.called} goes before it"
