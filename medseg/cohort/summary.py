"""What `results.csv` and `failures.csv` say, gathered for a page: in memory that grows by some bytes a row."""

from __future__ import annotations

import csv
import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Final

#: A volume this many robust standard deviations from the median lies apart (Iglewicz and Hoaglin, 1993).
APART: Final = 3.5
_FEWEST: Final = 8  # volumes of which outliers can be told
_MAD, _MEAN_DEVIATION = 1.4826, 1.2533  # to standard deviations of a normal distribution


@dataclass(frozen=True)
class SegmentKey:
    """A segment of a bundle."""

    bundle: str
    number: int
    label: str


@dataclass(frozen=True)
class Spread:
    """How a segment's volumes lie. deviation: robust standard deviation, 0 where outliers cannot be told."""

    count: int
    least: float
    quartiles: tuple[float, float, float]
    most: float
    deviation: float
    not_found: int

    def score(self, volume: float) -> float:
        """How many deviations a volume is from the median, with its sign."""
        return (volume - self.quartiles[1]) / self.deviation if self.deviation else 0.0


@dataclass
class Volumes:
    """Every volume of a segment, and of which result it is."""

    ml: array[float] = field(default_factory=lambda: array("d"))
    result: array[int] = field(default_factory=lambda: array("L"))

    def spread(self) -> Spread:
        values = sorted(self.ml)
        median = statistics.median(values)
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [median] * 3
        away = [abs(value - median) for value in values]
        deviation = _MAD * statistics.median(away) or _MEAN_DEVIATION * statistics.fmean(away)
        return Spread(
            len(values),
            values[0],
            (quartiles[0], median, quartiles[2]),
            values[-1],
            deviation if len(values) >= _FEWEST else 0.0,
            values.count(0.0),
        )


@dataclass(frozen=True)
class TabledResult:
    """A result: one item, series and bundle. confidence: the least of its segments'."""

    item: str
    folder: str
    bundle: str
    patient: str
    day: int | None
    flags: tuple[str, ...]
    confidence: float | None


@dataclass
class CohortSummary:
    """A cohort's tables. failures: how many rows by kind and code, and an example of each."""

    results: list[TabledResult] = field(default_factory=list)
    volumes: dict[SegmentKey, Volumes] = field(default_factory=lambda: defaultdict(Volumes))
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    example: dict[tuple[str, str], str] = field(default_factory=dict)
    failed_items: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Course:
    """A segment of a patient over time: days since the first, and volumes.

    name: of the results' folders, where there are several on one day, as of both sides; those of one name are a course.
    """

    patient: str
    segment: SegmentKey
    name: str
    days: tuple[int, ...]
    ml: tuple[float, ...]

    @property
    def change(self) -> float | None:
        """The last volume by the first, less 1; None where nothing was found at first."""
        return self.ml[-1] / self.ml[0] - 1.0 if self.ml[0] else None


def read_summary(results: Path, failures: Path) -> CohortSummary:
    """Both tables of a cohort. Raises OSError."""
    summary = CohortSummary()
    for _, rows in groupby(_rows(results), key=lambda row: (row["item"], row["folder"])):
        segments = list(rows)
        for row in segments:
            volumes = summary.volumes[SegmentKey(row["bundle"], int(row["segment"]), row["label"])]
            volumes.ml.append(float(row["volume_ml"]))
            volumes.result.append(len(summary.results))
        summary.results.append(_result(segments))
    for row in _rows(failures):
        reason = row["kind"], row["code"]
        summary.failures[reason] += 1
        summary.example.setdefault(reason, row["message"])
        summary.failed_items.add(row["item"])
    return summary


def _result(segments: Sequence[Mapping[str, str]]) -> TabledResult:
    first = segments[0]
    return TabledResult(
        first["item"],
        first["folder"],
        first["bundle"],
        first["patient"],
        int(first["day"]) if first["day"] else None,
        tuple(dict.fromkeys(flag for row in segments for flag in row["flags"].split(";") if flag)),
        min((float(row["confidence"]) for row in segments if row["confidence"]), default=None),
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def scores(summary: CohortSummary, spreads: Mapping[SegmentKey, Spread]) -> array[float]:
    """Of each result, how far it is from the others: the most of its segments'."""
    furthest = array("d", [0.0]) * len(summary.results)
    for segment, volumes in summary.volumes.items():
        for ml, number in zip(volumes.ml, volumes.result, strict=True):
            furthest[number] = max(furthest[number], abs(spreads[segment].score(ml)))
    return furthest


def _by_name(volumes: Sequence[tuple[int, str, float]]) -> dict[str, dict[int, float]]:
    """Volumes of a patient (day, folder's name, ml), by day; by name, too, where a day has several."""
    several = len({day for day, _, _ in volumes}) < len(volumes)
    names: dict[str, dict[int, float]] = defaultdict(dict)
    for day, name, ml in volumes:
        names[name if several else ""].setdefault(day, ml)
    return names


def courses(summary: CohortSummary) -> list[Course]:
    """Segments of patients with results of several days, those that change most first."""
    every = []
    for segment, volumes in summary.volumes.items():
        of_patient: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
        for ml, number in zip(volumes.ml, volumes.result, strict=True):
            result = summary.results[number]
            if result.patient and result.day is not None:
                of_patient[result.patient].append((result.day, PurePosixPath(result.folder).name, ml))
        for patient, volumes_of in of_patient.items():
            for name, by_day in _by_name(volumes_of).items():
                if len(by_day) > 1:
                    days = sorted(by_day)
                    since = tuple(day - days[0] for day in days)
                    every.append(Course(patient, segment, name, since, tuple(by_day[day] for day in days)))
    return sorted(every, key=lambda one: 1.0 if one.change is None else -abs(one.change))
