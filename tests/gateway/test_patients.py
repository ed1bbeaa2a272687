"""Whose images a study's are: as digests, in the ledger, and what the director and people make of it."""

from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from gateway.decide import settle
from gateway.ledger import jobs as jobs_rows
from gateway.ledger import patients
from gateway.ledger.patients import groups, key, letters
from gateway.receive.identity import identify
from gateway.settings.read import read_settings
from gateway.show import studies, text
from medseg.errors import UsageError
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import encode, make_ct
from tests.gateway.spooling import Inbox, inbox

WAIT_S = 60.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("P1", ""), ("P1 ", "")),
        (("P1", ""), (" p1\0", "")),
        (("P 1", ""), ("P1", "")),
        (("\uff30\uff11", ""), ("P1", "")),
        (("MÜLLER7", ""), ("müller7", "")),
        (("P1", "HOSPITAL"), ("p1", "Hospital ")),
        (("P1", ""), ("P1", "HOSPITAL")),
        (("", ""), ("P1", "HOSPITAL")),
        (("", ""), ("", "HOSPITAL")),
    ],
)
def test_these_are_one_patient(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert len(groups((key(*one), key(*other)))) <= 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("P1", ""), ("P2", "")),
        (("P1", ""), ("P01", "")),
        (("P1", "HOSPITAL"), ("P1", "CLINIC")),
        (("P1", "HOSPITAL"), ("P2", "HOSPITAL")),
        (("P1", ""), ("P2", "HOSPITAL")),
    ],
)
def test_these_are_two(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert len(groups((key(*one), key(*other)))) == 2


IDENTITIES = st.tuples(st.sampled_from(["", "A", "B", "C"]), st.sampled_from(["", "X", "Y"]))


@given(st.lists(IDENTITIES, max_size=8))
def test_the_number_of_patients_depends_on_no_order(several: list[tuple[str, str]]) -> None:
    keys = [key(*one) for one in several]
    found = groups(keys)
    assert {frozenset(group) for group in found} == {frozenset(group) for group in groups(reversed(keys))}
    assert sorted(itertools.chain(*found)) == sorted({one for one in keys if one})
    named = letters(keys)
    assert len(set(named.values())) == len(found)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize(
    ("patient", "character_set"), [("P1", None), ("Ä17", "ISO_IR 100"), ("Ä17", "ISO_IR 192"), ("山田1", "ISO_IR 192")]
)
def test_a_patient_is_read_from_the_first_bytes_in_any_character_set(
    syntax: str, patient: str, character_set: str | None
) -> None:
    one = make_ct(PatientID=patient, IssuerOfPatientID="H")
    if character_set:
        one.SpecificCharacterSet = character_set
    assert identify(encode(one, syntax), syntax, whole=True).patient == key(patient, "H")


def test_what_is_wrong_with_a_patient_id_costs_no_image() -> None:
    one = make_ct(SpecificCharacterSet="NO SUCH SET")
    data = encode(one).replace(b"\x10\x00\x20\x00LO\x02\x00P ", b"\x10\x00\x20\x00LO\x02\x00\xff\xfe")
    assert identify(data, "1.2.840.10008.1.2.1", whole=True).patient


def renamed(series: list[Dataset], patient: str) -> list[Dataset]:
    """The same images, corrected."""
    return [_with(one, PatientID=patient, PatientName=f"Test^{patient}") for one in series]


def _with(one: Dataset, **changes: str) -> Dataset:
    changed = deepcopy(one)
    for keyword, value in changes.items():
        setattr(changed, keyword, value)
    return changed


class Room:
    """An inbox and a director."""

    def __init__(self, box: Inbox, folder: Path) -> None:
        self.box, self.clock = box, Clock()
        self.director = Director(box.ledger, box.folder, read_settings("", folder))

    def settle_down(self) -> None:
        self.box.compare()
        self.director.step(*self.clock.after(1))
        self.director.step(*self.clock.after(WAIT_S))
        self.director.step(*self.clock.after(1))

    def send(self, series: list[Dataset]) -> None:
        self.box.send(series)
        self.settle_down()

    def states(self) -> list[str]:
        return sorted(row.state for row in self.box.rows("series"))

    def jobs(self) -> list[str]:
        return [job.state for job in self.box.rows("job") if job.revision]

    def stopped(self) -> bool:
        return bool(self.box.rows("patient_conflict")) and self.box.rows("patient_conflict")[-1].state == "open"


def test_half_a_correction_stops_and_all_of_it_goes_on(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        here, old = Room(box, tmp_path), phantom(PatientID="OLD")
        here.send(old)
        assert here.jobs() == ["queued"]
        here.send(renamed(old[:3], "NEW"))
        assert here.stopped() and here.states() == ["held"]
        with box.ledger.read() as db:
            assert patients.open_conflicts(db)
        here.send(renamed(old[3:], "NEW"))
        assert not box.rows("patient_conflict") and here.states() == ["complete"]
        assert here.jobs() == ["cancelled", "queued"]
        assert [row.kind for row in box.rows("event") if row.kind.startswith("patient.")] == [
            "patient.conflict",
            "patient.settled",
        ]


def test_another_series_of_another_patient_stops_the_study(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        here, one, other = Room(box, tmp_path), phantom(1, PatientID="A"), phantom(2, PatientID="B")
        for image in other:
            image.StudyInstanceUID = one[0].StudyInstanceUID
        here.send(one)
        here.send(other)
        assert here.stopped() and here.states() == ["complete", "held"]
        assert box.ledger.write(jobs_rows.claim_job, "w", 1e12, 2e12) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientID": "a "},
        {"PatientID": ""},
        {"IssuerOfPatientID": "HOSPITAL"},
        {"PatientName": "Another^Name"},
    ],
    ids=["spelled otherwise", "none", "an issuer", "another name alone"],
)
def test_no_contradiction_stops_nothing(tmp_path: Path, changes: dict[str, str]) -> None:
    with inbox(tmp_path) as box:
        here, series = Room(box, tmp_path), phantom(PatientID="A")
        here.send([*series[:3], *(_with(one, **changes) for one in series[3:])])
        assert here.states() == ["complete"] and here.jobs() == ["queued"] and not box.rows("patient_conflict")


def test_a_report_of_another_patient_is_no_image(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        here, series = Room(box, tmp_path), phantom(PatientID="A")
        report = _with(series[0], PatientID="B", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", SeriesInstanceUID="1.9")
        report.SOPInstanceUID = "1.9.1"
        here.send([*series, report])
        assert not box.rows("patient_conflict")


def test_a_person_is_shown_letters_and_settles(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        here, old = Room(box, tmp_path), phantom(PatientID="SECRET-OLD")
        study = old[0].StudyInstanceUID
        here.send(old)
        here.send(renamed(old[:2], "SECRET-NEW"))
        with box.ledger.read() as db:
            found = studies.study(db, study)
        assert found is not None and found.conflict is not None
        assert [(one.letter, one.instances, one.calling_ae) for one in found.conflict.patients] == [
            ("A", 4, "SENDER"),
            ("B", 2, "SENDER"),
        ]
        lines = "\n".join(text.lines(found))
        assert "patient A: 4 images" in lines and "medseg studies" in lines and "SECRET" not in lines
        assert b"SECRET" not in (tmp_path / "ledger.db").read_bytes()
        with pytest.raises(UsageError, match="expected the letter of a patient, A or B"):
            box.ledger.write(settle.merge, study, "C", 1.0)
        box.ledger.write(settle.merge, study, "b", here.clock.wall_s)
        here.settle_down()
        assert here.states() == ["complete"] and here.jobs() == ["cancelled", "queued"]
        third = _with(old[5], PatientID="SECRET-THIRD")
        here.send([third])
        assert here.stopped()


def test_there_is_nothing_to_settle_in_a_study_of_one_patient(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        here, series = Room(box, tmp_path), phantom()
        here.send(series)
        for move in (
            lambda db: settle.split(db, series[0].StudyInstanceUID, 1.0),
            lambda db: settle.split(db, "9", 1.0),
        ):
            with pytest.raises(UsageError, match="nothing to settle"):
                box.ledger.write(move)
