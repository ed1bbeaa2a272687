"""The worker, job by job, in this process: what it files, and what becomes of jobs that fail or are taken away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import update

from gateway.ledger import deliveries, instances, jobs, results, tables
from gateway.ledger.jobs import NewJob
from gateway.ledger.results import NewResult
from gateway.ledger.tables import delivery
from gateway.serve.processes import LedgerContext
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings
from gateway.settings.read import read_settings
from gateway.show import studies
from gateway.work.worker import Worker
from tests.acceptance.test_geometry import threshold_bundle
from tests.gateway.beside import BESIDE, beside
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox
from tests.medseg.bundle.zoo import spleen_like

PEER = '[[peer]]\nname = "pacs"\nae_title = "SENDER"\nhost = "127.0.0.1"\nport = 4242\n'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)


class Room:
    """An inbox, a director and a worker."""

    def __init__(self, box: Inbox, settings: GatewaySettings) -> None:
        self.box, self.clock = box, Clock()
        self.settings = replace(settings, gateway=replace(settings.gateway, spool=box.folder))
        self.director = Director(box.ledger, box.folder, self.settings)
        self.stop = threading.Event()
        self.live = Live(self.settings)
        self.worker = Worker(box.ledger, box.folder, LedgerContext(box.ledger, self.live), self.stop, owner="worker")

    def make_job(self, series: list[object]) -> None:
        self.box.send(series)  # type: ignore[arg-type]
        self.director.step(*self.clock.after(1))
        self.director.step(self.clock.after(3)[0], time.time())


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(tmp_path) as opened:
        yield opened


def room(box: Inbox, tmp_path: Path, rule: str) -> Room:
    return Room(box, read_settings(f"[complete]\nquiet_late_s = 3\n{PEER}[[rule]]\n{rule}\n", tmp_path))


def test_a_result_is_frozen_and_waits_for_the_caller(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here = room(box, tmp_path, f'bundle = "{bundle}"')
    here.make_job(phantom())
    assert here.worker.step() and not here.worker.step()
    (job,), (result,) = box.rows("job"), box.rows("result")
    assert (job.state, result.job_id, result.bundle, result.predecessor_id) == ("done", job.id, "spleen_test", None)
    for one in box.rows("result_object"):
        file = box.folder / one.path
        assert file.parent.name == result.result_key and file.stat().st_size == one.size_bytes
        assert dcmread(file).SOPInstanceUID == one.sop_instance_uid
    assert {one.kind for one in box.rows("result_object")} >= {"sr"}
    assert {(one.destination, one.state) for one in box.rows("delivery")} == {("pacs", "queued")}
    assert len(box.rows("delivery")) == len(box.rows("result_object"))


def test_a_shadow_is_not_sent(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here = room(box, tmp_path, f'bundle = "{bundle}"\nmode = "shadow"')
    here.make_job(phantom())
    here.worker.step()
    assert box.rows("result") and not box.rows("delivery")


def test_a_job_keeps_what_its_rule_said(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here = room(box, tmp_path, f'name = "old"\nbundle = "{bundle}"\nresults = ["sr"]\nsend_to = ["pacs"]')
    here.make_job(phantom())
    here.live.now = read_settings('[[rule]]\nname = "new"\nmode = "off"\n', tmp_path)
    here.worker.step()
    assert [(job.rule, job.state) for job in box.rows("job")] == [("old", "done")]
    assert [one.kind for one in box.rows("result_object")] == ["sr"]
    assert [one.destination for one in box.rows("delivery")] == ["pacs"]  # no peer any more: it will be a dead letter


def test_what_is_missing_is_told_on_the_page_and_in_the_report(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    """Images that headers announce, slices that are in no volume, and what the sender says there is."""
    here, series = room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=8)
    for one in series:
        one.ImagesInAcquisition = 11
    for one in series[6:]:
        one.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    localizer = phantom(seed=1)[0]
    localizer.StudyInstanceUID, localizer.SeriesInstanceUID = series[0].StudyInstanceUID, series[0].SeriesInstanceUID
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    here.make_job([*series, localizer])
    here.director.step(here.clock.after(600)[0], time.time())  # what is announced is waited for
    box.ledger.write(lambda db: db.execute(update(tables.series).values(expected=15)))
    assert here.worker.step()
    with box.ledger.read() as db:
        (study,) = studies.latest(db, 1)
    (job,) = study.series[0].jobs
    assert job.result is not None
    said = [flag for flag in job.result.flags if "missing:" in flag or "left out:" in flag]
    assert len(said) == 3
    assert said[0].startswith("2 slices left out: 2 slices apart from the others (ImageOrientationPatient=")
    assert said[1:] == [
        "2 images missing: ImagesInAcquisition announces 11, 9 came",
        "6 objects missing: the sender says that there are 15, 9 came",
    ]
    (sr,) = [box.folder / one.path for one in box.rows("result_object") if one.kind == "sr"]
    texts = [str(element.value) for element in dcmread(sr).iterall() if element.keyword == "TextValue"]
    assert set(said) <= set(texts)


def test_a_later_result_names_the_one_before(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"'), phantom()
    here.make_job(series[:5])
    here.worker.step()
    here.make_job(series[5:])
    here.worker.step()
    first, second = box.rows("result")
    assert second.predecessor_id == first.id and first.predecessor_id is None


def test_a_job_whose_series_has_changed_is_left_to_the_next(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"'), phantom()
    here.make_job(series[:5])
    box.send(series[5:])
    assert not here.worker.step()
    here.make_job([])
    assert here.worker.step() and not here.worker.step()
    assert [(job.state, job.revision) for job in box.rows("job")] == [("cancelled", 5), ("done", 6)]


def test_a_job_that_was_held_takes_in_what_came_too_late(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"\nmode = "hold"'), phantom()
    here.make_job(series[:5])
    here.clock.after(here.settings.complete.late_s)
    here.make_job(series[5:])
    assert box.ledger.write(jobs.release_held, 1, time.time())
    assert here.worker.step() and here.worker.step() and not here.worker.step()
    assert [(job.state, job.revision) for job in box.rows("job")] == [("done", 6)]


@pytest.mark.parametrize("sent_again", ["before it is claimed", "after it failed", "never"])
def test_a_job_whose_images_were_lost_is_done_in_the_end(
    box: Inbox, tmp_path: Path, bundle: Path, sent_again: str
) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"'), phantom()
    here.make_job(series)
    path = box.rows("instance")[0].path
    (box.folder / path).unlink()
    assert box.ledger.write(instances.lose_instance, path, time.time())
    here.director = Director(box.ledger, box.folder, here.settings)
    if sent_again == "before it is claimed":
        here.make_job(series[:1])
    else:
        assert here.worker.step() and not here.worker.step()
        (job,) = box.rows("job")
        assert (job.state, job.error_code) == ("failed", "images_lost") and "1 of its images" in job.error
        if sent_again == "after it failed":
            here.make_job(series[:1])
        assert box.ledger.write(jobs.retry_job, 1, time.time()) == ""
    while here.worker.step():
        pass
    lost = sent_again == "never"
    assert [(job.state, job.revision) for job in box.rows("job")] == [("done", 7 if lost else 8)]
    assert box.rows("series")[0].instances == (5 if lost else 6)


def test_a_series_that_no_default_bundle_fits_is_no_failure(box: Inbox, tmp_path: Path) -> None:
    here = room(box, tmp_path, 'name = "all"')
    here.make_job(phantom())
    here.worker.step()
    (job,) = box.rows("job")
    assert (job.state, job.error_code) == ("cancelled", "does_not_fit") and not box.rows("result")


def two_slices() -> list[Dataset]:
    return phantom(slices=2)


def a_localizer() -> list[Dataset]:
    return phantom(slices=3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


@pytest.mark.parametrize("named", [True, False], ids=["by the bundle of the rule", "by any bundle"])
@pytest.mark.parametrize(
    ("made", "state", "code"),
    [
        (two_slices, "cancelled", "too_few_slices"),
        (a_localizer, "cancelled", "localizer"),
    ],
)
def test_what_forms_no_volume_is_passed_over_with_its_reason(
    box: Inbox, tmp_path: Path, bundle: Path, made: Callable[[], list[Dataset]], state: str, code: str, named: bool
) -> None:
    here = room(box, tmp_path, f'bundle = "{bundle}"' if named else 'name = "all"')
    here.make_job(made())
    here.worker.step()
    (job,) = box.rows("job")
    assert (job.state, job.error_code) == (state, code)
    with box.ledger.read() as db:
        (series,) = studies.latest(db, 1)[0].series
    assert (series.passed_over == job.error) is (state == "cancelled")


def test_a_series_that_was_passed_over_is_asked_again_when_more_comes(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"'), phantom()
    here.make_job(series[:2])
    here.worker.step()
    here.make_job(series[2:])
    here.director.step(here.clock.after(here.settings.complete.quiet_late_s)[0], time.time())
    here.worker.step()
    assert [(job.state, job.revision) for job in box.rows("job")] == [("cancelled", 2), ("done", 6)]
    with box.ledger.read() as db:
        assert studies.latest(db, 1)[0].series[0].passed_over is None


def test_a_bundle_that_is_not_there_fails_for_good(box: Inbox, tmp_path: Path) -> None:
    here = room(box, tmp_path, 'bundle = "nowhere"')
    here.make_job(phantom())
    here.worker.step()
    (job,) = box.rows("job")
    assert (job.state, job.error_code) == ("failed", "no_such_bundle")


def test_a_stopped_worker_gives_its_job_back(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here = room(box, tmp_path, f'bundle = "{bundle}"')
    here.make_job(phantom())
    here.stop.set()
    here.worker.step()
    (job,) = box.rows("job")
    assert (job.state, job.error_code, job.attempt) == ("queued", "interrupted", 1)
    here.stop.clear()
    here.worker.step()
    assert box.rows("job")[0].state == "done"


def test_who_comes_back_late_files_nothing(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here = room(box, tmp_path, f'bundle = "{bundle}"')
    here.make_job(phantom())
    now = time.time()
    late = box.ledger.write(jobs.claim_job, "late", now, now - 1)
    assert late is not None
    here.worker.step()
    (result,) = box.rows("result")
    again = NewResult("another key", "spleen_test", "1", [], ())
    assert not box.ledger.write(results.finish_job, late, again, ["pacs"], time.time())
    assert [one.id for one in box.rows("result")] == [result.id]


def test_the_default_bundle_that_fits_is_found(
    box: Inbox, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_BUNDLES", str(bundle))
    here = room(box, tmp_path, 'results = ["sr"]')
    here.make_job(phantom())
    here.worker.step()
    assert [(one.bundle, one.result_key != "") for one in box.rows("result")] == [("spleen_test", True)]
    assert [one.kind for one in box.rows("result_object")] == ["sr"]


def two_phases() -> list[Dataset]:
    """A series of two acquisitions, the later one last."""
    early, late = phantom(AcquisitionNumber=1), phantom(AcquisitionNumber=2)
    for one in late:
        one.SOPInstanceUID += ".2"
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return [*early, *late]


def job_of(box: Inbox) -> NewJob:
    """The job that there is, as it was when it was made."""
    (job,) = box.rows("job")
    return NewJob(**{one.name: getattr(job, one.name) for one in fields(NewJob)} | {"state": "queued"})


def test_a_series_of_two_phases_gives_one_result_with_the_objects_of_both(
    box: Inbox, tmp_path: Path, bundle: Path
) -> None:
    here = room(box, tmp_path, f'bundle = "{bundle}"\nresults = ["sr"]')
    here.make_job(two_phases())
    here.worker.step()
    (result,) = box.rows("result")
    objects = box.rows("result_object")
    assert {one.kind for one in objects} == {"sr", "sr.2"}
    assert result.result_key not in {Path(one.path).parent.name for one in objects}
    assert len(box.rows("delivery")) == 2


def test_a_late_slice_of_one_phase_replaces_its_object_alone(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"\nresults = ["sr"]'), two_phases()
    here.make_job(series[:-1])
    here.director.step(here.clock.after(here.settings.complete.quiet_gap_s)[0], time.time())
    here.worker.step()
    first, replaced = box.rows("result_object")
    here.make_job(series[-1:])
    here.worker.step()
    assert [job.state for job in box.rows("job")] == ["done", "done"]
    result = box.rows("result")[1]
    objects = {one.sop_instance_uid: one for one in box.rows("result_object") if one.result_id == result.id}
    assert {one.kind for one in objects.values()} == {"sr", "sr.2"}
    assert first.sop_instance_uid in objects and replaced.sop_instance_uid not in objects
    with box.ledger.read() as db:
        deliveries.cancel_superseded(db)
        sent = {row.sop_instance_uid for row in deliveries.deliveries(db, "queued")}
    assert sent == objects.keys()


def test_an_object_that_is_current_again_is_sent_after_all(box: Inbox, tmp_path: Path, bundle: Path) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"\nresults = ["sr"]'), two_phases()
    here.make_job(series)
    here.worker.step()
    box.ledger.write(lambda db: db.execute(update(delivery).values(state="cancelled")).rowcount)
    last = box.rows("instance")[-1].path
    assert box.ledger.write(instances.lose_instance, last, time.time())
    now = time.time()
    new = replace(job_of(box), revision=len(series) + 1)
    again = box.ledger.write(jobs.make_job, new, now)
    here.worker.step()
    assert box.rows("job")[-1].error_code == "less_complete"
    assert box.ledger.write(jobs.retry_job, again, time.time()) == ""
    here.worker.step()
    assert sorted(row.state for row in box.rows("delivery")) == ["cancelled", "queued", "queued"]


@pytest.mark.parametrize("at", [0, 3, 6], ids=["first", "in the middle", "last"])
def test_what_lies_beside_the_slices_changes_no_result(box: Inbox, tmp_path: Path, bundle: Path, at: int) -> None:
    here, series = room(box, tmp_path, f'bundle = "{bundle}"\nresults = ["seg"]'), phantom()
    alone = phantom(SeriesInstanceUID=f"{series[0].SeriesInstanceUID}.1")
    for one in alone:
        one.SOPInstanceUID += ".1"
    things = [beside(series[0], what) for what in BESIDE]
    here.make_job([*series[:at], *things, *series[at:]])
    here.director.step(here.clock.after(here.settings.complete.quiet_gap_s)[0], time.time())
    assert here.worker.step() and not here.worker.step()
    here.make_job(alone)
    assert here.worker.step() and not here.worker.step()
    facts = [json.loads(row.facts)[0] for row in box.rows("result")]
    assert [job.state for job in box.rows("job")] == ["done", "done"], box.rows("job")
    assert facts[0]["segments"] == facts[1]["segments"]


def test_a_rule_may_ask_for_other_forms(box: Inbox, tmp_path: Path) -> None:
    bundle = threshold_bundle(tmp_path / "threshold")
    more = 'results = ["seg", "labelmap", "sr", "ko", "rtstruct"]\nsend_to = ["pacs"]'
    here = room(box, tmp_path, f'bundle = "{bundle}"\n{more}')
    here.make_job(phantom())
    assert here.worker.step()
    objects = box.rows("result_object")
    assert sorted(one.kind for one in objects) == ["ko", "labelmap", "rtstruct", "seg", "sr"]
    for one in objects:
        written = dcmread(box.folder / one.path, stop_before_pixels=True)
        assert (written.SOPClassUID, written.SOPInstanceUID) == (one.sop_class_uid, one.sop_instance_uid)
