"""Traffic to try the completion engine on: events made short, and the service's part played on a clock of our own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from gateway.complete.arrivals import Arrivals, observe
from gateway.complete.decision import CapReached, Complete, CompletionReason, Settled, Waiting, decide
from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    CountAnswered,
    Decided,
    Event,
    Image,
    InstanceArrived,
)
from gateway.settings.model import Completion as Settings

STUDY, SERIES = "1.2", "1.2.1"
DEFAULTS = Settings()
SPACING_MM = 2.0
Timed: TypeAlias = tuple[float, Event]


def image(k: int, *, digest: str = "", acquisition: str | None = None, declared: int | None = None) -> Image:
    """Slice k of an axial series."""
    return Image(digest or f"digest {k}", "axial", k * SPACING_MM, acquisition, declared)


def arrived(
    k: int, association: str = "a1", *, series: str = "1.2.1", sender: str = "CT01", what: Image | None = None
) -> InstanceArrived:
    return InstanceArrived(STUDY, series, f"{series}.{k}", what or image(k), sender, association)


def sent(
    slices: Iterable[int], *, start_s: float = 0.0, pace_s: float = 0.1, association: str = "a1", **more: str
) -> list[Timed]:
    """An association that opens, sends slices at a pace, and releases with the last one."""
    events: list[Timed] = [(start_s, AssociationOpened(association, more.get("sender", "CT01")))]
    for k in slices:
        start_s += pace_s
        events.append((start_s, arrived(k, association, **more)))
    return [*events, (start_s, AssociationReleased(association))]


def recorded(path: Path) -> list[Timed]:
    """A recording: [time, "opened" | "instance" | "released" | "aborted", association, series, instance, mm]."""
    events: list[Timed] = []
    for at_s, what, number, *instance in json.loads(path.read_text())["events"]:
        association = str(number)
        match what:
            case "opened":
                events.append((at_s, AssociationOpened(association, "CT01")))
            case "released":
                events.append((at_s, AssociationReleased(association)))
            case "aborted":
                events.append((at_s, AssociationAborted(association)))
            case "instance":
                series, uid, position_mm = instance
                one = Image(uid, "axial", position_mm)
                events.append((at_s, InstanceArrived(STUDY, series, uid, one, "CT01", association)))
    return events


@dataclass(frozen=True)
class Job:
    """A series taken: when, why, and what was there."""

    at_s: float
    series: str
    reason: CompletionReason | None
    uids: frozenset[str]
    generation: int


@dataclass
class Service:
    """Feeds the engine, asks it when it said to be asked, and takes what it says is complete; holds at the cap."""

    settings: Settings = field(default_factory=Settings)
    arrivals: Arrivals = field(default_factory=Arrivals)
    now_s: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    capped: dict[str, float] = field(default_factory=dict)

    def play(self, events: Sequence[Timed], until_s: float = 1e6) -> list[Job]:
        """Events in order of their times, and then silence."""
        for at_s, together in groupby(sorted(events, key=lambda timed: timed[0]), key=lambda timed: timed[0]):
            self._wait(at_s)
            for _, event in together:
                self.arrivals = observe(self.arrivals, event, at_s)
            self._ask()
        self._wait(until_s)
        return self.jobs

    def _wait(self, until_s: float) -> None:
        """Let time pass up to a moment, and be asked at that moment only after its events."""
        while (due_s := self._ask()) is not None and due_s < until_s:
            assert due_s > self.now_s, "told to ask again at once: the decision must change with time"
            self.now_s = due_s
        self.now_s = until_s

    def _ask(self) -> float | None:
        """Ask about every series; the earliest moment at which to ask again."""
        due_s = []
        for study_uid, study in self.arrivals.studies.items():
            for series_uid, series in study.series.items():
                match decide(self.arrivals, study_uid, series_uid, self.now_s, self.settings):
                    case Waiting(until_s):
                        due_s.append(until_s)
                    case CapReached(_, until_s):
                        self.capped.setdefault(series_uid, self.now_s)
                        if until_s is not None:
                            due_s.append(until_s)
                    case Complete(reason):
                        job = Job(self.now_s, series_uid, reason, frozenset(series.images), series.generation)
                        self.jobs.append(job)
                        self.arrivals = observe(self.arrivals, Decided(study_uid, series_uid), self.now_s)
                    case Settled():
                        pass
        return min(due_s, default=None)


def uids(numbers: Any, series: str = SERIES) -> frozenset[str]:
    return frozenset(f"{series}.{k}" for k in numbers)


def counted(count: int, series: str | None = SERIES, source: str = "pacs") -> CountAnswered:
    return CountAnswered(source, STUDY, series, count)


def played(events: list[Timed], **kwargs: Any) -> Service:
    service = Service(**kwargs)
    service.play(events)
    return service


def only(service: Service) -> tuple[float, CompletionReason | None, int]:
    """Time, reason and number of images of the one job there was."""
    (job,) = service.jobs
    assert job.generation == 1
    return job.at_s, job.reason, len(job.uids)


def acquired(k: int, acquisition: str | None, declared: int | None) -> InstanceArrived:
    return arrived(k, what=image(k, acquisition=acquisition, declared=declared))


def from_acquisitions(*slices: tuple[int, str | None, int | None]) -> list[Timed]:
    events: list[Timed] = [(0.0, AssociationOpened("a1", "CT01"))]
    events += [(0.1 * (n + 1), acquired(*one)) for n, one in enumerate(slices)]
    return [*events, (events[-1][0], AssociationReleased("a1"))]


def state_of(events: list[Timed]) -> Arrivals:
    arrivals = Arrivals()
    for at_s, event in sorted(events, key=lambda timed: timed[0]):
        arrivals = observe(arrivals, event, at_s)
    return arrivals
