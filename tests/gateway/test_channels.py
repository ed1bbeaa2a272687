"""Bundles of several channels in the gateway: a study's series in whatever order they come, to one result."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import update
from typer.testing import CliRunner

from gateway.decide import settle
from gateway.decide.reasons import failures
from gateway.dimse.store import Ending
from gateway.keep.purge import purge
from gateway.keep.retention import Retention
from gateway.ledger import commitments, instances, jobs, unanswered
from gateway.ledger.tables import delivery
from gateway.receive.source import read_series as read_series_of
from gateway.serve.gatherer import Gatherer
from gateway.serve.processes import LedgerContext
from gateway.settings.current import Live
from gateway.settings.read import read_settings
from gateway.show import studies, text, troubles
from gateway.work.freeze import freeze
from gateway.work.worker import Worker
from medseg.bundle.load import load_bundle
from medseg.cli.app import make_app
from medseg.dicom.phantom import Ellipsoid, make_series, write_series
from medseg.dicom.sources import read_series
from medseg.job.plan import plan
from medseg.job.run import run
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.running import Serving
from tests.gateway.spooling import Inbox, inbox
from tests.medseg.bundle import zoo
from tests.waiting import wait_for

T1: dict[str, Any] = {
    "name": "T1",
    "modality": "MR",
    "any": [{"SeriesDescription": "*t1*"}],
    "prefer": ["ImageType:PRIMARY", "most_slices"],
}
FLAIR: dict[str, Any] = {"name": "FLAIR", "modality": "MR", "any": [{"SeriesDescription": "*flair*"}]}
T2: dict[str, Any] = {"name": "T2", "modality": "MR", "any": [{"SeriesDescription": "*t2w*"}], "optional": True}
HEAD = (Ellipsoid((0, 0, 0), (9, 8, 7), 500.0), Ellipsoid((2, -1, 1), (4, 4, 3), 900.0))
WITHIN_S = 100


def series(description: str, number: int, *, slices: int = 6, **says: Any) -> list[Dataset]:
    """One of a study's, of an image of its own."""
    made = make_series(
        spacing_mm=(3.0, 2.0, 2.0),
        shape=(slices, 24, 24),
        objects=[replace(one, value=one.value - 30.0 * number) for one in HEAD],
        modality="MR",
        background=30.0,
        description=description,
        number=number,
    )
    for one in made:
        for keyword, value in ({"Manufacturer": "Phantom"} | says).items():
            setattr(one, keyword, value)
    return made


def medseg(*arguments: object) -> str:
    ran = CliRunner().invoke(make_app(), list(map(str, arguments)))
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def uid(some: Sequence[Dataset]) -> str:
    return str(some[0].SeriesInstanceUID)


