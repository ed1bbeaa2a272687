"""`/metrics`: what is there now as gauges, what happened as counters and histograms, as Prometheus reads them.

Counters and histograms are the ledger's tallies (`gateway.ledger.tallies`); gauges are looked up when they are asked
for. No label has a value from outside but names of the settings: no UID, and nothing of a patient, is ever one.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import heartbeat
from gateway.ledger import associations, patients, tallies
from gateway.ledger.states import DeliveryState
from gateway.ledger.tallies import BOUNDS_S, COUNTS, LATENCIES, Observed
from gateway.show import totals
from gateway.web.site import Site
from medseg import __version__


@dataclass(frozen=True)
class Scrape(Collector):
    """All metrics of a site at one moment."""

    site: Site

    def collect(self) -> Iterator[Metric]:
        with self.site.ledger.read() as db:
            yield from counters(db)
            yield from histograms(db)
            yield from gauges(db, time.time())
        yield from machine(self.site.spool)


def counters(db: Connection) -> Iterator[Metric]:
    for count in COUNTS:
        family = CounterMetricFamily(count.name, count.help, labels=count.labels)
        counted = tallies.counted(db, count)
        for values, number in (counted if counted or count.labels else {(): 0.0}).items():
            family.add_metric(values, number)
        yield family


def histograms(db: Connection) -> Iterator[Metric]:
    for latency in LATENCIES:
        family = HistogramMetricFamily(latency.name, latency.help, labels=latency.labels)
        nothing = dict.fromkeys(latency.always, Observed({}, 0.0))
        for values, observed in (nothing | tallies.observed(db, latency)).items():
            bounds = sorted({*BOUNDS_S, *observed.counts, math.inf})
            up_to = accumulate(observed.counts.get(bound, 0.0) for bound in bounds)
            buckets = [("+Inf" if math.isinf(bound) else str(bound), n) for bound, n in zip(bounds, up_to, strict=True)]
            family.add_metric(values, buckets, observed.sum_s)
        yield family


def gauges(db: Connection, now: float) -> Iterator[Metric]:
    """What the ledger has now. now: seconds since 1970."""
    by_state = totals.by_state(db)
    for kind in ("series", "job"):
        name = {"series": "medseg_series", "job": "medseg_jobs"}[kind]
        family = GaugeMetricFamily(name, f"How many there are, by state of the {kind}.", labels=("state",))
        for state, number in (dict.fromkeys(totals.STATES[kind], 0) | by_state[kind]).items():
            family.add_metric((state,), number)
        yield family
    family = GaugeMetricFamily("medseg_deliveries", "Deliveries, by destination.", labels=("destination", "state"))
    for (destination, state), number in totals.by_destination(db).items():
        family.add_metric((destination, state), number)
    yield family
    dead = by_state["delivery"].get(DeliveryState.DEAD, 0)
    yield GaugeMetricFamily("medseg_dead_letters", "Deliveries that only a person can set going again.", value=dead)
    stopped = len(patients.open_conflicts(db))
    yield GaugeMetricFamily("medseg_patient_conflicts", "Studies with images of two patients, stopped.", value=stopped)
    open_now = associations.open_by_caller(db).total()
    yield GaugeMetricFamily("medseg_associations_open", "Associations of senders that are open.", value=open_now)
    help_text = "How long the oldest series arrives, job waits for a worker, delivery for its destination."
    family = GaugeMetricFamily("medseg_oldest_waiting_seconds", help_text, labels=("kind",))
    for kind, since in totals.waiting_since(db).items():
        family.add_metric((kind,), 0.0 if since is None else max(0.0, now - since))
    yield family
    yield GaugeMetricFamily("medseg_spool_bytes", "Instances and results in the spool.", value=totals.spool_bytes(db))


def machine(spool: Path) -> Iterator[Metric]:
    """The spool's disk and the processes of the service."""
    usage = shutil.disk_usage(spool)
    yield GaugeMetricFamily("medseg_disk_free_bytes", "Free on the spool's disk.", value=usage.free)
    yield GaugeMetricFamily("medseg_disk_size_bytes", "Size of the spool's disk.", value=usage.total)
    up = GaugeMetricFamily("medseg_process_up", "Whether a process beats.", labels=("process",))
    memory = GaugeMetricFamily("medseg_process_resident_bytes", "Its memory.", labels=("process",))
    descriptors = GaugeMetricFamily("medseg_process_open_fds", "Its open descriptors.", labels=("process",))
    for beat in heartbeat.beats(spool):
        up.add_metric((beat.process,), beat.alive)
        if beat.alive:
            with suppress(OSError):  # it ended just now
                memory.add_metric((beat.process,), _resident_bytes(beat.pid))
                descriptors.add_metric((beat.process,), len(list(Path(f"/proc/{beat.pid}/fd").iterdir())))
    yield from (up, memory, descriptors)
    build = GaugeMetricFamily("medseg_build_info", "The version that runs.", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build


def _resident_bytes(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def routes(site: Site) -> list[Route]:
    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(Scrape(site)), media_type=content_type)

    return [Route("/metrics", metrics)]
