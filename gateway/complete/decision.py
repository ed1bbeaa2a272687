"""When a series is complete, as a function of what was observed (`gateway.complete.arrivals`) and of the clock.

        first instance        last instance                     decided        late instance
             |  . .  . . . .        |                             |                 |
             |<--- the sender says that this was all ------------>|                 |     at once
             |                      |<-- quiet_s, _gap, _open, -->|                 |     else
             |                      |    _abort                   |                 |
             |<------------------------- cap_s ------------------------->|          |     at the latest
                                                                  |<---- late_s --->|     then: next generation

After an image that came late, quiet_s is not enough for that series any more: it doubles with every such image, and is
twice the longest pause that was seen, up to quiet_late_s. The next series of a sender that sends each image over an
association of its own waits so from the start. Where somebody says that this was all, nothing of this is waited for.

Slices at even distances prove nothing (every prefix of a series is even), so geometry only chooses among the quiet
times. Who counts or lists the instances can prove a series complete, and while more is counted or listed than has
come, no silence does. The end of a STOW request says that this was all where no other request follows it at once, and
nothing came late before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from gateway.complete.arrivals import WHOLE_STUDY, Arrivals, ArrivingSeries, ArrivingStudy, CommitmentList
from gateway.complete.events import Image
from gateway.settings.model import Completion as Settings
from medseg.dicom.spacing import same_mm

#: How long nothing may come after a STOW request: clients that send a series in several send the next at once (Orthanc
#: without chunked transfers: ten instances in each), and one that is complete with the first would be a part of itself.
REQUEST_S = 1.0
#: A step this many times the smallest one leaves room for a slice.
GAP = 1.5


class CompletionReason(StrEnum):
    """Why a series is complete: because somebody said so, or because nothing came for a quiet time."""

    REQUEST_ENDED = "STOW request ended"
    COMMITMENT = "storage commitment list"
    ACQUISITION = "ImagesInAcquisition"
    COUNT = "count"
    QUIET = "quiet"
    QUIET_GAP = "quiet, with a slice missing"
    QUIET_OPEN = "quiet, with an association open"
    QUIET_ABORT = "quiet after an abort"


@dataclass(frozen=True)
class Waiting:
    """Not complete. until_s: without an event, nothing changes before."""

    until_s: float
    why: str


@dataclass(frozen=True)
class Complete:
    reason: CompletionReason


@dataclass(frozen=True)
class CapReached:
    """Not known to be complete after `cap_s`; the rule says what then.

    until_s: where it is held, silence up to then makes it complete all the same; None while more is known to come.
    """

    why: str
    until_s: float | None = None


@dataclass(frozen=True)
class Settled:
    """Nothing to decide: what has come was decided upon, or came later than `late_s` after that."""


Decision: TypeAlias = Waiting | Complete | CapReached | Settled


def decide(arrivals: Arrivals, study_uid: str, series_uid: str | None, now_s: float, settings: Settings) -> Decision:
    """Whether a series is complete; or, with series_uid None, all of a study, for rules that choose among its series.

    Raises KeyError for a study or series that was not observed.
    """
    study = arrivals.studies[study_uid]
    parts = list(study.series.values()) if series_uid is None else [study.series[series_uid]]
    undecided = [part for part in parts if part.undecided and not _too_late(part, settings)]
    if not undecided:
        return Settled()
    cap_s = min(part.opened_s for part in undecided) + settings.cap_s
    denial = next(_denials(study, series_uid), None)
    if denial is not None:
        return CapReached(denial) if now_s >= cap_s else Waiting(cap_s, denial)
    proof = next(_proofs(study, series_uid, parts, undecided), None)
    if proof is not None:
        return Complete(proof)
    due_s, reason = _quiet(arrivals, undecided, now_s, settings)
    if now_s >= due_s:
        return Complete(reason)
    return CapReached(reason.value, due_s) if now_s >= cap_s else Waiting(min(due_s, cap_s), reason.value)


def known_whole(arrivals: Arrivals, study_uid: str) -> bool:
    """Whether somebody says that what is here of a study is all of it: its number, or a list of several series, since
    some modalities list each series by itself. A silence proves nothing.
    """
    study = arrivals.studies[study_uid]
    parts = list(study.series.values())
    if any(_denials(study, None)):
        return False
    listed = len(parts) > 1 and any(_covers(one, parts, parts, carried=False) for one in study.lists)
    return listed or _agreed(study, WHOLE_STUDY)


# `parts` are the series that are to be complete together, `undecided` those of them with something new.


def _too_late(series: ArrivingSeries, settings: Settings) -> bool:
    return series.decided_s is not None and series.opened_s - series.decided_s > settings.late_s


def _denials(study: ArrivingStudy, series_uid: str | None) -> Iterator[str]:
    """Who says that more is to come. Of a study: who says so of it, or of any of its series."""
    for of, by_source in study.counts.items():
        if series_uid in (None, of):
            for source, count in by_source.items():
                if count.value > _number(study, of):
                    yield f"{source} counts {count.value} instances, {_number(study, of)} are here"
    parts = study.series.values() if series_uid is None else [study.series[series_uid]]
    for one in study.lists:
        if one.missing and any(not one.uids.isdisjoint(part.images) for part in parts):
            yield f"a storage commitment list names {len(one.missing)} instances that have not come"


def _proofs(
    study: ArrivingStudy, series_uid: str | None, parts: list[ArrivingSeries], undecided: list[ArrivingSeries]
) -> Iterator[CompletionReason]:
    """Who says that this was all; of a study, nothing that only speaks of one of its series."""
    carried = any(part.carriers for part in undecided)
    if any(_covers(one, parts, undecided, carried) for one in study.lists):
        yield CompletionReason.COMMITMENT
    if any(part.corrected for part in undecided):
        return  # the number was right before the first correction came, too
    if series_uid is not None and _acquired(parts[0].images):
        yield CompletionReason.ACQUISITION
    if _agreed(study, WHOLE_STUDY) or (series_uid is not None and _agreed(study, series_uid)):
        yield CompletionReason.COUNT


def _covers(one: CommitmentList, parts: list[ArrivingSeries], undecided: list[ArrivingSeries], carried: bool) -> bool:
    """Whether a commitment list names all that is here, and all that it names is here.

    Some modalities ask for each instance as they go, so a list of one waits for the end of its association.
    """
    return (
        not one.missing
        and one.listed_s >= min(part.opened_s for part in undecided)
        and all(part.images.keys() <= one.uids for part in parts)
        and (len(one.uids) > 1 or not carried)
    )


def _agreed(study: ArrivingStudy, of: str) -> bool:
    """Whether a count that two answers agree on is reached."""
    return any(count.agreed and count.value == _number(study, of) for count in study.counts.get(of, {}).values())


def _number(study: ArrivingStudy, of: str) -> int:
    """How many instances are here of a series, or of the whole study (WHOLE_STUDY)."""
    return sum(len(series.images) for uid, series in study.series.items() if of in (WHOLE_STUDY, uid))


def _acquired(images: Mapping[str, Image]) -> bool:
    """Whether ImagesInAcquisition is reached in a series of one AcquisitionNumber."""
    first = next(iter(images.values()))
    return (
        first.images_in_acquisition == len(images)
        and first.acquisition is not None
        and all(
            (image.acquisition, image.images_in_acquisition) == (first.acquisition, first.images_in_acquisition)
            for image in images.values()
        )
    )


def _quiet(
    arrivals: Arrivals, undecided: list[ArrivingSeries], now_s: float, settings: Settings
) -> tuple[float, CompletionReason]:
    """When it will have been quiet for long enough, and which quiet that is; the longest that applies."""
    last_s = max(part.last_s for part in undecided)
    if all(part.request_ended and not part.carriers and not part.late for part in undecided):
        return last_s + min(REQUEST_S, settings.quiet_s), CompletionReason.REQUEST_ENDED
    senders = frozenset().union(*(part.senders for part in undecided))
    waits = [(max(_grown(arrivals, part, settings) for part in undecided), CompletionReason.QUIET)]
    if any(one.sender in senders for one in arrivals.associations.values()):
        waits.append((settings.quiet_open_s, CompletionReason.QUIET_OPEN))
    if any(part.aborted_s for part in undecided):
        waits.append((settings.quiet_abort_s, CompletionReason.QUIET_ABORT))
    wait_s, reason = max(waits, key=lambda wait: wait[0])
    # Slices are only looked at where it matters: not while they come, nor where a longer wait applies anyway.
    if (
        wait_s < settings.quiet_gap_s
        and now_s >= last_s + wait_s
        and any(lacks_slices(part.images.values()) for part in undecided)
    ):
        wait_s, reason = settings.quiet_gap_s, CompletionReason.QUIET_GAP
    return last_s + wait_s, reason


def _grown(arrivals: Arrivals, series: ArrivingSeries, settings: Settings) -> float:
    """quiet_s, grown by what was seen of this series and of its senders."""
    paces_s = [arrivals.paces_s.get(sender, 0.0) for sender in series.senders if series.one_each]
    wait_s = max(settings.quiet_s * 2.0 ** min(series.late, 64), 2.0 * max(series.pace_s, *paces_s, 0.0))
    return max(settings.quiet_s, min(wait_s, settings.quiet_late_s))


def lacks_slices(images: Collection[Image]) -> bool:
    """Whether a slice is known to be missing.

    That is: a step between positions leaves room for one; or positions hold unlike numbers of images (phases); or an
    acquisition has fewer images than ImagesInAcquisition says, which denies nothing, since some of them may have gone
    into other series.
    """
    acquired = Counter(image.acquisition for image in images)
    if any(acquired[image.acquisition] < (image.images_in_acquisition or 0) for image in images):
        return True
    stacks: dict[str, list[float]] = {}
    for image in images:
        if image.position_mm is not None:
            stacks.setdefault(image.stack, []).append(image.position_mm)
    return any(_uneven(sorted(positions)) for positions in stacks.values())


def _uneven(positions: list[float]) -> bool:
    """positions: mm, in order. The smallest step is the measure: where every second slice came first, most are wide.

    |  |  |  |      |  |     a gap          |     |     |  |  |     the others of an interleaved series are to come
    """
    steps, here = [], [1]
    same = same_mm(np.array(positions))
    for lower, upper in pairwise(positions):
        if upper - lower > same:
            steps.append(upper - lower)
            here.append(1)
        else:
            here[-1] += 1
    return bool(steps) and (max(steps) > GAP * min(steps) or len(set(here)) > 1)
