"""QIDO-RS: what is found by which question, asked by dicomweb-client and by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from sqlalchemy import update

from gateway.ledger import tables
from gateway.ledger.states import InstanceState
from tests.gateway.phantoms import phantom
from tests.gateway.web.held import HeldStudy, file_result, hold
from tests.gateway.web.served import Served, served

NAMES = ["Yamada^Tarou=山田^太郎=やまだ^たろう", "Doe^Jane", "Doe^John"]
DATES = ["20240101", "20240215", "20240301"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("search")) as one:
        yield one


@pytest.fixture(scope="module")
def studies(site: Served) -> list[list[Dataset]]:
    """Three, of which the last came last."""
    several = []
    for number, (name, date) in enumerate(zip(NAMES, DATES, strict=True)):
        facts = {
            "SpecificCharacterSet": "ISO_IR 192",
            "PatientName": name,
            "StudyDate": date,
            "AccessionNumber": f"A{number}",
        }
        several.append(
            phantom(10 + number, slices=3, **facts, PatientID=f"ID-{number}", StudyTime=f"{8 + number:02}3000.5")
        )
        site.box.send(several[-1])
    return several


@pytest.fixture(scope="module")
def study(site: Served, studies: object) -> HeldStudy:
    """One with a result."""
    return hold(site, 1)


def ask(site: Served, path: str, status: int = 200) -> Any:
    answer = site.get(f"/dicom-web{path}")
    assert answer.status == status, answer.body
    return json.loads(answer.body)


def found(site: Served, query: str) -> list[int]:
    """Which of the three studies are found."""
    return sorted(int(one["00080050"]["Value"][0][1]) for one in ask(site, f"/studies?AccessionNumber=A*&{query}"))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2]),
        ("PatientName=doe*", [1, 2]),
        ("PatientName=DOE^J?hn", [2]),
        ("PatientName=%E5%B1%B1%E7%94%B0*", [0]),  # ideographic
        ("00100010=Doe", []),
        ("PatientID=ID-1", [1]),
        ("PatientID=id-1", []),
        ("PatientID=", [0, 1, 2]),
        ("StudyDate=20240215", [1]),
        ("StudyDate=20240102-20240215", [1]),
        ("StudyDate=20240215-", [1, 2]),
        ("StudyDate=-20240215", [0, 1]),
        ("StudyTime=0900-0930", [1]),
        ("ModalitiesInStudy=MR,CT", [0, 1, 2]),
        ("ModalitiesInStudy=MR", []),
        ("PatientName=*[a-z]*", []),
        ("StudyDescription=x*", []),  # no study has one
    ],
)
def test_studies_by_their_attributes(site: Served, studies: object, query: str, expected: list[int]) -> None:
    assert found(site, query) == expected


def test_a_list_of_uids_in_each_form(site: Served, studies: list[list[Dataset]]) -> None:
    first, second = studies[0][0].StudyInstanceUID, studies[2][0].StudyInstanceUID
    for uids in (f"{first},{second}", f"{first}%5C{second}"):
        assert found(site, f"StudyInstanceUID={uids}") == [0, 2]


def test_pages_of_an_answer_and_what_is_left(site: Served, studies: object) -> None:
    path = "/dicom-web/studies?AccessionNumber=A*"
    ids = []
    for offset in range(3):
        answer = site.get(f"{path}&limit=1&offset={offset}")
        ids += [one["00100020"]["Value"][0] for one in json.loads(answer.body)]
        assert ("more results" in answer.headers.get("warning", "")) is (offset < 2)
    assert ids == ["ID-2", "ID-1", "ID-0"]  # that which came last first
    assert json.loads(site.get(f"{path}&offset=9").body) == []


def test_fuzzy_matching_is_said_not_to_be_done(site: Served, studies: object) -> None:
    answer = site.get("/dicom-web/studies?PatientName=Do&fuzzymatching=true")
    assert (json.loads(answer.body), "Only literal matching" in answer.headers["warning"]) == ([], True)


@pytest.mark.parametrize(
    "query",
    ["Nonsense=1", "PixelData=1", "limit=-1", "offset=x", "StudyDate=yesterday", "includefield=Nonsense",
     "InstanceNumber=one", "fuzzymatching=perhaps", "PatientID=" + "x" * 300],
)  # fmt: skip
def test_what_cannot_be_searched_for(site: Served, query: str) -> None:
    problem = ask(site, f"/studies?{query}", 400)
    assert problem["title"] == "Bad Request" and "yesterday" not in problem["detail"]


def test_by_dicomweb_client_on_every_level(site: Served, study: HeldStudy) -> None:
    client = DICOMwebClient(f"http://127.0.0.1:{site.port}/dicom-web")
    (one,) = client.search_for_studies(search_filters={"StudyInstanceUID": study.uid})
    number = len(study.images)
    assert (one["00201206"]["Value"], one["00201208"]["Value"]) == ([3], [number + 2])
    assert one["00080061"]["Value"] == ["CT", "SEG", "SR"]
    series = client.search_for_series(study.uid)
    assert [(each["00080060"]["Value"][0], each["00201209"]["Value"][0]) for each in series] == [
        ("CT", number), ("SEG", 1), ("SR", 1),
    ]  # fmt: skip
    (seg,) = client.search_for_series(search_filters={"Modality": "SEG"})
    assert seg["0020000D"]["Value"] == [study.uid]
    (image,) = client.search_for_instances(study.uid, study.series_uid, search_filters={"InstanceNumber": 2})
    assert image["00080018"]["Value"] == [study.images[1].SOPInstanceUID]
    everywhere = client.search_for_instances(search_filters={"SOPInstanceUID": study.images[0].SOPInstanceUID})
    assert [each["0020000E"]["Value"] for each in everywhere] == [[study.series_uid]]


def test_more_attributes_are_given_on_request(site: Served, study: HeldStudy) -> None:
    path = f"/studies/{study.uid}/series/{study.series_uid}/instances?limit=1"
    assert "00180050" not in ask(site, path)[0]
    (image,) = ask(site, f"{path}&includefield=SliceThickness,00080008")
    assert image["00180050"]["Value"] == [float(study.images[0].SliceThickness)]
    assert "00080060" in ask(site, f"{path}&includefield=all")[0]


def test_what_is_replaced_or_lost_is_not_found(site: Served) -> None:
    study = hold(site, 2)
    with site.box.ledger.read() as db:
        (result,) = [row.id for row in db.execute(tables.result.select()) if row.study_uid == study.uid]
    site.box.ledger.write(lambda db: file_result(db, site.box.folder, study, "later", result, kinds=""))
    lost = update(tables.instance).where(tables.instance.c.sop_instance_uid == study.images[0].SOPInstanceUID)
    site.box.ledger.write(lambda db: db.execute(lost.values(state=InstanceState.MISSING)).rowcount)
    series = ask(site, f"/studies/{study.uid}/series")
    assert [(one["00080060"]["Value"], one["00201209"]["Value"]) for one in series] == [
        (["CT"], [len(study.images) - 1])
    ]


def test_a_study_of_two_patients_is_left_out_and_said_to_be(site: Served) -> None:
    images = phantom(5, slices=2)
    images[1].PatientID = "SOMEBODY ELSE"
    site.box.send(images)
    uid = images[0].StudyInstanceUID
    answer = site.get(f"/dicom-web/studies?StudyInstanceUID={uid}")
    assert (answer.body, "two patients" in answer.headers["warning"]) == ("[]", True)
    for path in (f"/studies/{uid}", f"/studies/{uid}/metadata", f"/studies/{uid}/rendered"):
        assert "medseg studies" in ask(site, path, 409)["detail"]
