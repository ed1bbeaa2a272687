"""Series as channels of one input: what a person says of them, and what a person is told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli import console
from medseg.errors import InputError, UsageError

if TYPE_CHECKING:
    from medseg.bundle.bundle import Bundle
    from medseg.bundle.matching import Choice
    from medseg.dicom.series import Series, Stack
    from medseg.job.plan import Job

HELP = "For a bundle of several series: which one is a channel, by UID or path; #2 for its second volume. Repeatable."


@dataclass(frozen=True)
class GivenChannel:
    """NAME=UID or NAME=PATH, and #N for one of its volumes."""

    name: str
    what: str
    volume: int | None

    @property
    def path(self) -> Path | None:
        return Path(self.what) if Path(self.what).exists() else None


def read_given(texts: Sequence[str], bundle: Bundle | None) -> dict[str, GivenChannel]:
    """What `--channel` was given, by name. Raises UsageError."""
    if not texts:
        return {}
    if bundle is None or bundle.channels is None:
        said = f"bundle {bundle.name} has one" if bundle else "name it with --bundle"
        raise UsageError(f"--channel goes with a bundle of several channels: {said}")
    given: dict[str, GivenChannel] = {}
    for text in texts:
        name, _, what = text.partition("=")
        name = next((one for one in bundle.channels.names if one.casefold() == name.strip().casefold()), name.strip())
        if name not in bundle.channels.names or not what.strip():
            known = ", ".join(bundle.channels.names)
            raise UsageError(f"--channel {text!r}: expected NAME=UID or NAME=PATH, NAME one of {known}")
        if name in given:
            raise UsageError(f"--channel {name} is named twice: {given[name].what} and {what}")
        numbered = re.fullmatch(r"(.+)#(\d+)", what.strip())
        given[name] = GivenChannel(name, *((numbered[1], int(numbered[2])) if numbered else (what.strip(), None)))
    return given


def files_of(given: Mapping[str, GivenChannel]) -> dict[str, Path]:
    """Channels of an input that is NIfTI. Raises UsageError, InputError."""
    files = {}
    for one in given.values():
        if one.volume is not None:
            raise UsageError(f"--channel {one.name}: a volume's number is for a series, not for a file")
        files[one.name] = Path(one.what)
    return files


def only_path(given: Mapping[str, GivenChannel], bundle: Bundle | None) -> list[Path]:
    """The input, where none is given but its channels are: the reference's file. Raises UsageError."""
    if bundle is None or bundle.channels is None or bundle.channels.reference not in given:
        raise UsageError("expected a PATH: a file, folder, zip, DICOMDIR or NIfTI")
    return [Path(given[bundle.channels.reference].what)]


def named_volumes(
    given: Mapping[str, GivenChannel], series: Sequence[Series], *, assume_frame_of_reference: bool
) -> dict[str, Sequence[Stack]]:
    """The volumes of each series that was named, of a study or in a path of its own. Raises UsageError, InputError."""
    from medseg.dicom.geometry import classify
    from medseg.errors import GeometryRefused
    from medseg.job.channels import volumes_of

    named: dict[str, Sequence[Stack]] = {}
    for one in given.values():
        found = _series(one, series)
        stacks, _ = volumes_of(found, assume_frame_of_reference=assume_frame_of_reference)
        if not stacks:
            refusal = classify(found, assume_frame_of_reference=assume_frame_of_reference).refusals[0]
            raise GeometryRefused(found.series_uid, refusal.reason, refusal.detail)
        if one.volume is not None and not 1 <= one.volume <= len(stacks):
            raise UsageError(f"--channel {one.name}: series {found.series_uid} has {len(stacks)} volumes")
        named[one.name] = stacks if one.volume is None else stacks[one.volume - 1 : one.volume]
    return named


def _series(one: GivenChannel, series: Sequence[Series]) -> Series:
    from medseg.dicom.sources import read_series

    path = one.path
    found = [some for some in series if some.series_uid == one.what] if path is None else read_series(path)
    if not found:
        raise InputError(f"channel {one.name}: no series {one.what} in the input, and no such path")
    if len(found) > 1:
        raise InputError(f"channel {one.name}: {one.what}: {len(found)} series, expected one: name its UID")
    return found[0]


def tell_channels(job: Job) -> None:
    """One line for each channel of a job."""
    for channel in job.stack.channels:
        stack = channel.stack
        if stack is None:
            console.say(f"channel {channel.name}: no series, zeros")
            continue
        number = "" if stack.series.number is None else f" {stack.series.number}"
        phase = f", {stack.phase}" if stack.phase else ""
        uid = f" ({stack.series.series_uid}{phase})" if stack.series.series_uid else ""
        what = f'series{number} "{stack.series.description.strip()}"' if uid else "a file"
        how = "on its own grid" if channel.matrix is None else f"resampled, covers {100 * channel.overlap:.2f} %"
        console.say(f"channel {channel.name}: {what}{uid}, {how}")


def choice_record(study_uid: str, bundle: Bundle, choices: Sequence[Choice]) -> dict[str, Any]:
    """What was found for each channel, as JSON."""
    return {
        "study_uid": study_uid,
        "bundle": bundle.name,
        "channels": [
            {
                "name": choice.channel.name,
                "expected": choice.channel.wanted,
                "optional": choice.channel.optional,
                "series_uid": choice.chosen.series_uid if choice.chosen else None,
                "phase": choice.chosen.phase if choice.chosen else None,
                "why": choice.why,
                "series": [
                    {
                        "series_uid": one.series_uid,
                        "number": one.number,
                        "volume": one.place,
                        "phase": one.phase,
                        "fits": judged.alternative is not None,
                        "why": judged.why,
                    }
                    for one, judged in choice.judged
                ],
            }
            for choice in choices
        ],
    }


def show_choices(bundle: Bundle, choices: Sequence[Choice]) -> None:
    """What was found for each channel, for a person."""
    console.show(f"bundle {bundle.name}:")
    for choice in choices:
        if choice.chosen is not None:
            found = f"{choice.chosen.called} ({choice.chosen.series_uid}): {choice.why}"
        elif choice.tied:
            found = f"{len(choice.tied)} series fit alike: {choice.why or 'name one with --channel'}"
        else:
            found = "no series fits" + (", zeros" if choice.channel.optional else "")
        console.show(f"  channel {choice.channel.name}: {found}")
        console.show(f"    expected {choice.channel.wanted}")
        for one, judged in choice.judged:
            if choice.chosen is not one:
                fits = "fits" if judged.alternative is not None else "not"
                console.show(f"    {fits} {one.called}: {judged.why}")
