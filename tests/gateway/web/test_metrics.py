"""Metrics: what Prometheus reads, with labels that are few."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from gateway import heartbeat
from gateway.web import server
from tests.gateway.phantoms import phantom
from tests.gateway.test_stages import pass_through
from tests.gateway.web.served import Served, served


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as one:
        yield one


def values(families: list[Metric]) -> dict[str, float]:
    """By name and labels, as Prometheus shows them."""
    return {
        one.name + "".join(f"[{label}]" for _, label in sorted(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }


def scrape(site: Served) -> dict[str, float]:
    answer = site.get("/metrics")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain")
    return values(list(text_string_to_metric_families(answer.body)))


def test_an_empty_gateway_has_its_metrics_already(site: Served) -> None:
    found = scrape(site)
    assert found["medseg_last_image_to_seg_seconds_count"] == found["medseg_stage_seconds_count[confirm]"] == 0
    assert found["medseg_jobs[queued]"] == found["medseg_dead_letters"] == 0
    assert found["medseg_oldest_waiting_seconds[job]"] == 0
    assert found["medseg_process_up[worker]"] == 1


def test_what_is_there_is_counted(site: Served) -> None:
    site.box.ledger.write(pass_through)
    peer = site.box.open()
    site.box.store(peer, phantom(slices=3))
    (site.box.folder / heartbeat.FOLDER / "worker").write_text(f'{{"pid": {os.getpid()}}}')
    site.beat("director", age_s=60)
    found = scrape(site)
    assert found["medseg_instances_received_total[new]"] == 6
    assert found["medseg_series[complete]"] == found["medseg_series[arriving]"] == 1
    assert found["medseg_jobs[done]"] == 1 and found["medseg_deliveries[pacs][confirmed]"] == 2
    assert found["medseg_associations_open"] == 1
    files = sum(file.stat().st_size for file in site.box.spool.studies.rglob("*.dcm"))
    assert found["medseg_spool_bytes"] == files + 3 * (300 + 10) + 2 * 10  # and what the rows of `pass_through` say
    assert found["medseg_disk_free_bytes"] > 0
    assert (found["medseg_process_up[director]"], found["medseg_process_up[worker]"]) == (0, 1)
    assert found["medseg_process_resident_bytes[worker]"] > 1e6 and found["medseg_process_open_fds[worker]"] > 3


def test_no_label_has_a_uid(site: Served) -> None:
    site.box.ledger.write(pass_through)
    site.box.send(series := phantom(slices=3))
    body = site.get("/metrics").body
    for uid in (series[0].StudyInstanceUID, series[0].SeriesInstanceUID, series[0].SOPInstanceUID, '"1.2"', '"1.3"'):
        assert uid not in body


def test_openmetrics_is_given_to_who_asks_for_it(site: Served) -> None:
    site.box.ledger.write(pass_through)
    answer = site.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    theirs = values(list(openmetrics.text_string_to_metric_families(answer.body)))
    ours = scrape(site)
    assert theirs.keys() == ours.keys()
    assert theirs["medseg_last_image_to_seg_seconds_bucket[30.0]"] == 1


def test_a_port_that_is_taken_is_an_error_and_free_again_after_a_stop(tmp_path: Path) -> None:
    with served(tmp_path) as site, pytest.raises(OSError, match="in use"):
        server.run(site.live, threading.Event())
    with socket.create_server(("127.0.0.1", site.port)):
        pass


def test_the_document_names_every_metric_and_no_other(site: Served) -> None:
    document = Path(__file__).parents[3] / "docs" / "monitoring.md"
    cells = [line.split("|")[1] for line in document.read_text("utf-8").splitlines() if line.startswith("| `medseg_")]
    families = text_string_to_metric_families(site.get("/metrics").body)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == {family.name for family in families}
