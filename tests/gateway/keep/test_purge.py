"""A purge takes a study away whole, and whoever works for it is fenced out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.dimse.store import Ending
from gateway.keep import purge as purging
from gateway.keep.deletion import sweep
from gateway.keep.erase import Content
from gateway.keep.purge import content_of, purge
from gateway.ledger import counts, deliveries, jobs, results
from gateway.ledger.results import NewResult
from medseg.errors import UsageError
from tests.gateway.keep.kept import QUIET_S, House, house
from tests.gateway.phantoms import phantom

TABLES = ("series", "instance", "job", "result", "result_object", "delivery")


def study_of(series: list[object]) -> str:
    return str(series[0].StudyInstanceUID)  # type: ignore[attr-defined]


def purged(here: House, series: list[object]) -> Content:
    return purge(here.box.ledger, here.box.folder, study_of(series), here.clock.wall_s)


def test_a_study_goes_whole_and_no_other_with_it(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        gone, stays = phantom(1), phantom(2)
        here.deliver(gone)
        here.deliver(stays)
        there = content_of(here.box.ledger, study_of(gone))
        assert (there.series, there.instances, there.jobs, there.results, there.deliveries) == (1, 6, 1, 1, 1)
        assert there.size_bytes == 3 + sum(path.stat().st_size for path in here.files(f"studies/{study_of(gone)}"))
        assert purged(here, gone) == there
        assert not (here.box.folder / "studies" / study_of(gone)).exists()
        assert len(here.files("studies")) == 6 and [path.parent.name for path in here.files("results")] == ["key2"] * 2
        assert {table: len(here.box.rows(table)) for table in TABLES} == dict.fromkeys(TABLES, 1) | {"instance": 6}
        (event,) = [one for one in here.box.rows("event") if one.study_uid == study_of(gone)]
        assert event.kind == "study.purged" and '"instances": 6' in event.detail
        with pytest.raises(UsageError, match="not in the ledger"):
            content_of(here.box.ledger, study_of(gone))
        found = here.restart()
        assert not found.adopted and not found.missing


@pytest.mark.parametrize("moment", ["arriving", "queued", "running", "failed", "sending", "done"])
def test_what_comes_later_is_a_new_study(tmp_path: Path, moment: str) -> None:
    with house(tmp_path) as here:
        series = phantom()
        if moment == "arriving":
            here.box.send(series)
            here.director.step(*here.clock.after(0))
        else:
            here.take_in(series)
        claim = here.claim() if moment not in ("arriving", "queued") else None
        now = here.clock.wall_s
        if claim and moment == "failed":
            here.box.ledger.write(jobs.end_job, claim, "failed", now, code="x", error="x")
        sending = None
        if claim and moment in ("sending", "done"):
            here.finish(claim, "pacs")
        if moment == "sending":
            sending = here.box.ledger.write(deliveries.claim_delivery, "pacs", "sender", now, now + 30)
            assert sending is not None
        purged(here, series)
        if moment == "running":
            assert claim is not None
            result = NewResult("late", "bundle", "1", [], ())
            assert not here.box.ledger.write(results.finish_job, claim, result, ["pacs"], now)
        if sending:
            assert not here.box.ledger.write(deliveries.end_delivery, sending, 0, now)
        here.take_in(series)
        assert [(row.revision, row.state) for row in here.box.rows("series")] == [(6, "complete")]
        assert [job.state for job in here.box.rows("job")] == ["queued"]
        assert not here.box.rows("result") and not here.files("results")


def test_what_still_arrives_is_a_new_study(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        series = phantom()
        peer = here.box.open()
        here.box.store(peer, series[:3])
        here.director.step(*here.clock.after(0))
        purged(here, series)
        here.box.store(peer, series[3:])
        here.box.spool.closed(peer, Ending.RELEASED)
        here.director.step(*here.clock.after(0))
        here.director.step(*here.clock.after(QUIET_S))
        assert [job.revision for job in here.box.rows("job")] == [3]


def test_a_purge_that_is_killed_is_finished_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path) as here:
        series = phantom()
        here.deliver(series)
        (instance, *_) = here.box.rows("instance")
        damaged = here.box.folder / instance.path
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert here.restart().quarantined

        def killed(*_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(purging, "sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            purged(here, series)
        assert len(here.files("")) > 6
        sweep(here.box.ledger, here.box.folder)
        found = here.restart()
        assert not found.adopted and not found.missing
        assert [path.name for path in here.files("")] == []


def test_what_peers_said_of_a_study_goes_with_it(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        gone, stays = phantom(1), phantom(2)
        for series in (gone, stays):
            here.box.send(series)
            for uid in (None, str(series[0].SeriesInstanceUID)):
                facts = study_of(series), uid, "pacs", 6, here.clock.wall_s
                here.box.ledger.write(counts.answer, *facts)  # type: ignore[misc]
        purged(here, gone)
        assert {row.study_uid for row in here.box.rows("count")} == {study_of(stays)}
        assert len(here.box.rows("count")) == 2


def test_a_study_with_a_path_for_a_uid_goes_and_nothing_else(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        evil, stays = phantom(1, StudyInstanceUID="../../results"), phantom(2)
        here.deliver(stays)
        here.take_in(evil)
        assert purged(here, evil).instances == 6
        assert len(here.files("studies")) == 6 and len(here.files("results")) == 2


def test_purging_over_and_over_while_it_arrives_breaks_no_reception(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        series = phantom(slices=40)
        peer = here.box.open()
        with ThreadPoolExecutor(1) as sender:
            sending = sender.submit(here.box.store, peer, series)
            while not sending.done():
                purged(here, series)
            sending.result()
        here.box.store(peer, series)  # every one of them is taken, whatever was purged before
        assert len(here.files("studies")) == 40
        found = here.restart()
        assert not found.missing and not found.adopted and not found.quarantined
