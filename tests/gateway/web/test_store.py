"""STOW-RS: what is sent is stored as it was sent, or refused by name; and what breaks off leaves nothing behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import MediaStorageDirectoryStorage

from gateway.dicomweb.multipart import written
from gateway.settings.model import Caller
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import data_set_of, encode, make_ct
from tests.gateway.web.served import Answer, Served, served
from tests.waiting import wait_for

STUDIES = "/dicom-web/studies"
TYPE = 'multipart/related; type="application/dicom"; boundary=bound'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("store")) as one:
        yield one


def file_of(one: Dataset, **meta: str) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, one, enforce_file_format=True)
    buffer.seek(0)
    again = dcmread(buffer)
    for keyword, value in meta.items():
        setattr(again.file_meta, keyword, value)
    changed = BytesIO()
    dcmwrite(changed, again, implicit_vr=False, little_endian=True)
    return changed.getvalue()


def body_of(*files: bytes, kind: str = "application/dicom") -> bytes:
    return b"".join(written("bound", [({"Content-Type": kind}, [one]) for one in files]))


def store(site: Served, body: bytes, path: str = STUDIES, **headers: str) -> tuple[Answer, Any]:
    sent = {"Content-Type": TYPE} | {name.replace("_", "-"): text for name, text in headers.items()}
    answer = site.ask(path, "POST", body, sent)
    return answer, json.loads(answer.body)


def reasons(told: Any) -> list[str]:
    return [f"{item['00081197']['Value'][0]:04X}" for name in ("00081198", "0008119A") for item in
            told.get(name, {}).get("Value", [])]  # fmt: skip


def test_the_end_of_a_request_completes_its_series(tmp_path: Path) -> None:
    with served(tmp_path) as site:
        clock, settings = Clock(), site.live.now
        director = Director(site.box.ledger, site.box.folder, settings)
        for place, number in enumerate((3, 2)):  # as if by a client that parts a series
            body = body_of(*map(file_of, phantom(7, slices=5)[3 * place : 3 * place + number]))
            assert store(site, body)[0].status == 200
            director.step(*clock.after(0.2))
            assert [row.state for row in site.box.rows("series")] == ["arriving"]
        director.step(*clock.after(1.0))
        (series,) = site.box.rows("series")
        assert (series.complete_by, series.instances) == ("STOW request ended", 5)


def requests(site: Served) -> list[tuple[str, str, str]]:
    rows = sorted(site.box.rows("association"), key=lambda row: row.opened_at)
    return [(row.calling_ae, row.receiver, row.ending) for row in rows]


def no_parts(site: Served) -> bool:
    return not [one for one in site.box.spool.incoming.iterdir() if one.stat().st_size]


def test_what_dicomweb_client_stores_is_there_byte_for_byte(site: Served) -> None:
    images = phantom(1, slices=3)
    client = DICOMwebClient(f"http://127.0.0.1:{site.port}/dicom-web")
    told = client.store_instances([dcmread(BytesIO(file_of(one))) for one in images])
    assert [one.ReferencedSOPInstanceUID for one in told.ReferencedSOPSequence] == [
        one.SOPInstanceUID for one in images
    ]
    assert told.RetrieveURL.endswith(f"/studies/{images[0].StudyInstanceUID}") and "FailedSOPSequence" not in told
    rows = {row.sop_instance_uid: row for row in site.box.rows("instance")}
    for one in images:
        row = rows[one.SOPInstanceUID]
        assert data_set_of(site.box.folder / row.path) == encode(one)
    assert requests(site)[-1] == ("DICOMWEB", "web", "released")
    back = client.retrieve_series(images[0].StudyInstanceUID, images[0].SeriesInstanceUID)
    assert sorted(one.SOPInstanceUID for one in back) == sorted(one.SOPInstanceUID for one in images)


def test_the_same_again_is_stored_once(site: Served) -> None:
    content = body_of(file_of(make_ct(SOPInstanceUID="1.2.9")))
    for _ in range(2):
        assert store(site, content)[0].status == 200
    assert len([row for row in site.box.rows("instance") if row.sop_instance_uid == "1.2.9"]) == 1


def test_each_part_is_stored_or_refused_by_itself(site: Served) -> None:
    good = make_ct()
    study = {"StudyInstanceUID": good.StudyInstanceUID}
    parts = [
        file_of(make_ct(**study), MediaStorageSOPClassUID=MediaStorageDirectoryStorage),
        file_of(make_ct(**study)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),  # which there is not
        file_of(make_ct(**study), MediaStorageSOPInstanceUID="1.2.3.4"),
        file_of(make_ct()),  # of another study
        file_of(good),
        b"no file at all" * 20,
        b"",
        file_of(make_ct(**study))[:400],  # cut inside the data set's header
    ]
    answer, told = store(site, body_of(*parts), f"{STUDIES}/{good.StudyInstanceUID}")
    assert (answer.status, reasons(told)) == (202, ["0122", "C122", "A900", "A900", "C000", "C000", "C000"])
    (stored,) = told["00081199"]["Value"]
    assert stored["00081155"]["Value"] == [good.SOPInstanceUID]
    assert "Test^Patient" not in answer.body
    assert requests(site)[-1][2] == "released"  # nothing of it would be taken another time
    assert no_parts(site)


def test_nothing_is_stored(site: Served) -> None:
    answer, told = store(site, body_of(b"{}", kind="application/dicom+json"))
    assert (answer.status, reasons(told)) == (409, ["C000"])


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (body_of(), {}, 400),
        (b"nonsense", {}, 400),
        (body_of(file_of(make_ct()))[:-12], {}, 400),
        (b"{}", {"Content_Type": "application/json"}, 415),
        (b"", {"Content_Type": 'multipart/related; type="application/dicom+xml"; boundary=b'}, 415),
        (b"", {"Content_Type": 'multipart/related; type="application/dicom"'}, 400),
        (b"x", {"Accept": "text/html"}, 406),
        (body_of(file_of(make_ct())), {"Origin": "http://evil.example"}, 403),
        (body_of(file_of(make_ct())), {"Sec_Fetch_Site": "cross-site"}, 403),
        (body_of(file_of(make_ct())), {"Host": "evil.example"}, 400),
    ],
)
def test_requests_that_are_none(site: Served, body: bytes, headers: dict[str, str], status: int) -> None:
    before = len(site.box.rows("instance"))
    sent = {"Content-Type": TYPE} | {name.replace("_", "-"): text for name, text in headers.items()}
    assert site.ask(STUDIES, "POST", body, sent).status == status
    assert len(site.box.rows("instance")) == before
    assert no_parts(site)


def test_a_request_that_breaks_off_keeps_what_was_whole(site: Served) -> None:
    first, second = make_ct(SOPInstanceUID="1.2.7.1"), make_ct(64, SOPInstanceUID="1.2.7.2")
    body = body_of(file_of(first), file_of(second))
    with socket.create_connection(("127.0.0.1", site.port)) as connection:
        lines = (f"POST {STUDIES} HTTP/1.1", "Host: localhost", f"Content-Type: {TYPE}", f"Content-Length: {len(body)}")
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode() + body[:-3000])
        wait_for("the first", lambda: any(row.sop_instance_uid == "1.2.7.1" for row in site.box.rows("instance")))
    wait_for("its end", lambda: requests(site)[-1][2] == "aborted", 20)
    assert no_parts(site) and not any(row.sop_instance_uid == "1.2.7.2" for row in site.box.rows("instance"))


def test_who_may_store_is_said_by_the_settings(site: Served) -> None:
    before = site.live.now
    body = body_of(file_of(make_ct()))
    try:
        gateway = replace(before.gateway, allow_any_caller=False, allow_callers=(Caller("CT01"),))
        site.live.now = replace(before, gateway=gateway)
        answer, told = store(site, body)
        assert answer.status == 403 and "allow_callers" in told["detail"]
        gateway = replace(gateway, allow_callers=(Caller("DICOMWEB", "localhost"),))
        site.live.now = replace(before, gateway=gateway)
        assert store(site, body)[0].status == 200
        site.live.now = replace(before, limits=replace(before.limits, disk_free_gb=1e9))
        wait_for("a full disk", lambda: store(site, body)[0].status == 503)
    finally:
        site.live.now = before
    wait_for("room", lambda: store(site, body)[0].status == 200)
