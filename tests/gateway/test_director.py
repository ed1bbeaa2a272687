"""From instances in the ledger to jobs, by a clock that the test moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.dimse.store import Ending
from gateway.ledger import instances, jobs
from gateway.settings.model import GatewaySettings
from gateway.settings.read import read_settings
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox

QUIET_S, GAP_S, OPEN_S, ABORT_S, CAP_S = 3, 30, 60, 90, 100
TIMES = f"[complete]\nquiet_gap_s = {GAP_S}\nquiet_open_s = {OPEN_S}\nquiet_abort_s = {ABORT_S}\n"
TIMES += f"cap_s = {CAP_S}\nquiet_late_s = {QUIET_S}\n"


def settings(folder: Path, rules: str = "") -> GatewaySettings:
    return read_settings(TIMES + rules, folder)


def states(box: Inbox) -> list[str]:
    """Of the jobs that are decided upon; those of series that are still arriving have no revision."""
    return [job.state for job in box.rows("job") if job.revision]


def test_a_quiet_series_becomes_a_job(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        box.send(phantom())
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S - 0.1))
        assert box.rows("series")[0].state == "arriving" and not states(box)
        director.step(*clock.after(0.2))
        (series,), (job,) = box.rows("series"), box.rows("job")
        assert (series.state, series.complete_by) == ("complete", "quiet")
        assert (job.state, job.mode, job.bundle, job.rule, job.revision) == ("queued", "on", "", "default", 6)


@pytest.mark.parametrize(("born", "expected"), [("19800101", ["queued"]), ("20000101", []), ("", [])])
def test_dates_ages_and_planes_are_asked_of_what_was_received(tmp_path: Path, born: str, expected: list[str]) -> None:
    when = 'plane = "axial", StudyDate = ">=20230601", PatientAge = "40..60", not = { series_description = "*scout*" }'
    with inbox(tmp_path) as box:
        rules = f'[[rule]]\nname = "wanted"\nwhen = {{ {when} }}\n'
        director, clock = Director(box.ledger, box.folder, settings(tmp_path, rules)), Clock()
        series = phantom()
        for one in series:
            one.PatientBirthDate = born
        box.send(series)
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S + 1))
        assert states(box) == expected
        why = "".join(event.detail for event in box.rows("event") if event.kind == "series.passed_over")
        assert bool(why) is not bool(expected)
        assert ("there is nothing to compare with 40..60" in why) is not bool(born)
        assert "2000" not in why and "20240101" not in why


@pytest.mark.parametrize(
    ("ending", "slices", "wait_s"),
    [
        pytest.param(Ending.RELEASED, [0, 1, 2, 4, 5], GAP_S, id="a slice is missing"),
        pytest.param(Ending.ABORTED, [0, 1, 2, 3, 4, 5], ABORT_S, id="the sender broke off"),
    ],
)
def test_doubts_make_it_wait(tmp_path: Path, ending: Ending, slices: list[int], wait_s: float) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        series = phantom()
        box.send([series[k] for k in slices], ending)
        director.step(*clock.after(0))
        director.step(*clock.after(wait_s - 1))
        assert not states(box)
        director.step(*clock.after(2))
        assert states(box) == ["queued"]


def test_an_open_association_makes_it_wait(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        peer = box.open()
        box.store(peer, phantom())
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S + 1))
        assert not states(box)
        box.spool.closed(peer, Ending.RELEASED)
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        assert states(box) == ["queued"]


def test_a_repetition_starts_the_quiet_time_anew(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        series = phantom()
        box.send(series)
        director.step(*clock.after(0))
        box.send(series[:1])
        director.step(*clock.after(2))
        director.step(*clock.after(2))
        assert not states(box)
        director.step(*clock.after(2))
        assert states(box) == ["queued"]


def test_late_slices_replace_the_job_and_a_repetition_does_not(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        series = phantom()
        box.send(series[:4])
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        box.send(series[:4])
        director.step(*clock.after(1))
        director.step(*clock.after(QUIET_S))
        assert states(box) == ["queued"]
        box.send(series[4:])
        director.step(*clock.after(1))
        director.step(*clock.after(QUIET_S))
        old, new = box.rows("job")
        assert (old.state, new.state, new.revision) == ("cancelled", "queued", 6)


def test_after_a_restart_what_was_decided_is_not_decided_again(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        clock, series = Clock(), phantom()
        first = Director(box.ledger, box.folder, settings(tmp_path))
        box.send(series[:4])
        first.step(*clock.after(0))
        first.step(*clock.after(QUIET_S))
        second = Director(box.ledger, box.folder, settings(tmp_path))
        second.step(*clock.after(0))
        second.step(*clock.after(QUIET_S))
        assert states(box) == ["queued"]
        box.send(series[4:])
        third = Director(box.ledger, box.folder, settings(tmp_path))
        third.step(*clock.after(0))
        assert states(box) == ["queued"]  # its quiet time starts anew
        third.step(*clock.after(QUIET_S))
        assert states(box) == ["cancelled", "queued"]


def test_a_late_image_is_told_from_what_had_been_lost(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        clock, series = Clock(), phantom()
        director = Director(box.ledger, box.folder, settings(tmp_path))
        box.send(series[:4])
        lost = box.rows("instance")[1].path
        assert box.ledger.write(instances.lose_instance, lost, clock.wall_s)
        box.send(series[1:2])
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        assert [(job.state, job.revision) for job in box.rows("job")] == [("queued", 6)]
        restarted = Director(box.ledger, box.folder, settings(tmp_path))
        box.send(series[4:5])
        restarted.step(*clock.after(0))
        restarted.step(*clock.after(QUIET_S))
        assert [(job.state, job.revision) for job in box.rows("job")] == [("cancelled", 6), ("queued", 7)]


@pytest.mark.parametrize(
    ("then", "state"),
    [("", "held"), ('when = { modality = "MR" }', "cancelled")],
    ids=["the image came too late", "no rule wants the series any more"],
)
def test_a_job_stays_unless_its_series_is_not_wanted_any_more(tmp_path: Path, then: str, state: str) -> None:
    with inbox(tmp_path) as box:
        rule = '[[rule]]\nmode = "hold"\n'
        director, clock = Director(box.ledger, box.folder, settings(tmp_path, rule)), Clock()
        series = phantom()
        box.send(series[:5])
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        director.settings = settings(tmp_path, rule + then)
        box.send(series[5:])
        director.step(*clock.after(1 if then else director.settings.complete.late_s + 1))
        director.step(*clock.after(QUIET_S))
        assert states(box) == [state] and box.rows("series")[0].state == "complete"


def test_what_comes_between_look_and_commit_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with inbox(tmp_path) as box:
        director, clock, series = Director(box.ledger, box.folder, settings(tmp_path)), Clock(), phantom()
        box.send(series[:5])
        director.step(*clock.after(0))
        look = director._watch.update

        def look_and_be_overtaken(*arguments: object) -> None:
            look(*arguments)  # type: ignore[arg-type]
            box.send(series[5:])

        monkeypatch.setattr(director._watch, "update", look_and_be_overtaken)
        director.step(*clock.after(QUIET_S))
        assert not states(box)
        monkeypatch.undo()
        director.step(*clock.after(1))
        director.step(*clock.after(QUIET_S))
        assert [(job.state, job.revision) for job in box.rows("job")] == [("queued", 6)]


@pytest.mark.parametrize(
    ("rule", "state", "mode"),
    [('mode = "hold"', "held", "on"), ('mode = "shadow"', "queued", "shadow"), ('mode = "off"', None, None)],
)
def test_modes(tmp_path: Path, rule: str, state: str | None, mode: str | None) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path, f"[[rule]]\n{rule}\n")), Clock()
        box.send(phantom())
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        assert [(job.state, job.mode) for job in box.rows("job")] == ([(state, mode)] if state else [])
        assert box.rows("series")[0].state == "complete"


def test_what_medseg_made_never_becomes_a_job(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        box.send(phantom(Manufacturer="medseg"))
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        assert not states(box)
        (event,) = box.rows("event")
        assert event.kind == "series.passed_over" and "made by medseg" in event.detail


def test_the_thinnest_of_a_study_waits_for_all_of_it(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        rule = '[[rule]]\nselect = "thinnest"\n'
        director, clock = Director(box.ledger, box.folder, settings(tmp_path, rule)), Clock()
        thick, thin = phantom(1, SliceThickness=5), phantom(2, SliceThickness=1)
        for one in thin:
            one.StudyInstanceUID = thick[0].StudyInstanceUID
        box.send(thick)
        director.step(*clock.after(0))
        box.send(thin)
        director.step(*clock.after(QUIET_S - 1))
        director.step(*clock.after(2))
        assert not states(box)
        director.step(*clock.after(1))
        assert [job.series_uid for job in box.rows("job")] == [thin[0].SeriesInstanceUID]
        assert {row.state for row in box.rows("series")} == {"complete"}


def test_a_series_that_never_gets_quiet_is_held_at_the_cap_then_completes(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock, series = Director(box.ledger, box.folder, settings(tmp_path)), Clock(), phantom()
        box.send(series)
        director.step(*clock.after(0))
        for _ in range(CAP_S // 2 + 1):
            box.send(series[:1])
            director.step(*clock.after(2))
        assert box.rows("series")[0].state == "held" and not states(box)
        director.step(*clock.after(QUIET_S))
        assert states(box) == ["queued"]


def test_a_held_job_is_released_once(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path, '[[rule]]\nmode = "hold"\n')), Clock()
        box.send(phantom())
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        assert box.ledger.write(jobs.release_held, 1, clock.wall_s)
        assert not box.ledger.write(jobs.release_held, 1, clock.wall_s)
        assert states(box) == ["queued"]


@pytest.mark.parametrize(
    ("rule", "begun"),
    [
        ("", True),
        ('mode = "shadow"', True),
        ('when = { slices = "6" }', False),
        ('select = "thinnest"', False),
        ('mode = "hold"', False),
        ('mode = "off"', False),
        ('when = { modality = "MR" }', False),
    ],
    ids=["any series", "shadow", "needs the number of slices", "needs the study", "held", "off", "no match"],
)
def test_a_job_is_begun_on_the_first_slices_where_the_rule_is_sure(tmp_path: Path, rule: str, begun: bool) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path, f"[[rule]]\n{rule}\n")), Clock()
        box.send(phantom()[:1])
        director.step(*clock.after(0))
        director.step(*clock.after(0.1))
        assert [(job.state, job.revision) for job in box.rows("job")] == ([("waiting", 0)] if begun else [])


def test_the_job_that_was_begun_is_the_one_that_is_done(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        series = phantom()
        box.send(series[:2])
        director.step(*clock.after(0))
        box.send(series[2:])
        Director(box.ledger, box.folder, settings(tmp_path)).step(*clock.after(0.1))  # begins it no second time
        director.step(*clock.after(0.1))
        director.step(*clock.after(QUIET_S))
        assert [(job.id, job.state, job.revision) for job in box.rows("job")] == [(1, "queued", 6)]


def test_what_was_begun_ends_where_the_rules_say_otherwise_in_the_end(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        box.send(phantom(1))
        box.send(phantom(2))
        director.step(*clock.after(0))
        director.settings = settings(tmp_path, '[[rule]]\nname = "new"\nwhen = { modality = "CT" }\n')
        director.step(*clock.after(QUIET_S))
        assert sorted((job.state, job.rule, job.revision) for job in box.rows("job")) == sorted(
            2 * [("cancelled", "default", 0), ("queued", "new", 6)]
        )


def test_late_slices_begin_nothing_before_they_are_complete(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, settings(tmp_path)), Clock()
        series = phantom()
        box.send(series[:4])
        director.step(*clock.after(0))
        director.step(*clock.after(QUIET_S))
        box.send(series[4:])
        director.step(*clock.after(1))
        assert [(job.state, job.revision) for job in box.rows("job")] == [("queued", 4)]