class Room:
    """An inbox, a director, who looks at studies, and a worker."""

    def __init__(self, box: Inbox, folder: Path, settings: str) -> None:
        self.box, self.folder, self.clock = box, folder, Clock()
        self.told(settings)
        self.stop = threading.Event()
        self.restart()

    def told(self, settings: str) -> None:
        read = read_settings(f"[complete]\nquiet_late_s = 3\n{settings}", self.folder)
        self.settings = replace(read, gateway=replace(read.gateway, spool=self.box.folder))

    def restart(self) -> None:
        """As after a kill -9: nothing that was in memory is there."""
        ledger, spool, live = self.box.ledger, self.box.folder, Live(self.settings)
        self.director = Director(ledger, spool, self.settings)
        self.gatherer = Gatherer(ledger, spool)
        self.worker = Worker(ledger, spool, LedgerContext(ledger, live), self.stop, owner="worker")

    def send(self, *some: list[Dataset]) -> None:
        """Each series comes, is complete, and its study is looked at."""
        for one in some:
            self.box.send(one)
            self.director.step(*self.clock.after(0))
            self.director.step(*self.clock.after(4))
            self.look()

    def look(self, after_s: float = 0.0) -> None:
        self.gatherer.step(self.settings, self.clock.after(after_s)[1])

    def medseg(self, *arguments: str) -> str:
        """A command beside the service; what it asks for is due at once by our clock, too."""
        gateway = f'[gateway]\nspool = "{self.box.folder}"\ndatabase = "sqlite:///{self.folder}/ledger.db"\n'
        (self.folder / "medseg.toml").write_text(gateway + rule(self.folder))
        with patch("time.time", self.clock.wall):
            return medseg(*arguments, "--config", self.folder / "medseg.toml")

    def release(self, *arguments: str) -> None:
        self.medseg("jobs", "release", str(self.jobs[-1].id), *arguments)

    def worker_step(self) -> None:
        with patch("time.time", self.clock.wall):
            assert self.worker.step()

    def work(self) -> None:
        with patch("time.time", self.clock.wall):
            while self.worker.step():
                pass

    @property
    def jobs(self) -> list[Any]:
        return self.box.rows("job")

    def failures(self) -> list[tuple[str, tuple[str, ...], str]]:
        """What would be told of the study where nothing more comes: code, series and sentence."""
        with self.box.ledger.read() as db:
            rows = unanswered.ripe(db, self.clock.wall(), 60)
            return [(one.code, one.series, one.why) for row in rows for one in failures(db, row)]

    @property
    def states(self) -> list[str]:
        return [job.state for job in self.jobs]

    def channels(self, job_id: int) -> dict[str, str]:
        return {row.name: row.series_uid for row in self.box.rows("job_channel") if row.job_id == job_id}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.brats_like(tmp_path_factory.mktemp("bundles") / "two", [T1, FLAIR], own=True)


def rule(bundle: Path, more: str = "") -> str:
    when = '{ modality = "MR" }'
    return f'[[rule]]\nname = "heads"\nwhen = {when}\nbundle = "{bundle}"\nchannels_within_s = {WITHIN_S}\n{more}\n'


def seg_of(box: Inbox, result_id: int) -> Any:
    paths = {one.kind: one.path for one in box.rows("result_object") if one.result_id == result_id}
    return dcmread(box.folder / paths["seg"]), dcmread(box.folder / paths["sr"])


