"""What is arriving: events go in, the state after them comes out; the clock is an argument, and nothing is decided.

    observe(arrivals, event, now_s) -> arrivals          `gateway.complete.decision` decides on the state

Times are seconds of one monotonic clock. After a restart the events are made anew of what the ledger keeps
(`gateway.complete.observe`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    CountAnswered,
    Decided,
    Ended,
    Event,
    Image,
    InstanceArrived,
    InstancesListed,
    RequestEnded,
)

#: Two answers to a count agree when they are the same and at least this far apart.
AGREE_S = 2.0
#: A pause after which an image still belongs to the pace of its sender; a longer one is a sending of its own.
LONGEST_PACE_S = 60.0
#: Stands for all series of a study where a count is kept.
WHOLE_STUDY = ""


@dataclass(frozen=True)
class Association:
    sender: str
    opened_s: float


@dataclass(frozen=True)
class SourceCount:
    """The latest answer of one source. since_s: when it first gave this number."""

    value: int
    since_s: float
    agreed: bool = False


@dataclass(frozen=True)
class CommitmentList:
    """A commitment list. missing: the UIDs that have not come."""

    uids: frozenset[str]
    missing: frozenset[str]
    listed_s: float


@dataclass(frozen=True)
class ArrivingSeries:
    """What has come of a series.

    opened_s: when the first instance of this generation came. last_s: when an instance last came, or an association
        that had brought some ended; quiet times count from here.
    senders: who has brought instances. carriers: the open associations that have, with their senders.
    aborted_s: by sender, when such an association broke off, until its sender has come again and released.
    request_ended: a STOW request that brought instances has ended, and nothing came since.
    corrected: instances of this generation that replaced others.
    undecided: something has come that was not decided upon. decided_s: when the generation before was.
    late: how often something came after all that was here had been decided upon. pace_s: the longest pause before a new
        image that did, of those up to LONGEST_PACE_S.
    one_each: no association has brought more than one instance.
    """

    opened_s: float
    last_s: float
    images: Mapping[str, Image] = field(default_factory=dict)
    senders: frozenset[str] = frozenset()
    carriers: Mapping[str, str] = field(default_factory=dict)
    aborted_s: Mapping[str, float] = field(default_factory=dict)
    request_ended: bool = False
    corrected: frozenset[str] = frozenset()
    generation: int = 1
    undecided: bool = True
    decided_s: float | None = None
    late: int = 0
    pace_s: float = 0.0
    one_each: bool = True


@dataclass(frozen=True)
class ArrivingStudy:
    """The series of a study by UID, what is counted of it, and the commitment lists that touch it.

    counts: by series UID (WHOLE_STUDY for the study), then by source; also for series of which nothing has come.
    """

    series: Mapping[str, ArrivingSeries] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, SourceCount]] = field(default_factory=dict)
    lists: tuple[CommitmentList, ...] = ()


@dataclass(frozen=True)
class Arrivals:
    """Everything that is arriving: studies by UID, and the associations that are open.

    paces_s: by sender that sends each image over an association of its own: the longest pause, as of
        `ArrivingSeries.pace_s`. Learned from images that came late, and kept for as long as the process runs.
    """

    studies: Mapping[str, ArrivingStudy] = field(default_factory=dict)
    associations: Mapping[str, Association] = field(default_factory=dict)
    paces_s: Mapping[str, float] = field(default_factory=dict)


def observe(arrivals: Arrivals, event: Event, now_s: float) -> Arrivals:
    """The state after an event."""
    match event:
        case AssociationOpened(association, sender):
            return replace(arrivals, associations={**arrivals.associations, association: Association(sender, now_s)})
        case AssociationReleased() | AssociationAborted() | RequestEnded():
            return _ended(arrivals, event, now_s)
        case InstanceArrived():
            return _arrived(arrivals, event, now_s)
        case InstancesListed(uids):
            return _listed(arrivals, uids, now_s)
        case CountAnswered():
            return _counted(arrivals, event, now_s)
        case Decided(study_uid, series_uid):
            series = arrivals.studies[study_uid].series[series_uid]
            return _with_series(arrivals, study_uid, series_uid, replace(series, undecided=False, decided_s=now_s))


def forget(arrivals: Arrivals, study_uid: str) -> Arrivals:
    """The state without a study."""
    return replace(arrivals, studies={uid: study for uid, study in arrivals.studies.items() if uid != study_uid})


def _ended(arrivals: Arrivals, event: Ended, now_s: float) -> Arrivals:
    """An association is over: every series that it brought instances of is told how."""
    association = arrivals.associations.get(event.association)
    if association is None:
        return arrivals
    still_open = {name: one for name, one in arrivals.associations.items() if name != event.association}
    arrivals = replace(arrivals, associations=still_open)
    for study_uid, study in arrivals.studies.items():
        for series_uid, series in study.series.items():
            if event.association in series.carriers:
                ended = _without_carrier(series, event, association, now_s)
                arrivals = _with_series(arrivals, study_uid, series_uid, ended)
    return arrivals


def _without_carrier(series: ArrivingSeries, event: Ended, association: Association, now_s: float) -> ArrivingSeries:
    aborted_s = dict(series.aborted_s)
    if isinstance(event, AssociationAborted):
        aborted_s[association.sender] = now_s
    elif association.opened_s >= aborted_s.get(association.sender, math.inf):
        del aborted_s[association.sender]  # the sender came again after the abort, and got to its end
    return replace(
        series,
        carriers={name: sender for name, sender in series.carriers.items() if name != event.association},
        aborted_s=aborted_s,
        last_s=now_s,
        request_ended=series.request_ended or isinstance(event, RequestEnded),
    )


def _arrived(arrivals: Arrivals, event: InstanceArrived, now_s: float) -> Arrivals:
    study = arrivals.studies.get(event.study_uid, ArrivingStudy())
    series = study.series.get(event.series_uid) or ArrivingSeries(opened_s=now_s, last_s=now_s)
    known = series.images.get(event.sop_instance_uid)
    if not series.undecided:
        if known and known.digest == event.image.digest:
            return arrivals  # a repetition of what was decided upon
        arrivals, series = _late(arrivals, event, series, now_s)
    if known and known.digest != event.image.digest:
        series = replace(series, corrected=series.corrected | {event.sop_instance_uid})
    carriers, again = series.carriers, known is None and event.association in series.carriers
    if event.association in arrivals.associations:
        carriers = {**carriers, event.association: event.sender}
    series = replace(
        series,
        one_each=series.one_each and not again,
        images={**series.images, event.sop_instance_uid: event.image},
        senders=series.senders | {event.sender},
        carriers=carriers,
        last_s=now_s,
        request_ended=False,
    )
    changed = _with_series(arrivals, event.study_uid, event.series_uid, series)
    return _not_missing(changed, event.sop_instance_uid)


def _late(
    arrivals: Arrivals, event: InstanceArrived, series: ArrivingSeries, now_s: float
) -> tuple[Arrivals, ArrivingSeries]:
    """An instance came after the decision on all that was here: a new generation, and what its pause tells."""
    pause_s, corrects = now_s - series.last_s, event.sop_instance_uid in series.images
    pace_s = series.pace_s if corrects or pause_s > LONGEST_PACE_S else max(series.pace_s, pause_s)
    if series.one_each and not corrects:
        longest_s = max(arrivals.paces_s.get(event.sender, 0.0), pace_s)
        arrivals = replace(arrivals, paces_s={**arrivals.paces_s, event.sender: longest_s})
    series = replace(
        series,
        undecided=True,
        generation=series.generation + 1,
        opened_s=now_s,
        corrected=frozenset(),
        aborted_s={},
        late=series.late + 1,
        pace_s=pace_s,
    )
    return arrivals, series


def _listed(arrivals: Arrivals, uids: frozenset[str], now_s: float) -> Arrivals:
    """Each study of which an instance is listed keeps the list."""
    here = {
        study_uid: {uid for series in study.series.values() for uid in series.images}
        for study_uid, study in arrivals.studies.items()
    }
    new = CommitmentList(uids, uids.difference(*here.values()), now_s)
    studies = {
        study_uid: study if uids.isdisjoint(here[study_uid]) else replace(study, lists=(*study.lists, new))
        for study_uid, study in arrivals.studies.items()
    }
    return replace(arrivals, studies=studies)


def _not_missing(arrivals: Arrivals, uid: str) -> Arrivals:
    """Commitment lists need no longer wait for an instance, in whatever study it came."""
    touched = {
        name: replace(study, lists=tuple(replace(one, missing=one.missing - {uid}) for one in study.lists))
        for name, study in arrivals.studies.items()
        if any(uid in one.missing for one in study.lists)
    }
    return replace(arrivals, studies={**arrivals.studies, **touched}) if touched else arrivals


def _counted(arrivals: Arrivals, event: CountAnswered, now_s: float) -> Arrivals:
    study = arrivals.studies.get(event.study_uid, ArrivingStudy())
    of = event.series_uid or WHOLE_STUDY
    by_source = study.counts.get(of, {})
    before = by_source.get(event.source)
    if before is None or before.value != event.count:
        count = SourceCount(event.count, now_s)
    else:
        count = replace(before, agreed=now_s - before.since_s >= AGREE_S)
    study = replace(study, counts={**study.counts, of: {**by_source, event.source: count}})
    return replace(arrivals, studies={**arrivals.studies, event.study_uid: study})


def _with_series(arrivals: Arrivals, study_uid: str, series_uid: str, series: ArrivingSeries) -> Arrivals:
    study = arrivals.studies.get(study_uid, ArrivingStudy())
    study = replace(study, series={**study.series, series_uid: series})
    return replace(arrivals, studies={**arrivals.studies, study_uid: study})
