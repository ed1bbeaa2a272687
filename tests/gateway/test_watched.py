"""The running service, watched: nothing it says tells of the patient, what dies or hangs shows, and SIGHUP changes
what it may change (failure case 15)."""

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
from pynetdicom.association import Association

from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import associate
from tests.gateway.running import Serving, serving
from tests.medseg.bundle.zoo import spleen_like
from tests.ports import free_port
from tests.waiting import PATIENCE_S, wait_for

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
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """Who started the service, and wants to be told when it is ready."""
    address = str(tmp_path_factory.mktemp("notify") / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind(address)
        listener.settimeout(PATIENCE_S)
        patch.setenv("NOTIFY_SOCKET", address)
        yield listener


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, pacs: FakePacs, systemd: socket.socket) -> Iterator[Serving]:
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
name = "off"
mode = "off"
when = {{ series_description = "leave out" }}
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


def reload(service: Serving, text: str) -> str:
    """Put other settings in place, have them read, and give what the log then says."""
    (service.folder / "medseg.toml").write_text(text)
    before = len(service.log.read_text())
    service.process.send_signal(signal.SIGHUP)
    return str(
        wait_for(
            "a word about the settings",
            lambda: "reloaded" in (said := service.log.read_text()[before:]) and said.endswith("\n") and said,
        )
    )


def settings_on_record(service: Serving) -> dict[str, list[str]]:
    """What `medseg status` tells of the settings."""
    query = "SELECT detail FROM event WHERE kind = 'settings.read' ORDER BY id DESC LIMIT 1"
    return json.loads(service.rows(query)[0].detail)  # type: ignore[no-any-return]


def rejected(service: Serving, calling: str) -> bool:
    assoc = associate(service.port, calling=calling)
    if assoc.is_established:
        assoc.release()
    return bool(assoc.is_rejected)


def store(assoc: Association, one: Dataset) -> int:
    return int(assoc.send_c_store(one).Status)


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


def test_whoever_started_the_service_is_told_when_it_is_ready(service: Serving, systemd: socket.socket) -> None:
    assert systemd.recv(99) == b"READY=1"
    assert service.get("/readyz")[0] == 200
    assert "service.ready" in service.log.read_text()


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


def test_case_15_wrong_settings_change_nothing_and_right_ones_reach_every_process(service: Serving) -> None:
    series, right = phantom(7, SeriesDescription="leave out"), (service.folder / "medseg.toml").read_text()
    assoc = associate(service.port)
    assert store(assoc, series[0]) == 0
    pids = {name: service.pid_of(name) for name in ("receiver", "director", "worker", "sender")}

    said = reload(service, right.replace("quiet_s = 0.5", "quiet_s = -1", 1).replace('mode = "off"', 'mode = "on"'))
    assert "complete.quiet_s: expected seconds, 0 or more, found -1" in said and "line " in said
    (problem,) = wait_for("the problem in the ledger", lambda: settings_on_record(service)["problems"])
    assert "complete.quiet_s: expected seconds" in problem
    ready = wait_for("the web", lambda: service.get("/readyz")[1])
    assert problem in json.loads(ready)["checks"]["settings"]["found"]
    assert store(assoc, series[1]) == 0 and not rejected(service, "SENDER")

    other_port = free_port()
    changed = (
        right.replace(f"port = {service.port}", f"port = {other_port}", 1)
        .replace("[gateway]\n", '[gateway]\nallow_callers = ["OTHER"]\n')
        .replace('name = "off"\nmode = "off"', 'name = "wait"\nmode = "hold"')
    )
    said = reload(service, changed)
    assert "gateway.port stays as it was until a restart" in said
    wait_for("the receiver's new callers", lambda: rejected(service, "SENDER"))
    assert not rejected(service, "OTHER")
    assert [store(assoc, one) for one in series[2:]] == [0] * 4
    assoc.release()

    of_study = f"WHERE study_uid = '{series[0].StudyInstanceUID}'"
    (job,) = wait_for("a job by the new rule", lambda: service.rows(f"SELECT * FROM job {of_study}"))
    assert (job.rule, job.state, job.revision) == ("wait", "held", 6)
    kept = {"problems": [], "kept": ["gateway.port"]}
    wait_for("the reload in the ledger", lambda: settings_on_record(service) == kept)
    assert {name: service.pid_of(name) for name in pids} == pids
    ended = f"SELECT ending FROM association WHERE id IN (SELECT association_id FROM instance {of_study})"
    wait_for("its release on record", lambda: [row.ending for row in service.rows(ended)] == ["released"])

    reload(service, changed + '[[rule]]\nname = "liver"\nbundle = "liver_ct"\n')
    query = "SELECT detail FROM event WHERE kind = 'settings.doubted' ORDER BY id DESC LIMIT 1"
    doubted = "rule liver: no bundle 'liver_ct'"
    wait_for("what cannot work", lambda: any(doubted in row.detail for row in service.rows(query)))
    assert f"settings: {doubted}" in service.log.read_text()


def test_it_ends_with_the_others_and_every_line_of_the_log_was_an_object(service: Serving) -> None:
    assert service.stop() == 0
    with socket.create_server(("127.0.0.1", service.http_port)):
        pass
    told = service.told()
    assert {"medseg", "receiver", "director", "worker"} <= {one["process"] for one in told}
    keys = ("time", "level", "process", "pid", "logger", "event", "message")
    assert all(key in one for one in told for key in keys)
