"""Which series of a study are the channels of a bundle, and whether they can be looked at together.

volumes of the study -> each channel's one volume (`bundle.matching`) -> SUV where it is PET
    -> of one patient, study and frame of reference -> covering -> the reference's stack, with all channels
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import fits
from medseg.bundle.channels import Channels, Registration
from medseg.bundle.matching import ChannelCandidate, Choice, choose, named
from medseg.bundle.seen import said_by_stack
from medseg.dicom import left_out as left
from medseg.dicom.geometry import classify
from medseg.dicom.headers import look
from medseg.dicom.instance import Pixels, Slice
from medseg.dicom.overlap import ASSUMED, between, coarser, coverage, same_grid
from medseg.dicom.series import ChannelImage, Finding, LeftOut, Level, Series, Stack
from medseg.dicom.suv import NoSuv, suv_factor
from medseg.errors import ChannelRefused, ChannelsMissing, DoesNotFit, UsageError

COARSE: Final = 3.0
_MANY: Final = 6  # series that a message lists

Named = Mapping[str, Sequence[Stack]]
"""Channels for which a person named a series: its volumes, or the one of them that was named."""


@dataclass(frozen=True, eq=False)
class Study:
    """The volumes of one study. without: series that give none, and why."""

    uid: str
    volumes: tuple[ChannelCandidate, ...]
    without: tuple[tuple[Series, str], ...] = ()


def study_of(series: Iterable[Series], *, assume_frame_of_reference: bool = False) -> Study:
    """All volumes of the series of one study."""
    volumes: list[ChannelCandidate] = []
    without: list[tuple[Series, str]] = []
    uid = ""
    for one in series:
        uid = one.study_uid
        stacks, why = volumes_of(one, assume_frame_of_reference=assume_frame_of_reference)
        volumes += candidates(stacks)
        if not stacks:
            without.append((one, why))
    return Study(uid, tuple(volumes), tuple(without))


def volumes_of(series: Series, *, assume_frame_of_reference: bool = False) -> tuple[tuple[Stack, ...], str]:
    """The volumes of a series, each told what is in none of them; and the first reason for that."""
    verdict = classify(series, assume_frame_of_reference=assume_frame_of_reference)
    around = (*left.of_refusals(verdict.refusals), *left.missing(series), *series.left_out)
    why = verdict.refusals[0].detail if verdict.refusals else ""
    return tuple(left.told(stack, around) for stack in verdict.stacks), why


def candidates(stacks: Sequence[Stack]) -> tuple[ChannelCandidate, ...]:
    """The volumes of one series as conditions see them."""
    return tuple(_candidate(stack, place) for place, stack in enumerate(stacks, 1))


def _candidate(stack: Stack, place: int) -> ChannelCandidate:
    series, says = stack.series, said_by_stack(stack)
    date, time = ("".join(says(keyword)) for keyword in ("SeriesDate", "SeriesTime"))
    return ChannelCandidate(
        stack=stack,
        series_uid=series.series_uid,
        number=series.number,
        description=series.description.strip(),
        modality=series.modality,
        place=place,
        phase=stack.phase,
        slices=len(stack.slices),
        thickness_mm=stack.spacing_mm[0],
        moment=f"{date} {time}" if date and time else "",
        says=says,
    )


def explain(study: Study, bundle: Bundle, given: Named | None = None) -> tuple[Choice, ...]:
    """For each channel of a bundle what is chosen of a study, and why. Raises UsageError for a channel it has not."""
    assert bundle.channels is not None
    given = given or {}
    for name in given:
        if name not in bundle.channels.names:
            raise UsageError(f"bundle {bundle.name} has no channel {name!r}: {', '.join(bundle.channels.names)}")
    taken = {_place(one) for stacks in given.values() for one in candidates(stacks)}
    free = [one for one in study.volumes if _place(one) not in taken]
    return tuple(
        named(channel, candidates(given[channel.name])) if channel.name in given else choose(channel, free)
        for channel in bundle.channels.each
    )


def _place(one: ChannelCandidate) -> tuple[str, str]:
    return one.series_uid, one.phase


def stack_of_channels(
    study: Study, bundle: Bundle, given: Named | None = None, *, assume_registered: bool = False
) -> Stack:
    """The reference channel's stack, with all channels.

    assume_registered: channels of other frames of reference lie where they say, because a person says so.
    Raises ChannelsMissing, ChannelRefused, DoesNotFit, UsageError.
    """
    channels = bundle.channels
    assert channels is not None
    chosen = _each(study, bundle, explain(study, bundle, given))
    stacks = {name: _in_suv(name, stack) for name, stack in chosen.items()}
    reference = stacks[channels.reference]
    reasons = fits(reference, replace(bundle, expects=replace(bundle.expects, modality=())), hints=False)
    if reasons:
        raise DoesNotFit(reference.series.series_uid, bundle.name, reasons)
    images: list[ChannelImage] = []
    findings, left_out = list(reference.findings), list(reference.left_out)
    for channel in channels.each:
        stack = stacks.get(channel.name)
        if stack is None:
            detail = f"channel {channel.name}: no series fits, the network was given zeros"
            findings.append(Finding("channel_absent", detail))
            images.append(ChannelImage(channel.name, None, overlap=0.0))
        elif stack is reference:
            images.append(ChannelImage(channel.name, stack))
        else:
            findings += _together(stack, channel.name, reference, channels, assume_registered=assume_registered)
            image = _placed(stack, channel.name, reference, channels)
            findings += (*_doubts(image, reference, channels.reference), *_of_its_own(stack, channel.name))
            left_out += [_told(one, channel.name) for one in stack.left_out if one not in reference.left_out]
            images.append(image)
    return replace(reference, channels=tuple(images), findings=tuple(findings), left_out=tuple(left_out))


def _each(study: Study, bundle: Bundle, choices: Sequence[Choice]) -> dict[str, Stack]:
    """The volume of each channel, once. Raises ChannelsMissing, ChannelRefused."""
    if any(one.chosen is None and (one.tied or not one.channel.optional) for one in choices):
        listed = [(one.channel.name, _series_uids(one), one.channel.wanted) for one in choices]
        raise ChannelsMissing(study.uid, bundle.name, "; ".join(_why_not(study, choices)), listed)
    taken: dict[tuple[str, str], str] = {}
    for choice in choices:
        if choice.chosen is None:
            continue
        name, modality = choice.channel.name, choice.chosen.modality.upper()
        expected = choice.channel.modality
        if expected and modality and modality not in expected:
            why = f"modality {modality}, expected {' or '.join(expected)}"
            raise ChannelRefused(choice.chosen.series_uid, name, "channel_does_not_fit", why)
        other = taken.setdefault(_place(choice.chosen), name)
        if other != name and choice.chosen.series_uid:
            why = f"it fits channel {other}, too: expected a series of its own for each"
            raise ChannelRefused(choice.chosen.series_uid, name, "channel_twice", why)
    return {choice.channel.name: choice.chosen.stack for choice in choices if choice.chosen is not None}


def _series_uids(choice: Choice) -> tuple[str, ...]:
    some = (choice.chosen,) if choice.chosen else choice.tied
    return tuple(dict.fromkeys(one.series_uid for one in some))


def _why_not(study: Study, choices: Sequence[Choice]) -> Iterable[str]:
    there = [f"{one.channel.name} ({one.chosen.called})" for one in choices if one.chosen]
    yield f"found {', '.join(there) or 'none'}"
    for one in choices:
        if one.tied:
            listed = ", ".join(candidate.called for candidate in one.tied[:_MANY])
            yield f"{len(one.tied)} fit {one.channel.name} ({listed})" + (f": {one.why}" if one.why else "")
        elif one.chosen is None and not one.channel.optional:
            yield f"nothing fits {one.channel.name} ({one.why or one.channel.wanted})"
    for series, why in study.without[:_MANY]:
        yield f"series {series.number} gave no volume ({why})"


def _in_suv(name: str, stack: Stack) -> Stack:
    """PET in g/ml, by body weight; other images as they are. Raises ChannelRefused, naming what is missing."""
    instances = {id(part.instance): part.instance for part in stack.slices if part.instance is not None}
    if stack.series.modality.upper() != "PT" or not instances:
        return stack
    try:
        factor = suv_factor([look(instance.header) for instance in instances.values()])
    except NoSuv as why:
        uid = stack.series.series_uid
        raise ChannelRefused(uid, name, "channel_not_suv", f"no SUV can be computed of this PET: {why}") from None
    if factor == 1.0:
        return stack
    return replace(stack, slices=tuple(replace(one, read=partial(_scaled, one, factor)) for one in stack.slices))


def _scaled(part: Slice, factor: float) -> Pixels:
    return part.read() * np.float32(factor)


def _together(
    stack: Stack, name: str, reference: Stack, channels: Channels, *, assume_registered: bool
) -> Iterable[Finding]:
    """Raises ChannelRefused where two volumes are not of one patient, study and frame of reference."""
    uid = stack.series.series_uid
    if _patient(stack) != _patient(reference):
        why = f"its PatientID is not that of channel {channels.reference}: expected one patient"
        raise ChannelRefused(uid, name, "channel_other_patient", why)
    studies = stack.series.study_uid, reference.series.study_uid
    if studies[0] != studies[1]:
        why = f"of study {studies[0]}, expected {studies[1]} as channel {channels.reference}"
        raise ChannelRefused(uid, name, "channel_other_study", why)
    frames = stack.frame_of_reference_uid, reference.frame_of_reference_uid
    if frames[0] == frames[1]:
        return
    why = f"frame of reference {frames[0]}, expected {frames[1]} as channel {channels.reference} has"
    if assume_registered:
        yield Finding(ASSUMED, f"channel {name}: {why}: taken as registered, as was asked for")
    elif channels.registration is Registration.DONE:
        yield Finding("registered_before", f"channel {name}: {why}: the bundle's are registered", Level.NOTE)
    else:
        raise ChannelRefused(uid, name, "channel_other_frame", f"{why}: how they lie to each other is not known")


def _patient(stack: Stack) -> str:
    first = stack.slices[0].instance
    return "" if first is None else look(first.header).text("PatientID")


def _placed(stack: Stack, name: str, reference: Stack, channels: Channels) -> ChannelImage:
    """Raises ChannelRefused where too little of the reference is covered."""
    if same_grid(reference, stack):
        return ChannelImage(name, stack)
    share = coverage(reference, stack)
    if share < channels.coverage:
        expected = f"expected {100 * channels.coverage:g} %"
        why = f"it covers {100 * share:.2f} % of the grid of channel {channels.reference}, {expected}"
        raise ChannelRefused(stack.series.series_uid, name, "channel_does_not_cover", why)
    return ChannelImage(name, stack, between(reference, stack), share)


def _doubts(image: ChannelImage, reference: Stack, its_name: str) -> Iterable[Finding]:
    assert image.stack is not None
    if image.overlap < 1.0:
        detail = f"channel {image.name} covers {100 * image.overlap:.2f} % of the grid of channel {its_name}"
        yield Finding("channel_covers_part", f"{detail}: elsewhere the network was given no image")
    times = coarser(reference, image.stack)
    if image.matrix is not None and times > COARSE:
        detail = f"channel {image.name} has voxels {times:.1f} times as far apart as channel {its_name}"
        yield Finding("channel_coarse", detail)


def _of_its_own(stack: Stack, name: str) -> Iterable[Finding]:
    """What is to be said of a channel's images."""
    for one in stack.findings:
        yield replace(one, detail=f"channel {name}: {one.detail}")


def _told(one: LeftOut, name: str) -> LeftOut:
    return replace(one, why=f"of channel {name}, {one.why}")