def by_hand(study: Sequence[list[Dataset]], bundle: Path, folder: Path, **how: Any) -> tuple[str, Any]:
    """What `medseg infer` makes of the same study."""
    write_series([one for some in study for one in some], folder / "study")
    planned = plan(read_series(folder / "study"), [load_bundle(bundle)], explicit=True, **how)
    made = run(planned.jobs[0], folder / "out")
    return made.record["result_key"], dcmread(made.folder / "seg.dcm")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_series_in_any_order_are_one_job(
    order: Sequence[int], box: Inbox, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Room(box, tmp_path, rule(two))
    study = [series("t1_mprage", 1), series("t2_flair", 2), series("localizer", 3, slices=3)]
    read: list[str] = []
    monkeypatch.setattr("gateway.serve.gatherer.read_series", lambda *of: read.append(of[3]) or read_series_of(*of))
    here.send(*(study[number] for number in order))
    assert read.count(uid(study[2])) == 1  # of what fits no channel nothing is read again
    (job,) = here.jobs
    assert (job.state, job.series_uid, job.rule) == ("queued", None, "heads")
    assert here.channels(job.id) == {"T1": uid(study[0]), "FLAIR": uid(study[1])}
    with box.ledger.read() as db:
        (shown,) = studies.latest(db, 1)
    assert [one.name for one in shown.jobs[0].channels] == ["T1", "FLAIR"]
    of = {one.series_uid: one for one in shown.series}
    assert [one.name for one in of[uid(study[1])].channel_of] == ["FLAIR"]
    if order[-1] == 2:  # it came after the job was made
        assert not of[uid(study[2])].channel_of
    else:
        assert "no channel of bundle two: T1: SeriesDescription localizer" in str(of[uid(study[2])].passed_over)
    assert any("channel FLAIR: series" in line for line in text.lines(shown))


def test_results_are_those_of_infer_and_name_what_they_replace(box: Inbox, two: Path, tmp_path: Path) -> None:
    """A better series later, and then an image of another that comes late."""
    here = Room(box, tmp_path, rule(two))
    late = series("t2_flair", 2, slices=10)
    study = [series("t1", 1), late[:-1]]
    here.send(*study)
    here.work()
    better = series("t1_again", 3, slices=8)
    here.send(better)
    here.work()
    here.send(late[-1:])
    here.work()
    assert here.states == ["done"] * 3
    results = box.rows("result")
    assert [one.predecessor_id for one in results] == [None, results[0].id, results[1].id]
    for number, images in enumerate(([study[0], study[1]], [better, study[1]], [better, late])):
        key, theirs = by_hand(images, two, tmp_path / str(number))
        seg, report = seg_of(box, results[number].id)
        assert results[number].result_key == key
        assert np.array_equal(seg.pixel_array, theirs.pixel_array)
        if not number:
            assert seg.SOPInstanceUID == theirs.SOPInstanceUID
        evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        assert {uid(images[0]), uid(images[1])} <= {one.SeriesInstanceUID for one in evidence}
    here.look()
    here.work()
    assert len(here.jobs) == 3


def test_what_is_missing_is_told_held_and_released_when_it_comes(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    t1 = series("t1", 1)
    here.send(t1)
    assert not here.jobs
    with box.ledger.read() as db:
        (shown,) = studies.latest(db, 1)
    assert "needs T1, FLAIR of one study; found T1" in shown.gatherings[0].why
    here.look(WITHIN_S)
    (job,) = here.jobs
    assert (job.state, job.error_code, here.channels(job.id).keys()) == ("held", "channels_missing", {"T1"})
    assert "nothing fits FLAIR (MR, SeriesDescription *flair*)" in job.error
    with box.ledger.read() as db:
        (shown,) = studies.latest(db, 1)
        (trouble,) = troubles.troubles(db)
    assert not shown.gatherings and "say which series is which channel" in shown.jobs[0].next_step
    assert (trouble.kind, trouble.code, trouble.message) == ("job", "channels_missing", job.error)
    assert here.failures() == [("channels_missing", (uid(t1),), job.error)]
    here.work()
    assert here.states == ["held"]
    here.send(series("flair", 2))
    assert [(one.id, one.state, one.error) for one in here.jobs] == [(job.id, "queued", None)]
    here.clock.after(60)
    assert here.failures() == []  # it may yet succeed


def test_two_that_fit_alike_are_asked_for(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    alike = [series("flair", 2), series("flair", 3)]
    here.send(*alike, series("t1", 1))
    here.look(WITHIN_S)
    (job,) = here.jobs
    assert job.state == "held" and '2 fit FLAIR (series 2 "flair", series 3 "flair")' in job.error
    here.release("--channel", f"flair={uid(alike[1])}")
    here.look()
    assert here.states == ["queued"]
    assert here.channels(job.id)["FLAIR"] == uid(alike[1])


def test_one_that_fits_alike_and_comes_later_changes_nothing(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    here.send(series("t1", 1), series("flair", 2))
    here.work()
    again = series("flair", 3)
    here.send(again)
    here.look(WITHIN_S)
    assert here.states == ["done"]
    with box.ledger.read() as db:
        (shown,) = studies.latest(db, 1)
    assert "FLAIR: it fits as others do" in str(shown.series[2].passed_over)


def test_other_frames_wait_for_a_person(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    here.send(series("t1", 1), series("flair", 2, FrameOfReferenceUID="2.25.9"))
    here.look(WITHIN_S)
    (job,) = here.jobs
    assert (job.state, job.error_code) == ("held", "channel_other_frame")
    here.release("--assume-registered")
    here.look()
    here.work()
    (result,) = box.rows("result")
    assert "registration_assumed" in result.facts


def test_a_job_that_lacks_something_is_given_up(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    here.send(series("t1", 1))
    here.look(WITHIN_S)
    here.medseg("jobs", "dismiss", str(here.jobs[0].id))
    here.look(WITHIN_S)
    assert here.states == ["cancelled"]
    with box.ledger.read() as db:
        assert not troubles.troubles(db)
    here.send(series("flair", 2))
    assert here.states == ["cancelled", "queued"]


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.brats_like(tmp_path_factory.mktemp("bundles") / "three", [T1, T2, FLAIR], own=True)


def test_an_optional_channel_is_waited_for_then_done_without(box: Inbox, optional: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(optional))
    here.send(series("t1", 1), series("flair", 2))
    here.look(WITHIN_S - 20)
    assert not here.jobs
    here.look(20)
    here.work()
    (result,) = box.rows("result")
    assert here.states == ["done"] and "channel_absent" in result.facts
    here.send(series("t2w", 3))
    here.work()
    first, second = box.rows("result")
    assert second.predecessor_id == first.id and "channel_absent" not in second.facts


@pytest.mark.parametrize("listed", ["all", "each by itself"])
def test_a_study_that_is_known_to_be_whole_is_not_waited_for(
    listed: str, box: Inbox, optional: Path, tmp_path: Path
) -> None:
    here = Room(box, tmp_path, rule(optional))
    study = [series("t1", 1), series("flair", 2)]
    peer = box.open()
    for some in study:
        box.store(peer, some)
    lists = [[*study[0], *study[1]]] if listed == "all" else study
    for number, some in enumerate(lists):
        items = [commitments.Item(one.SOPClassUID, one.SOPInstanceUID) for one in some]
        box.ledger.write(commitments.ask, "SENDER", str(number), peer.id, items, here.clock.wall_s)
    box.spool.closed(peer, Ending.RELEASED)
    for _ in range(3):
        here.director.step(*here.clock.after(1))
    here.look()
    assert {one.complete_by for one in box.rows("series")} == {"storage commitment list"}
    assert here.states == (["queued"] if listed == "all" else [])


def test_what_fits_no_channel_is_passed_over(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    here.send(series("knee", 1))
    here.look(WITHIN_S)
    assert not here.jobs
    with box.ledger.read() as db:
        (shown,) = studies.latest(db, 1)
    assert "no channel of bundle two" in str(shown.series[0].passed_over)
    assert [(code, some) for code, some, _ in here.failures()] == [("channels_missing", (shown.series[0].series_uid,))]


def test_a_sites_own_words(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two) + '[channels.two.T1]\nalso = ["*ax 3d brain*"]\n')
    study = [series("t1", 1), series("Ax 3D Brain +C", 3), series("flair", 2)]
    here.send(*study)
    assert here.channels(here.jobs[0].id)["T1"] == uid(study[1])


def test_a_series_of_another_rule_may_be_a_channel_but_none_of_a_rule_that_is_off(
    box: Inbox, two: Path, tmp_path: Path
) -> None:
    alone = '[[rule]]\nname = "alone"\nwhen = { series_description = "*flair*" }\nbundle = "none_such"\n'
    off = '[[rule]]\nwhen = { protocol = "repeat" }\nmode = "off"\n'
    here = Room(box, tmp_path, alone + off + rule(two))
    study = [series("flair", 2), series("t1 x", 3, slices=9, ProtocolName="repeat"), series("t1", 1)]
    here.send(*study)
    of_series, of_study = here.jobs
    assert (of_series.rule, of_series.series_uid) == ("alone", uid(study[0]))
    assert here.channels(of_study.id) == {"T1": uid(study[2]), "FLAIR": uid(study[0])}


def test_another_patient_stops_the_study(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    here.send(series("t1", 1), series("flair", 2))
    wrong = series("other", 3)
    for one in wrong:
        one.PatientID = "SOMEBODY ELSE"
    here.send(wrong)
    here.work()
    assert here.states == ["queued"] and not box.rows("result")
    box.ledger.write(settle.merge, str(wrong[0].StudyInstanceUID), "A", here.clock.wall_s)
    here.director.step(*here.clock.after(4))
    here.look()
    here.work()
    assert here.states == ["done"] and len(box.rows("result")) == 1


def test_a_study_merged_to_another_patient_is_done_anew(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    here.send(series("t1", 1), series("flair", 2))
    here.work()
    wrong = series("other", 3)
    for one in wrong:
        one.PatientID = "SOMEBODY ELSE"
    here.send(wrong)
    box.ledger.write(settle.merge, str(wrong[0].StudyInstanceUID), "B", here.clock.wall_s)
    here.director.step(*here.clock.after(4))
    here.look()
    here.work()
    first, second = box.rows("result")
    assert second.predecessor_id == first.id
    assert seg_of(box, second.id)[0].PatientID == "SOMEBODY ELSE"


def test_a_split_study_is_done_for_the_patient_whose_its_channels_are(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    wrong = series("other", 3)
    for one in wrong:
        one.PatientID = "SOMEBODY ELSE"
    here.send(series("t1", 1), series("flair", 2), wrong)
    box.ledger.write(settle.split, str(wrong[0].StudyInstanceUID), here.clock.wall_s)
    here.director.step(*here.clock.after(4))
    here.look()
    here.work()
    (result,) = box.rows("result")
    assert here.states == ["done"] and seg_of(box, result.id)[0].PatientID != "SOMEBODY ELSE"


def test_a_restart_at_any_moment_loses_nothing_and_does_nothing_twice(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    for some in (series("t1", 1), series("flair", 2, slices=10), series("t1 better", 3, slices=9)):
        here.restart()
        box.send(some)
        here.director.step(*here.clock.after(0))
        here.restart()
        for _ in range(2):  # quiet times start anew
            here.director.step(*here.clock.after(4))
        here.restart()
        here.look()
        here.restart()
        here.look()
    assert here.states == ["cancelled", "queued"]
    claim = box.ledger.write(jobs.claim_job, "worker that dies", here.clock.wall_s, here.clock.wall_s + 5)
    assert claim is not None
    here.clock.after(10)
    here.restart()
    here.work()
    here.restart()
    here.look()
    here.work()
    assert here.states == ["cancelled", "done"] and len(box.rows("result")) == 1


def test_what_comes_while_a_job_runs_is_in_the_next(
    box: Inbox, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Room(box, tmp_path, rule(two))
    late = series("flair", 2, slices=7)
    here.send(series("t1", 1), late[:-1])

    def frozen(*given: Any) -> Any:
        if len(box.rows("series")) and not box.rows("result") and late:
            box.send([late.pop()])
        return freeze(*given)

    monkeypatch.setattr("gateway.work.worker.freeze", frozen)
    here.worker_step()
    assert not box.rows("result")
    here.send([])
    late.clear()
    here.work()
    assert here.states[-1] == "done" and len(box.rows("result")) == 1
    assert "queued" not in here.states and "running" not in here.states


def test_an_image_that_is_lost_fails_the_job_until_it_is_here_again(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    study = [series("t1", 1), series("flair", 2)]
    here.send(*study)
    path = next(row.path for row in box.rows("instance") if row.series_uid == uid(study[1]))
    box.ledger.write(instances.lose_instance, path, here.clock.wall_s)
    here.work()
    (job,) = here.jobs
    assert (job.state, job.error_code) == ("failed", "images_lost")
    (box.folder / path).unlink()
    here.send(study[1])
    assert not box.ledger.write(jobs.retry_job, job.id, here.clock.wall_s)
    here.work()
    assert here.states == ["done"]


def test_a_study_that_is_sent_again_or_asked_for_again(box: Inbox, two: Path, tmp_path: Path) -> None:
    here = Room(box, tmp_path, rule(two))
    study = [series("t1", 1), series("flair", 2)]
    here.send(*study)
    here.work()
    here.clock.after(10)
    here.send(*study)
    assert len(here.jobs) == 1
    here.medseg("jobs", "run", str(study[0][0].StudyInstanceUID), "--bundle", str(two))
    here.look()
    here.work()
    assert [(job.rule, job.state) for job in here.jobs] == [("heads", "done"), ("by hand", "done")]
    assert len(box.rows("result")) == 1


def test_inputs_are_kept_until_the_result_is_confirmed_and_a_purge_ends_all(
    box: Inbox, two: Path, tmp_path: Path
) -> None:
    peer = '[[peer]]\nname = "pacs"\nae_title = "SENDER"\nhost = "127.0.0.1"\nport = 4242\n'
    here = Room(box, tmp_path, "late_s = 0\n[retain]\ninputs_s = 1\nresults_s = 500\n" + peer + rule(two))
    study = [series("t1", 1), series("flair", 2), series("localizer", 3, slices=3)]

    def kept() -> int:
        here.clock.after(20)
        retention = Retention(box.ledger, box.folder)
        while retention.step(here.settings.retain, *here.clock.after(20)):
            pass
        return sum(row.deleted_at is None for row in box.rows("instance"))

    here.send(study[0])
    assert kept() == 6
    here.send(study[2], study[1])
    assert kept() == 15
    here.work()
    assert kept() == 15
    now = here.clock.wall_s
    confirmed = {"state": "confirmed", "stored_at": now, "confirmed_at": now}
    box.ledger.write(lambda db: db.execute(update(delivery).values(**confirmed)))
    assert kept() == 0
    here.clock.after(600)
    assert kept() == 0 and not box.rows("series") and not box.rows("job_channel") and not box.rows("gathering")
    here.send(*study)
    purge(box.ledger, box.folder, str(study[0][0].StudyInstanceUID), here.clock.wall_s)
    here.work()
    assert not any(box.rows(name) for name in ("series", "job", "job_channel", "gathering", "result"))


def test_rules_test_tells_each_channel(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for some in (series("t1", 1), series("flair", 2), series("flair", 4)):
        write_series(some, tmp_path / "study" / str(some[0].SeriesNumber))
    (tmp_path / "medseg.toml").write_text(rule(two))
    told = medseg("rules", "test", tmp_path / "study", "--config", tmp_path / "medseg.toml")
    assert 'channel T1: series 1 "t1"' in told and "channel FLAIR: 2 series fit alike" in told
    assert "not segmented: study" in told and "2 fit FLAIR" in told
    lines = medseg("rules", "test", tmp_path / "study", "--json", "--config", tmp_path / "medseg.toml").splitlines()
    assert [one["series_uid"] for one in json.loads(lines[-1])["channels"]][1] is None


@pytest.mark.slow
def test_a_service_that_is_killed_goes_on_where_it_was(two: Path, tmp_path: Path) -> None:
    service = Serving(tmp_path, "[complete]\nquiet_s = 0.5\nquiet_abort_s = 1\nquiet_late_s = 1\n" + rule(two))
    with contextlib.ExitStack() as at_last:
        service.start()
        at_last.callback(lambda: service.process.poll() is None and service.stop())
        service.send(series("t1", 1))
        wait_for("the study to be waited for", lambda: service.rows("SELECT * FROM gathering WHERE code IS NOT NULL"))
        service.stop(signal.SIGKILL)
        service.start()
        service.send(series("flair", 2))
        wait_for("the job", lambda: service.rows("SELECT * FROM job"))
        service.stop(signal.SIGKILL)
        service.start()
        wait_for("the result", lambda: service.rows("SELECT * FROM result"))
        assert [row.state for row in service.rows("SELECT state FROM job")] == ["done"]
        told = service.medseg("status", str(series("t1", 1)[0].StudyInstanceUID))
        assert service.stop() == 0
        assert "channel FLAIR: series" in told and "channel FLAIR of job 1" in told
        assert len(service.rows("SELECT * FROM result")) == 1
