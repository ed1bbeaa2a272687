"""Pseudonyms, dates and the file of the key."""

from __future__ import annotations

import logging
import pickle
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from medseg import errors
from medseg.deidentify.dates import moved
from medseg.deidentify.key import BadKey, read_key
from medseg.deidentify.pseudonyms import Pseudonyms
from medseg.deidentify.words import Words, unnamed

ONE, OTHER = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)


def study(patient: str, day: str = "20200229", **values: str) -> Dataset:
    dataset = Dataset()
    dataset.PatientID, dataset.StudyDate, dataset.StudyInstanceUID = patient, day, "1.2.3.4"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_key_gives_the_same_everywhere_and_another_key_others() -> None:
    again = pickle.loads(pickle.dumps(ONE))
    for kind in ("uid", "patient_id", "name", "mark"):
        names = [getattr(one, kind)("1.2.3.4.5") for one in (ONE, again, OTHER)]
        assert names[0] == names[1] != names[2]
    assert ONE.fingerprint != OTHER.fingerprint and ONE.salt != OTHER.salt
    assert "1111" not in repr(ONE) and ONE.key.hex() not in repr(ONE)
    assert len({ONE.uid("a"), ONE.patient_id("a"), ONE.name("a"), ONE.mark("a"), ONE.salt, ONE.fingerprint}) == 6


def test_a_patient_is_moved_by_as_much_in_every_study() -> None:
    first, second = ONE.person(study("p1")), ONE.person(study("p1", StudyInstanceUID="1.2.3.5"))
    assert first.pseudonym == second.pseudonym and first.days == second.days
    moved_days = [datetime.strptime(first.date(day), "%Y%m%d") for day in ("20200229", "20200301")]
    assert (moved_days[1] - moved_days[0]).days == 1
    assert len({ONE.person(study(f"p{number}")).days for number in range(50)}) > 45
    assert all(-3652 < ONE.person(study(f"p{number}")).days <= -366 for number in range(50))
    assert OTHER.person(study("p1")).days != first.days


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ({"PatientName": "A^B"}, {"PatientName": "A^B", "StudyInstanceUID": "9.9"}, True),
        ({"PatientName": "A^B"}, {"PatientName": "A^C"}, False),
        ({}, {"StudyInstanceUID": "9.9"}, False),
        ({"StudyInstanceUID": "9.9"}, {"StudyInstanceUID": "9.9"}, True),
    ],
)
def test_a_patient_without_an_id(left: dict[str, str], right: dict[str, str], same: bool) -> None:
    people = [ONE.person(study("", **values)) for values in (left, right)]
    assert (people[0] == people[1]) is same


@pytest.mark.parametrize(
    ("text", "days", "expected"),
    [
        ("20200301", -1, "20200229"),
        ("2020.03.01", -1, "20200229"),
        ("20200301101112.123456+0100", -366, "20190301101112.123456+0100"),
        ("20200301\\20200302 ", 1, "20200302\\20200303"),
        ("20201301", 1, ""),
        ("2020", 1, ""),  # a DT of no whole day
        ("00010101", -5, ""),
        ("garbled", 1, ""),
        ("", 1, ""),
    ],
)
def test_dates(text: str, days: int, expected: str) -> None:
    assert moved(text, days) == expected


@given(st.dates(min_value=datetime(1900, 1, 1).date()), st.integers(-3652, 3652))
def test_there_and_back(day: object, days: int) -> None:
    text = f"{day:%Y%m%d}"
    assert moved(moved(text, days), -days) in (text, "")


def test_a_key_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "study.key"
    with pytest.raises(BadKey, match="no such key file"):
        read_key(path)
    key = read_key(path, make=True)
    assert (len(key), path.stat().st_mode & 0o777) == (32, 0o600)
    assert read_key(path, make=True) == read_key(path) == key
    assert [each.name for each in tmp_path.iterdir()] == ["study.key"]
    with pytest.raises(BadKey, match="handed on"):
        read_key(path, out=tmp_path)
    path.chmod(0o640)
    with pytest.raises(BadKey, match=r"mode 640.*expected 600"):
        read_key(path)
    path.chmod(0o600)
    for text in ("secret", "0" * 63, "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(BadKey, match="64 hexadecimal") as raised:
            read_key(path)
        assert text not in str(raised.value).removeprefix(str(path))
    assert not caplog.records


def test_words_keep_what_is_of_the_image() -> None:
    words = Words.about(ONE, study("PLANT-77", SeriesDescription="Head of Smith"))
    text = "series 1.2.3.4.5: 'Head': head of smith, of plant-77: no slice at 12.5 mm of 2.25.123456789, version 1.2.3."
    one, other = ONE.uid("1.2.3.4.5"), ONE.uid("2.25.123456789")
    told = words.told(text)
    assert told == f"series {one}: '...': ..., of ...: no slice at 12.5 mm of {other}, version 1.2.3."
    assert ONE.in_text("in 1.2.3.4.5.") == f"in {one}."


def test_errors_are_told_by_their_kind() -> None:
    uid = "1.2.3.4.5.6"
    refused = unnamed(errors.GeometryRefused(uid, "gap", f"no slice at 12 mm in {uid}"), ONE)
    assert str(refused) == f"series {ONE.uid(uid)}: no slice at 12 mm in {ONE.uid(uid)}"
    assert (refused.code, refused.reason) == ("gap", "gap")
    assert str(unnamed(errors.DoesNotFit(uid, "b", ["series description is 'Smith'"]), ONE)) == (
        f"series or study {ONE.uid(uid)}: The bundle was not made for this series."
    )
    assert "Smith" not in str(unnamed(errors.UnreadableInstance("/data/Smith/1.dcm", "cut short"), ONE))
    missing = unnamed(errors.ChannelsMissing(uid, "b", "why", [("T1", [uid], "any")]), ONE)
    assert missing.channels == (("T1", (ONE.uid(uid),), "any"),)
    full = errors.OutputNotWritable(Path("out"), "disk full")
    assert str(unnamed(full, ONE)) == str(full)


def test_every_error_says_what_it_is() -> None:
    def kinds(kind: type[errors.MedsegError]) -> list[type[errors.MedsegError]]:
        return [kind, *(each for one in kind.__subclasses__() for each in kinds(one))]

    assert not [kind.__name__ for kind in kinds(errors.InputError) if not kind.__doc__]
