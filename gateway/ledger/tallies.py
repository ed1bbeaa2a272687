"""Tallies: what is counted, and how long its stages took, for good.

A tally grows in the transaction of the event that it counts, and lies in a table of its own. So it agrees with the
ledger whenever a process dies, and neither a restart nor the purge of a study makes it smaller.

    first image ──receive── last image ──wait_complete── complete ──queue── claimed ──infer── result
                                │                                             ──deliver── stored ──confirm── confirmed
                                └──────────────── last image to SEG ─────────────────────────┘

A latency is kept as Prometheus wants it: how many fell between two bounds, and their sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from sqlalchemy import Connection, select

from gateway.ledger.statements import UPSERT, Prepared
from gateway.ledger.tables import tally

Increment: TypeAlias = tuple[str, str, float]
"""Name and labels of a tally, and by how much it grows."""

BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0)


@dataclass(frozen=True)
class Count:
    """Something counted. labels: whose values are few, and come from this program and its settings alone."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def plus(self, value: float = 1.0, **labels: str) -> tuple[Increment, ...]:
        return ((self.name, _text(self.labels, tuple(labels[name] for name in self.labels)), value),)


@dataclass(frozen=True)
class Latency:
    """Durations in seconds. labels: as of `Count`. always: values of the labels that are shown before there are any."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    always: tuple[tuple[str, ...], ...] = ()

    def took(self, seconds: float, **labels: str) -> tuple[Increment, ...]:
        """A duration; one that a step of the clock made negative counts as none."""
        lasted = max(0.0, seconds)
        bound = next((bound for bound in BOUNDS_S if lasted <= bound), math.inf)
        values = tuple(labels[name] for name in self.labels)
        return (
            (f"{self.name}_bucket", _text((*self.labels, "le"), (*values, str(bound))), 1.0),
            (f"{self.name}_sum", _text(self.labels, values), lasted),
        )


INSTANCES = Count("medseg_instances_received", "Instances filed, by what filing them came to.", ("outcome",))
RECEIVED_BYTES = Count("medseg_received_bytes", "Bytes of the data sets filed.")
SERIES_COMPLETE = Count("medseg_series_completed", "Series taken as complete, by the signal that decided.", ("by",))
JOBS = Count("medseg_jobs_ended", "Jobs that came to an end, by state and error code.", ("state", "code"))
JOB_RETRIES = Count("medseg_job_retries", "Attempts of jobs that are followed by another, by error code.", ("code",))
DELIVERIES = Count("medseg_delivery_steps", "Objects at destinations: stored, confirmed, failed, dead.", ("step",))
EVENTS = Count("medseg_log_events", "What was logged, by event and level.", ("event", "level"))
PROBES = Count("medseg_readiness_probes", "Times that readiness was asked for; proves that the ledger can be written.")

LAST_IMAGE_TO_SEG = Latency(
    "medseg_last_image_to_seg_seconds",
    "From the last image of a series to its segmentation stored at a destination.",
    always=((),),
)
STAGE = Latency(
    "medseg_stage_seconds", "Stages of a series, from its first image to its confirmed result.", ("stage",),
    tuple((stage,) for stage in ("receive", "wait_complete", "queue", "infer", "deliver", "confirm")),
)  # fmt: skip
STEP = Latency("medseg_pipeline_step_seconds", "Steps of a segmentation, which overlap.", ("step",))

COUNTS = (INSTANCES, RECEIVED_BYTES, SERIES_COMPLETE, JOBS, JOB_RETRIES, DELIVERIES, EVENTS, PROBES)
LATENCIES = (LAST_IMAGE_TO_SEG, STAGE, STEP)


@dataclass(frozen=True)
class Observed:
    """The durations under one set of labels. counts: by upper bound (s), each up to that bound from the one before."""

    counts: Mapping[float, float]
    sum_s: float


def add(db: Connection, increments: Iterable[Increment]) -> None:
    """Let tallies grow."""
    _GROW.execute_all(db, [{"name": name, "labels": labels, "value": value} for name, labels, value in increments])


def counted(db: Connection, what: Count) -> dict[tuple[str, ...], float]:
    """A count, by the values of its labels."""
    tallied = db.execute(
        select(tally.c.labels, tally.c.value).where(tally.c.name == what.name).order_by(tally.c.labels)
    )
    return {tuple(json.loads(labels).values()): value for labels, value in tallied}


def observed(db: Connection, what: Latency) -> dict[tuple[str, ...], Observed]:
    """Durations, by the values of their labels."""
    buckets = counted(db, Count(f"{what.name}_bucket", what.help))
    sums = counted(db, Count(f"{what.name}_sum", what.help))
    return {
        values: Observed({float(key[-1]): n for key, n in buckets.items() if key[:-1] == values}, sum_s)
        for values, sum_s in sums.items()
    }


@lru_cache(maxsize=1024)
def _text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Labels as they stand in the ledger: JSON, in the order of their declaration."""
    return json.dumps(dict(zip(names, values, strict=True)))


def _growing(dialect: str) -> object:
    new = UPSERT[dialect](tally)
    return new.on_conflict_do_update(
        index_elements=[tally.c.name, tally.c.labels], set_={"value": tally.c.value + new.excluded.value}
    )


_GROW = Prepared(_growing, "name", "labels", "value")
