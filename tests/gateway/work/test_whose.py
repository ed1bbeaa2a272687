"""Results of studies whose images name several patients, or that come again: whose they are, what they replace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import text

from gateway.decide import settle
from gateway.ledger import deliveries, instances, jobs
from gateway.receive.comparison import Comparison
from gateway.work.worker import Worker
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import encode
from tests.gateway.spooling import Inbox, inbox
from tests.gateway.work.test_worker import Room, room
from tests.medseg.bundle.zoo import spleen_like

WAIT_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)


@pytest.fixture
def here(tmp_path: Path, bundle: Path) -> Iterator[Room]:
    with inbox(tmp_path) as box:
        yield room(box, tmp_path, f'bundle = "{bundle}"\nresults = ["sr"]')


def changed(series: list[Dataset], **changes: Any) -> list[Dataset]:
    """The same images, corrected."""
    found = []
    for one in series:
        other = deepcopy(one)
        for keyword, value in changes.items():
            setattr(other, keyword, value)
        found.append(other)
    return found


def other_series(series: list[Dataset], study_uid: str) -> list[Dataset]:
    return changed(series, StudyInstanceUID=study_uid)


def handle(here: Room, images: list[Dataset]) -> None:
    """Send, wait, decide, work."""
    if images:
        here.box.send(images)
    compare_all(here.box)
    for wait_s in (1, WAIT_S, 1):
        here.director.step(here.clock.after(wait_s)[0], time.time())
    while here.worker.step():
        pass


def compare_all(box: Inbox) -> None:
    while Comparison(box.ledger, box.folder).step():
        pass


def reports(here: Room) -> list[Dataset]:
    """All that were made, in order."""
    objects = sorted(here.box.rows("result_object"), key=lambda row: row.id)
    return [dcmread(here.box.folder / row.path) for row in objects]


def named(report: Dataset) -> set[str]:
    """What a report says that it takes the place of."""
    return {
        item.ReferencedSOPInstanceUID
        for study in report.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def sources(report: Dataset) -> int:
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    return max(len(series.ReferencedSOPSequence) for series in study.ReferencedSeriesSequence)


def current(here: Room) -> list[Any]:
    rows = here.box.rows("result")
    replaced = {row.predecessor_id for row in rows}
    return [row for row in rows if row.id not in replaced]


def test_a_correction_gives_one_result_that_names_the_first(here: Room) -> None:
    old = phantom(PatientID="OLD")
    handle(here, old)
    handle(here, changed(old[:3], PatientID="NEW"))
    assert len(reports(here)) == 1
    handle(here, changed(old[3:], PatientID="NEW"))
    first, second = reports(here)
    assert (second.PatientID, sources(second), named(second)) == ("NEW", 6, {first.SOPInstanceUID})
    assert len(current(here)) == 1


def test_images_without_an_id_are_of_the_patient_of_the_others(here: Room) -> None:
    series = phantom(PatientID="A", IssuerOfPatientID="CLINIC", PatientName="Doe^John")
    handle(here, [*changed(series[:3], PatientID="", IssuerOfPatientID="", PatientName=""), *series[3:]])
    (report,) = reports(here)
    assert (report.PatientID, report.IssuerOfPatientID, report.PatientName) == ("A", "CLINIC", "Doe^John")
    assert sources(report) == 6


def test_an_id_that_comes_later_is_a_completion(here: Room) -> None:
    series = phantom(PatientID="A")
    handle(here, changed(series, PatientID=""))
    handle(here, series)
    first, second = reports(here)
    assert (first.PatientID, second.PatientID, named(second)) == ("", "A", {first.SOPInstanceUID})
    handle(here, changed(series, PatientID=""))  # what had come before
    handle(here, changed(series, PatientID="", InstitutionName="Clinic"))  # and the same once more, a little otherwise
    assert len(reports(here)) == 2


@pytest.mark.parametrize(("letter", "patient"), [("A", "OLD"), ("B", "NEW")])
def test_a_merged_series_is_one_volume_of_the_patient_that_was_named(here: Room, letter: str, patient: str) -> None:
    old = phantom(PatientID="OLD", PatientName="Old^Name", AccessionNumber="1", SpecificCharacterSet="ISO_IR 100")
    study = old[0].StudyInstanceUID
    new = {"PatientID": "NEW", "PatientName": "Neü^Name", "AccessionNumber": "2", "SpecificCharacterSet": "ISO_IR 192"}
    handle(here, [*old[:3], *changed(old[3:], **new)])
    assert not reports(here)
    here.box.ledger.write(settle.merge, study, letter, time.time())
    handle(here, [])
    (report,) = reports(here)
    assert (report.PatientID, sources(report)) == (patient, 6)
    expected = old[0] if patient == "OLD" else changed(old[:1], **new)[0]
    for keyword in ("PatientName", "AccessionNumber", "SpecificCharacterSet"):
        assert report[keyword].value == expected[keyword].value


def test_results_of_other_series_are_made_anew_under_the_identity_that_won(here: Room) -> None:
    one, other = phantom(1, PatientID="A"), phantom(2, PatientID="B")
    handle(here, one)
    other = other_series(other, one[0].StudyInstanceUID)
    handle(here, other)
    (first,) = reports(here)
    study = one[0].StudyInstanceUID
    done = here.box.ledger.write(settle.merge, study, "B", time.time())
    assert len(done.jobs) == 1
    assert [row.state for row in here.box.rows("delivery")] == ["cancelled"]  # it was not sent, and is wrong now
    handle(here, [])
    made = reports(here)[1:]
    assert {report.PatientID for report in made} == {"B"} and len(made) == 2
    (again,) = [report for report in made if named(report)]
    assert named(again) == {first.SOPInstanceUID}
    done = here.box.ledger.write(settle.merge, study, "A", time.time())
    assert len(done.jobs) == 2
    handle(here, [])
    assert [report.PatientID for report in reports(here)[3:]] == ["A", "A"] and len(current(here)) == 2
    assert all(named(report) for report in reports(here)[3:])


def test_what_is_split_goes_on_by_itself(here: Room) -> None:
    """Half of a series came again under another patient: of each patient what names them, whole."""
    old = phantom(slices=8, PatientID="A")
    handle(here, old)
    handle(here, changed(old[:4], PatientID="B"))
    (first,) = reports(here)
    here.box.ledger.write(settle.split, old[0].StudyInstanceUID, time.time())
    handle(here, [])
    made = {str(report.PatientID): report for report in reports(here)}
    assert {patient: sources(report) for patient, report in made.items()} == {"A": 8, "B": 4}
    assert made["A"].SOPInstanceUID == first.SOPInstanceUID  # it holds as it is
    assert named(made["B"]) == {first.SOPInstanceUID} and len(current(here)) == 1


def test_nothing_leaves_while_it_is_not_settled(here: Room) -> None:
    series = phantom(PatientID="A")
    handle(here, series)
    assert [row.state for row in here.box.rows("delivery")] == ["queued"]
    here.box.send(changed(series[:1], PatientID="B"))
    now = time.time()
    assert here.box.ledger.write(deliveries.claim_delivery, "pacs", "s", now, now + 9) is None
    here.box.ledger.write(settle.merge, series[0].StudyInstanceUID, "A", now)
    assert here.box.ledger.write(deliveries.claim_delivery, "pacs", "s", now, now + 9) is not None


def test_what_comes_while_a_result_is_made_keeps_it_from_being_filed(
    here: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = phantom(PatientID="A")
    segment = Worker._segment

    def and_be_overtaken(*arguments: Any) -> Any:
        done = segment(*arguments)
        here.box.send(changed(series[:1], PatientID="B"))
        return done

    monkeypatch.setattr(Worker, "_segment", and_be_overtaken)
    handle(here, series)
    monkeypatch.undo()
    handle(here, [])
    assert not here.box.rows("result") and [job.state for job in here.box.rows("job")] == ["queued"]


def test_images_that_were_filed_before_anybody_looked_are_not_mixed(here: Room) -> None:
    series = phantom(PatientID="A")
    here.box.send([*series[:3], *changed(series[3:], PatientID="B")])
    for query in ("UPDATE instance SET patient = NULL", "DELETE FROM study_patient", "DELETE FROM patient_conflict"):
        here.box.ledger.write(lambda db, query=query: db.execute(text(query)).rowcount)  # type: ignore[misc]
    handle(here, [])
    assert not here.box.rows("result") and [row.state for row in here.box.rows("patient_conflict")] == ["open"]


def test_the_same_images_in_another_form_are_not_segmented_again(here: Room) -> None:
    series = phantom(PatientID="A")
    handle(here, series)
    for one in series:
        one.add_new(0x00090010, "LO", "SOMEBODY")
        one.RetrieveAETitle = "PACS"
    assert encode(series[0])
    handle(here, series)
    assert [job.state for job in here.box.rows("job")] == ["done"] and len(reports(here)) == 1
    assert [row.state for row in here.box.rows("instance")].count("copy") == 6


def test_what_is_less_complete_replaces_nothing_until_a_person_says_so(here: Room) -> None:
    """Half of the series comes again in another frame of reference: two stacks of three where one of six was."""
    series = phantom(PatientID="A")
    handle(here, series)
    handle(here, changed(series[:3], FrameOfReferenceUID="1.2.3"))
    done, failed = here.box.rows("job")
    assert (done.state, failed.state, failed.error_code) == ("done", "failed", "less_complete")
    assert "in pieces of 3 and 3" in failed.error and len(current(here)) == 1 and len(reports(here)) == 1
    assert here.box.ledger.write(jobs.retry_job, failed.id, time.time()) == ""
    handle(here, [])
    first, *others = reports(here)
    assert len(others) == 2 and {frozenset(named(one)) for one in others} == {frozenset({first.SOPInstanceUID})}


def test_the_whole_in_another_frame_of_reference_replaces_it(here: Room) -> None:
    series = phantom(PatientID="A")
    handle(here, series)
    handle(here, changed(series, FrameOfReferenceUID="1.2.3"))
    first, second = reports(here)
    assert named(second) == {first.SOPInstanceUID}


def test_an_old_version_in_another_form_stops_nothing_for_long(here: Room) -> None:
    """The correction is whole; then an archive sends what it had before, encoded anew."""
    old = phantom(PatientID="OLD")
    handle(here, old)
    handle(here, changed(old, PatientID="NEW"))
    handle(here, changed(old, InstitutionName="Clinic"))
    assert not here.box.rows("patient_conflict")
    assert [str(report.PatientID) for report in reports(here)] == ["OLD", "NEW"]


def test_after_a_restart_a_copy_is_no_correction(here: Room) -> None:
    series = phantom(PatientID="A")
    handle(here, series[:5])
    handle(here, changed(series[:5], InstitutionName="Clinic"))
    handle(here, series[5:])
    assert [job.state for job in here.box.rows("job")] == ["done", "done"]
    lost = here.box.rows("instance")[0].path
    assert here.box.ledger.write(instances.lose_instance, lost, time.time())
    here.director = Director(here.box.ledger, here.box.folder, here.settings)
    handle(here, series[:1])
    assert len(here.box.rows("job")) == 2 and here.box.rows("series")[0].state == "complete"
