"""Retention lets go of what is done with after its time, and of nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from gateway.decide import jobs
from gateway.keep import deletion, retention
from gateway.keep.deletion import sweep
from gateway.keep.purge import purge
from gateway.ledger import commitments
from gateway.receive import spool
from medseg.dicom.reason import Reason
from medseg.errors import GeometryRefused
from tests.gateway.directing import Director
from tests.gateway.keep.kept import INPUTS_S, RESULTS_S, House, house
from tests.gateway.phantoms import phantom


def sql(here: House, statement: str) -> None:
    here.box.ledger.write(lambda db: db.execute(text(statement)).rowcount)


def pass_over(here: House) -> None:
    """A series of two slices comes, and the worker says so."""
    here.take_in(phantom())
    error = GeometryRefused("1.2.3", Reason.TOO_FEW_SLICES, "2 slices: expected at least 3")
    claim, now, deliver = here.claim(), here.clock.wall_s, here.settings.deliver
    assert here.box.ledger.write(jobs.failed, claim, error, now, deliver)


DONE_WITH: dict[str, tuple[str, Callable[[House], None]]] = {
    "confirmed": ("", lambda here: here.deliver(phantom())),
    "shadow": ('[[rule]]\nmode = "shadow"\n', lambda here: (here.take_in(phantom()), here.finish(here.claim()))[0]),
    "off": ('[[rule]]\nmode = "off"\n', lambda here: here.take_in(phantom())),
    "no rule matches": ('[[rule]]\nwhen = { modality = "MR" }\n', lambda here: here.take_in(phantom())),
    "passed over": ("", pass_over),
    "passed over by the bundle's rule": ('[[rule]]\nbundle = "spleen"\n', pass_over),
    "nothing but reports": ("", lambda here: here.take_in(phantom(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"))),
}


def test_what_is_to_be_told_is_kept_until_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path, "") as here:
        pass_over(here)
        with monkeypatch.context() as patch:
            patch.setattr(here, "tell", lambda: None)
            here.pass_time(INPUTS_S + 10)
            assert len(here.files("studies")) == 6
        here.pass_time(10)
        assert not here.files("studies")


@pytest.mark.parametrize("how", DONE_WITH)
def test_what_is_done_with_goes_after_its_time(tmp_path: Path, how: str) -> None:
    rules, bring = DONE_WITH[how]
    with house(tmp_path, rules) as here:
        bring(here)
        here.pass_time(INPUTS_S - 10)
        assert len(here.files("studies")) == 6
        here.pass_time(20)
        assert not here.files("studies")
        assert len(here.box.rows("instance")) == 6
        here.pass_time(RESULTS_S - INPUTS_S - 60)
        assert bool(here.files("results")) == bool(here.box.rows("result"))
        assert len(here.box.rows("instance")) == 6
        here.pass_time(60)
        assert not here.files("results") and not any(
            here.box.rows(table) for table in ("series", "instance", "job", "result", "delivery", "event", "doomed")
        )
        assert [path.name for path in (here.box.folder / "studies").iterdir()] == []


WANTED: dict[str, str] = {
    "waiting job": "UPDATE job SET state='waiting', finished_at=NULL",
    "held job": "UPDATE job SET state='held', finished_at=NULL",
    "queued job": "UPDATE job SET state='queued', finished_at=NULL",
    "running job": "UPDATE job SET state='running', finished_at=NULL, lease_until=1e12",
    "failed job": "UPDATE job SET state='failed'",
    "arriving series": "UPDATE series SET state='held', complete_at=NULL",
    "queued delivery": "UPDATE delivery SET state='queued', confirmed_at=NULL",
    "delivery being sent": "UPDATE delivery SET state='sending', confirmed_at=NULL, lease_until=1e12",
    "dead letter": "UPDATE delivery SET state='dead', confirmed_at=NULL",
    "unconfirmed delivery": "UPDATE delivery SET state='stored', confirmed_at=NULL, asked=2",
    "delivery being asked after": "UPDATE delivery SET state='stored', confirmed_at=NULL, asked=4, ready_at=1e12",
}


@pytest.mark.parametrize("what", WANTED)
def test_what_may_still_be_wanted_is_never_deleted(tmp_path: Path, what: str) -> None:
    with house(tmp_path) as here:
        here.deliver(phantom())
        sql(here, WANTED[what])
        here.pass_time(100 * RESULTS_S)
        assert len(here.files("studies")) == 6 and here.files("results")


def test_a_peer_that_cannot_be_asked_is_believed(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        here.take_in(phantom())
        here.finish(here.claim(), "pacs")
        here.store(confirmed=False)
        sql(here, "UPDATE delivery SET asked=4")
        here.pass_time(INPUTS_S + 1)
        assert not here.files("studies")


def test_the_time_counts_from_the_last_confirmation(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        here.take_in(phantom())
        here.finish(here.claim(), "pacs", "other")
        here.store()
        here.pass_time(10 * INPUTS_S)
        here.store(peer="other")
        here.pass_time(INPUTS_S - 20)
        assert len(here.files("studies")) == 6
        here.pass_time(20)
        assert not here.files("studies")


def test_a_late_image_alone_makes_no_result(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        series = phantom(slices=8)
        here.deliver(series[:6])
        here.pass_time(INPUTS_S + 1)
        here.take_in(series[6:7])  # too late: passed over
        assert [row.state for row in here.box.rows("series")] == ["complete"]
        here.take_in(series[7:])  # soon after that: not too late, but alone
        assert [row.state for row in here.box.rows("series")] == ["held"]
        assert len(here.box.rows("job")) == 1
        (event,) = [one for one in here.box.rows("event") if one.kind == "series.held"]
        assert "6 of its images were deleted" in event.detail
        here.pass_time(10 * RESULTS_S)
        assert len(here.files("studies")) == 2  # both versions of it are kept
        here.take_in(series)
        assert [job.state for job in here.box.rows("job")] == ["done", "queued"]
        assert len(here.files("studies")) == 8


def test_a_repetition_after_deletion_is_kept_for_as_long_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path) as here:
        wall = SimpleNamespace(time=lambda: here.clock.wall_s, monotonic=time.monotonic)
        monkeypatch.setattr(spool, "time", wall)
        series = phantom()
        here.deliver(series)
        here.pass_time(INPUTS_S + 1)
        assert not here.files("studies")
        here.take_in(series)
        here.pass_time(INPUTS_S - 20)
        assert len(here.files("studies")) == 6 and len(here.box.rows("job")) == 1
        assert [row.state for row in here.box.rows("series")] == ["complete"]
        assert not here.restart().missing
        here.pass_time(20)
        assert not here.files("studies")


def test_what_comes_after_all_is_forgotten_is_new(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        series = phantom()
        here.deliver(series)
        here.pass_time(INPUTS_S + 1)
        here.pass_time(RESULTS_S)
        assert not here.box.rows("series")
        here.take_in(series)
        assert [job.state for job in here.box.rows("job")] == ["queued"]


def test_a_crash_before_the_files_are_deleted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path) as here:
        here.deliver(phantom())

        def crash(*_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(retention, "sweep", crash)
        with pytest.raises(KeyboardInterrupt):
            here.pass_time(INPUTS_S + 1)
        assert len(here.files("studies")) == 6 == len(here.box.rows("doomed"))
        sweep(here.box.ledger, here.box.folder)
        found = here.restart()
        assert not here.files("studies") and not found.adopted and not found.missing
        assert not here.box.rows("doomed")


def test_what_was_lost_and_is_sent_again_is_whole_again(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        series = phantom()
        here.deliver(series)
        here.files("studies")[2].unlink()
        assert here.restart().missing
        here.director = Director(here.box.ledger, here.box.folder, here.settings)
        here.take_in(series)
        assert [(row.state, row.instances) for row in here.box.rows("series")] == [("complete", 6)]
        assert len(here.box.rows("job")) == 1
        here.pass_time(INPUTS_S + 10)
        assert not here.files("studies")


def test_what_was_lost_before_the_files_went_is_kept_when_it_comes_again(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        series = phantom()
        here.deliver(series)
        here.files("studies")[2].unlink()
        assert here.restart().missing
        here.pass_time(INPUTS_S + 10)
        assert not here.files("studies")
        here.take_in(series)
        assert len(here.files("studies")) == 6
        with here.box.ledger.read() as db:
            assert len(commitments.stored(db, [one.SOPInstanceUID for one in series])) == 6
        purge(here.box.ledger, here.box.folder, str(series[0].StudyInstanceUID), here.clock.wall_s)
        assert not here.files("studies")


def test_files_that_cannot_be_deleted_now_are_deleted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path) as here:
        here.deliver(phantom())

        def read_only(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(deletion, "_delete", read_only)
        here.pass_time(INPUTS_S + 1)
        assert len(here.files("studies")) == 6 == len(here.box.rows("doomed"))
        monkeypatch.undo()
        here.pass_time()
        assert not here.files("studies") and not here.box.rows("doomed")
