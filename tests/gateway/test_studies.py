"""Studies as people look at them: the same facts in words and as JSON, and in the document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from sqlalchemy import Connection

from gateway.ledger import events, instances, jobs, tallies
from gateway.ledger import series as series_rows
from gateway.ledger.jobs import NewJob
from gateway.ledger.ledger import Ledger
from gateway.retry import Fault
from gateway.show import next_steps, studies, text
from tests.gateway.ledger.rows import stored
from tests.gateway.ledgers import new_ledger
from tests.gateway.test_stages import SERIES, STUDY, pass_through

DOCUMENT = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with new_ledger(tmp_path) as opened:
        yield opened


def test_a_study_has_its_times_and_where_it_is(ledger: Ledger) -> None:
    ledger.write(pass_through)
    with ledger.read() as db:
        (study,) = studies.latest(db, 9)
        assert studies.study(db, STUDY) == study and studies.study(db, "9.9") is None
    (series,) = study.series
    (job,) = series.jobs
    assert (series.series_uid, series.received, series.complete_by) == (SERIES, 3, "cap: a slice is missing")
    assert (series.receive_s, series.wait_complete_s, series.last_image_to_seg_s) == (5, 3, 26)
    assert (job.queue_s, job.infer_s, job.next_step) == (2, 20, "")
    assert job.result is not None and job.result.current and job.result.timings_s["read"] == 4
    assert [(one.kind, one.state, one.deliver_s, one.confirm_s) for one in job.result.deliveries] == [
        ("seg", "confirmed", 1, 9),
        ("sr", "confirmed", 1, 9),
    ]
    told = "\n".join(text.lines(study))
    for said in (
        f"study {STUDY}",
        "infer 20.0 s",
        "SEG stored 26.0 s after it",
        "seg 1.5.seg",
        "confirmed 9.0 s later",
    ):
        assert said in told


def test_a_clock_that_was_set_back_gives_no_negative_time(ledger: Ledger) -> None:
    def back(db: Connection) -> None:
        instances.file_instance(db, stored(series=SERIES, at=100))
        series_rows.complete_series(db, STUDY, SERIES, 1, "quiet", 50)

    ledger.write(back)
    with ledger.read() as db:
        assert studies.latest(db, 1)[0].series[0].wait_complete_s == 0


def test_an_image_that_is_sent_again_moves_no_time(ledger: Ledger) -> None:
    """Neither before its series is complete nor afterwards, on the page or in the metrics."""

    def pass_and_repeat(db: Connection) -> None:
        for at in (100, 104, 190):
            if at == 190:
                series_rows.complete_series(db, STUDY, "1.9", 1, "quiet", 110)
            instances.file_instance(db, stored(series="1.9", sop="1.9.1", at=at))
        pass_through(db)
        instances.file_instance(db, stored(series=SERIES, sop="1.1", at=5000))

    ledger.write(pass_and_repeat)
    with ledger.read() as db:
        (study,) = studies.latest(db, 9)
        assert studies.latest(db, 9, before=5000) == () and studies.latest(db, 9, before=5001) == (study,)
        receiving = (
            tallies.observed(db, tallies.STAGE)["receive",],
            tallies.observed(db, tallies.STAGE)["wait_complete",],
        )
    assert (study.first_at, study.last_at, study.heard_at) == (100, 105, 5000)
    times = {one.series_uid: (one.last_at, one.complete_at, one.receive_s, one.wait_complete_s) for one in study.series}
    assert times == {"1.9": (100, 110, 0, 10), SERIES: (105, 108, 5, 3)}
    assert study.series[0].last_image_to_seg_s == 26
    assert [one.sum_s for one in receiving] == [5, 13]


def test_what_was_passed_over_says_why_until_there_is_a_job(ledger: Ledger) -> None:
    def pass_over(db: Connection) -> None:
        instances.file_instance(db, stored(series=SERIES, at=100))
        series_rows.complete_series(db, STUDY, SERIES, 1, "quiet", 101)
        for why in ("an older reason", "no rule \x1b[2J"):
            events.record(db, "series.passed_over", 101, {"why": why}, study_uid=STUDY, series_uid=SERIES)

    ledger.write(pass_over)
    with ledger.read() as db:
        (study,) = studies.latest(db, 1)
    assert study.series[0].passed_over == "no rule \x1b[2J"
    assert all(line.isprintable() for line in text.lines(study))  # it is shown on a terminal
    ledger.write(jobs.make_job, NewJob(STUDY, SERIES, 1, "", "rule", "on", "held", 0), 102)
    with ledger.read() as db:
        (series,) = studies.latest(db, 1)[0].series
    assert series.passed_over is None and "`medseg jobs release 1`" in series.jobs[0].next_step


def test_a_series_that_a_setting_would_let_in_names_that_setting(ledger: Ledger) -> None:
    def pass_over(db: Connection) -> None:
        instances.file_instance(db, stored(series=SERIES, at=100))
        series_rows.complete_series(db, STUDY, SERIES, 1, "quiet", 101)
        detail = {"why": "series 1.3: no FrameOfReferenceUID", "code": "no_frame_of_reference"}
        events.record(db, "series.passed_over", 101, detail, study_uid=STUDY, series_uid=SERIES)

    ledger.write(pass_over)
    with ledger.read() as db:
        (study,) = studies.latest(db, 1)
    assert "assume_frame_of_reference = true" in study.series[0].next_step
    assert "next step" in "\n".join(text.lines(study))


def test_every_fault_of_a_delivery_has_its_advice_and_no_other() -> None:
    of_jobs = ("INPUT", "CANCELLED", "MISCONFIGURED", "OUT_OF_MEMORY", "DISK_FULL", "CRASHED", "HUNG", "UNVERIFIED")
    of_deliveries = {fault.name.lower() for fault in Fault} - {name.lower() for name in (*of_jobs, "DRAINED")}
    assert of_deliveries == next_steps.DELIVERY_CODES.keys()


def test_the_document_has_every_key() -> None:
    section = DOCUMENT.read_text("utf-8").split("## `medseg status --json`")[1].split("\n## ")[0]
    records = {
        "study": studies.StudyView, "series": studies.SeriesView, "job": studies.JobView, "result": studies.ResultView,
        "delivery": studies.Delivery, "gathering": studies.Gathering, "channel": studies.ChannelView,
    }  # fmt: skip
    for name, record in records.items():
        (line,) = re.findall(rf"^\| {name} \| (.*) \|$", section, re.M)
        documented = re.findall(r"\w+", line.split("`")[1])
        assert documented == [field.name for field in fields(record)]
