"""Tallies: grown with what they count, never made smaller, and summed up as Prometheus itself would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from sqlalchemy import Connection

from gateway.keep.erase import erase
from gateway.ledger import deliveries, instances, jobs, results, series, tallies
from gateway.ledger.claims import Claim
from gateway.ledger.jobs import NewJob
from gateway.ledger.ledger import Ledger
from gateway.ledger.results import NewObject, NewResult
from gateway.ledger.tallies import (
    BOUNDS_S,
    DELIVERIES,
    INSTANCES,
    JOBS,
    LAST_IMAGE_TO_SEG,
    RECEIVED_BYTES,
    STAGE,
    STEP,
    Latency,
)
from gateway.settings.model import Deliver
from gateway.web.metrics import histograms
from tests.gateway.ledger.rows import stored
from tests.gateway.ledgers import new_ledger

STUDY, SERIES = "1.2", "1.3"
RESULT = NewResult(
    "key", "spleen", "1.0",
    [{"timings_s": {"read": 1.0, "infer": 12.0, "total": 14.0}}, {"timings_s": {"read": 3.0}}],
    tuple(NewObject(kind, "1.4", f"1.5.{kind}", f"results/key/{kind}.dcm", 10, "a" * 64) for kind in ("seg", "sr")),
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with new_ledger(tmp_path) as opened:
        yield opened


def pass_through(db: Connection, at: float = 0.0) -> None:
    """A series of three images: received in 5 s, complete 3 s later, in the queue for 2 s, segmented in 20 s, delivered
    in 1 s, confirmed 9 s later."""
    for number, received_at in enumerate((100, 102, 105)):
        instances.file_instance(db, stored(sop=f"1.{number}", series=SERIES, at=at + received_at))
    instances.file_instance(db, stored(sop="1.2", series=SERIES, at=at + 105))
    assert series.complete_series(db, STUDY, SERIES, 3, "cap: a slice is missing", at + 108)
    jobs.make_job(db, NewJob(STUDY, SERIES, 3, "spleen", "rule", "on", "queued", 0.0), at + 108)
    claim = jobs.claim_job(db, "worker", at + 110, at + 140)
    assert claim is not None and results.finish_job(db, claim, RESULT, ["pacs"], at + 130)
    out = deliveries.claim_outgoing(db, "pacs", "sender", at + 130, at + 200, 9)
    for one in out:
        assert deliveries.end_delivery(db, one.claim, 0, at + 131)
        assert deliveries.confirm(db, one.claim, at + 140)


def seconds(db: Connection, what: Latency) -> dict[str, tuple[float, float]]:
    """How many, and their sum, by label."""
    return {
        "".join(values): (sum(one.counts.values()), one.sum_s) for values, one in tallies.observed(db, what).items()
    }


def test_every_stage_of_a_series_is_timed(ledger: Ledger) -> None:
    ledger.write(pass_through)
    with ledger.read() as db:
        assert seconds(db, STAGE) == {
            "receive": (1, 5.0),
            "wait_complete": (1, 3.0),
            "queue": (1, 2.0),
            "infer": (1, 20.0),
            "deliver": (2, 2.0),
            "confirm": (2, 18.0),
        }
        assert seconds(db, LAST_IMAGE_TO_SEG) == {"": (1, 26.0)}
        assert seconds(db, STEP) == {"read": (2, 4.0), "infer": (1, 12.0)}
        assert tallies.counted(db, INSTANCES) == {("new",): 3, ("duplicate",): 1}
        assert tallies.counted(db, RECEIVED_BYTES) == {(): 40}
        assert tallies.counted(db, JOBS) == {("done", ""): 1}
        assert tallies.counted(db, DELIVERIES) == {("stored",): 2, ("confirmed",): 2}
        assert tallies.counted(db, tallies.SERIES_COMPLETE) == {("cap",): 1}


def test_a_purge_makes_nothing_smaller(ledger: Ledger) -> None:
    ledger.write(pass_through)
    ledger.write(erase, STUDY, 200.0)
    ledger.write(pass_through, 1000.0)
    with ledger.read() as db:
        assert seconds(db, STAGE)["receive"] == (2, 10.0)
        assert seconds(db, LAST_IMAGE_TO_SEG) == {"": (2, 52.0)}


def test_what_is_undone_is_not_counted(ledger: Ledger) -> None:
    def pass_and_fall(db: Connection) -> None:
        pass_through(db)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        ledger.write(pass_and_fall)
    with ledger.read() as db:
        assert not seconds(db, STAGE) and not tallies.counted(db, INSTANCES)


def test_an_object_that_was_lost_and_sent_again_is_delivered_once(ledger: Ledger) -> None:
    ledger.write(pass_through)

    def lose(db: Connection) -> None:
        db.exec_driver_sql("UPDATE delivery SET state = 'stored', confirmed_at = NULL")
        for out in deliveries.claim_unconfirmed(db, "pacs", 200.0, 300.0, 9):
            assert deliveries.lose(db, out, 210.0, Deliver(), 0.5, "gone")
        for out in deliveries.claim_outgoing(db, "pacs", "sender", 300.0, 400.0, 9):
            deliveries.end_delivery(db, out.claim, 0, 301.0)

    ledger.write(lose)
    with ledger.read() as db:
        assert seconds(db, STAGE)["deliver"] == (2, 2.0)
        assert tallies.counted(db, DELIVERIES) == {("stored",): 4, ("confirmed",): 2, ("failed",): 2}


def test_late_images_have_no_time_of_receiving_and_late_claims_do_not_count(ledger: Ledger) -> None:
    ledger.write(pass_through)

    def go_on(db: Connection) -> None:
        instances.file_instance(db, stored(sop="1.9", series=SERIES, at=9000))
        assert series.complete_series(db, STUDY, SERIES, 4, "quiet", 9003)
        jobs.make_job(db, NewJob(STUDY, SERIES, 4, "spleen", "rule", "on", "queued", 0.0), 9003)
        claim = jobs.claim_job(db, "worker", 9004, 9014)
        assert claim is not None
        assert jobs.requeue_job(db, claim, 9005, code="crashed", error="it crashed")
        assert not jobs.end_job(db, Claim(claim.id, 0), "failed", 9006, code="hung", error="it hung")

    ledger.write(go_on)
    with ledger.read() as db:
        assert seconds(db, STAGE)["receive"] == (1, 5.0)
        assert seconds(db, STAGE)["wait_complete"] == (2, 6.0)
        assert tallies.counted(db, tallies.JOB_RETRIES) == {("crashed",): 1}
        assert tallies.counted(db, JOBS) == {("done", ""): 1}


def test_a_job_that_followed_its_series_has_not_waited(ledger: Ledger) -> None:
    def follow(db: Connection, uid: str, claimed_at: float) -> None:
        new = NewJob(STUDY, uid, 0, "spleen", "rule", "on", "queued", 0.0)
        instances.file_instance(db, stored(series=uid, at=100))
        (job_id,) = jobs.begin_jobs(db, [new], 101)
        if claimed_at < 108:
            assert jobs.claim_job(db, "worker", claimed_at, 200)
        assert series.complete_series(db, STUDY, uid, 1, "quiet", 108)
        assert jobs.make_job(db, replace(new, revision=1), 108) == job_id
        if claimed_at > 108:
            assert jobs.claim_job(db, "worker", claimed_at, 200)

    ledger.write(follow, "3.1", 102)
    with ledger.read() as db:
        assert seconds(db, STAGE)["queue"] == (1, 0.0)
    ledger.write(follow, "3.2", 115)
    with ledger.read() as db:
        assert seconds(db, STAGE)["queue"] == (2, 7.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1e5), max_size=20))
def test_prometheus_would_have_said_the_same(lasted: list[float]) -> None:
    registry = CollectorRegistry()
    theirs = Histogram(LAST_IMAGE_TO_SEG.name, LAST_IMAGE_TO_SEG.help, registry=registry, buckets=BOUNDS_S)
    for one in lasted:
        theirs.observe(max(0.0, one))
    with Ledger("sqlite://") as ledger:
        ledger.write(lambda db: [tallies.add(db, LAST_IMAGE_TO_SEG.took(one)) for one in lasted])
        with ledger.read() as db:
            (ours,) = (one for one in histograms(db) if one.name == LAST_IMAGE_TO_SEG.name)
    expected = {(one.name, str(one.labels)): one.value for one in next(iter(registry.collect())).samples}
    found = {(one.name, str(one.labels)): one.value for one in ours.samples}
    assert found == pytest.approx({key: value for key, value in expected.items() if not key[0].endswith("_created")})
