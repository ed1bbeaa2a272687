"""The running service, watched: nothing it says tells of the patient, and what dies or hangs shows."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import phantom
from tests.gateway.running import Serving, serving
from tests.medseg.bundle.zoo import spleen_like
from tests.waiting import wait_for

#: What tells who the patient is, or when they were there. None of it may be found anywhere but in the images.
PATIENT = {
    "PatientName": "Quork^Zyxwv",
    "PatientID": "PID-8731940",
    "OtherPatientIDs": "OPID-5520917",
    "PatientBirthDate": "19470313",
    "PatientAddress": "Grumblewick 12",
    "PatientComments": "Flibberty",
    "AccessionNumber": "ACC-660213",
    "StudyID": "SID-77123",
    "StudyDate": "20190214",
    "SeriesDate": "20190215",
    "ContentDate": "20190216",
    "AcquisitionDate": "20190217",
    "StudyTime": "031415.926",
    "ReferringPhysicianName": "Mumblecrust^Otto",
    "InstitutionName": "Saint Gloop",
    "RequestingPhysician": "Wobbleton^Ida",
}
SECRETS = [part for value in PATIENT.values() for part in value.split("^") if len(part) > 3]


@pytest.fixture(scope="module")
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as peer:
        yield peer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, pacs: FakePacs) -> Iterator[Serving]:
    bundle = spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)
    settings = f"""
[complete]
quiet_s = 0.5
quiet_late_s = 1
quiet_gap_s = 0.5
quiet_abort_s = 0.5
[deliver]
commitment = false
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs.port}
[[rule]]
name = "nobody"
when = {{ PatientName = "Nobody*", PatientID = "x", StudyDate = "1999*", AccessionNumber = "x" }}
[[rule]]
name = "spleen"
when = {{ modality = "CT" }}
bundle = "{bundle}"
send_to = ["pacs"]
"""
    with serving(tmp_path_factory.mktemp("watched"), settings) as running:
        wait_for("readiness", lambda: running.get("/readyz")[0] == 200)
        yield running


def patient(seed: int, **others: str) -> list[Dataset]:
    return phantom(seed, 16, **(PATIENT | others))


def spoil(series: list[Dataset], keyword: str, value: bytes, vr: str) -> list[Dataset]:
    """A value that its VR does not allow, as some devices write it."""
    for one in series:
        tag = Tag(keyword)
        one[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return series


def counters(service: Serving) -> dict[str, float]:
    _, body = service.get("/metrics")
    return {
        f"{one.name}{sorted(one.labels.items())}": one.value
        for family in text_string_to_metric_families(body)
        if family.type in ("counter", "histogram")
        for one in family.samples
    }


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_nothing_that_is_said_tells_who_the_patient_is(service: Serving, pacs: FakePacs) -> None:
    good = patient(1)
    bad = [
        patient(2, Modality="MR"),  # no rule
        spoil(patient(4), "PixelSpacing", b"Quork\\Zyxwv ", "DS"),  # refused
        spoil(
            spoil(patient(5), "PatientBirthDate", b"13.03.1947 Quork", "DA"), "InstanceNumber", b"PID-8731940 ", "IS"
        ),
    ]
    for series in (good, *bad):
        service.send(series)
    wait_for("the results", lambda: len(pacs.of("SEG")) == len(pacs.of("SR")) == 2)
    assert {str(seg.PatientName) for seg in pacs.of("SEG")} >= {"Quork^Zyxwv"}  # where it belongs
    wait_for(
        "all decided upon",
        lambda: (
            len(service.rows("SELECT 1 FROM series WHERE state = 'complete'")) == 4
            and not service.rows("SELECT 1 FROM job WHERE state IN ('waiting', 'queued', 'running')")
        ),
    )
    study = good[0].StudyInstanceUID
    said = {path: service.get(path) for path in ("/", f"/studies/{study}", "/metrics", "/healthz", "/readyz", "/x")}
    assert [status for status, _ in said.values()] == [200, 200, 200, 200, 200, 404]
    told = {path: body for path, (_, body) in said.items()} | {
        "log": service.log.read_text(),
        "status": service.medseg("status", "--json"),
        "jobs": service.medseg("jobs", "--json"),
        "ledger": (service.folder / "ledger.db").read_bytes().decode("latin-1"),
        "journal": (service.folder / "ledger.db-wal").read_bytes().decode("latin-1"),
    }
    assert not [(where, secret) for where, text in told.items() for secret in SECRETS if secret in text]
    assert study in told["/"] and good[0].SeriesInstanceUID in told["log"]
    assert "the value is not" in told["/"]  # why no rule matched, without what it looked at
    status = json.loads(told["status"])
    assert status.keys() >= {"series", "job", "delivery", "studies"} and status["series"] == {"complete": 4}
    (series,) = next(one["series"] for one in status["studies"] if one["study_uid"] == study)
    assert series["last_image_to_seg_s"] > 0 and series["complete_by"] == "quiet"


def test_what_hangs_or_dies_shows_within_seconds_and_no_counter_goes_back(service: Serving) -> None:
    wait_for("readiness", lambda: service.get("/readyz")[0] == 200)
    before = counters(service)
    pid = service.pid_of("director")
    os.kill(pid or 0, signal.SIGSTOP)
    try:
        _, body = wait_for("a red light", lambda: (found := service.get("/readyz"))[0] == 503 and found)
    finally:
        os.kill(pid or 0, signal.SIGCONT)
    assert not json.loads(body)["checks"]["director"]["ok"] and service.get("/healthz")[0] == 200
    wait_for("a green light", lambda: service.get("/readyz")[0] == 200)
    died = service.pid_of("sender")
    os.kill(died or 0, signal.SIGKILL)
    os.kill(service.pid_of("web") or 0, signal.SIGKILL)
    wait_for("others", lambda: service.pid_of("sender") != died and service.get("/readyz")[0] == 200)
    after = wait_for(
        "the deaths to be counted",
        lambda: (found := counters(service)) and any("process.died" in name for name in found) and found,
    )
    assert before.keys() <= after.keys() and not [name for name in before if after[name] < before[name]]


def test_it_ends_with_the_others_and_every_line_of_the_log_was_an_object(service: Serving) -> None:
    assert service.stop() == 0
    with socket.create_server(("127.0.0.1", service.http_port)):
        pass
    told = service.told()
    assert {"medseg", "receiver", "director", "worker"} <= {one["process"] for one in told}
    keys = ("time", "level", "process", "pid", "logger", "event", "message")
    assert all(key in one for one in told for key in keys)
