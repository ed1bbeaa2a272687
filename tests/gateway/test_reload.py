"""SIGHUP: what a reload changes in a service that runs, and what it leaves as it is (failure case 15)."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from tests.gateway.phantoms import phantom
from tests.gateway.receiving import CAREFUL
from tests.gateway.running import Serving, serving
from tests.ports import free_port
from tests.waiting import PATIENCE_S, wait_for

COMPLETE = "[complete]\nquiet_s = 0.2\nquiet_gap_s = 0.5\nquiet_open_s = 60\n"


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
def service(tmp_path_factory: pytest.TempPathFactory, systemd: socket.socket) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("serve"), COMPLETE + '[[rule]]\nname = "off"\nmode = "off"\n') as running:
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


def told(service: Serving) -> dict[str, list[str]]:
    """What `medseg status` tells of the settings."""
    query = "SELECT detail FROM event WHERE kind = 'settings.read' ORDER BY id DESC LIMIT 1"
    return json.loads(service.rows(query)[0].detail)  # type: ignore[no-any-return]


def associate(service: Serving, calling: str = "SENDER") -> Association:
    ae = AE(calling)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    return ae.associate("127.0.0.1", service.port, ae_title="MEDSEG", evt_handlers=CAREFUL)


def rejected(service: Serving, calling: str) -> bool:
    assoc = associate(service, calling)
    if assoc.is_established:
        assoc.release()
    return bool(assoc.is_rejected)


def store(assoc: Association, one: Dataset) -> int:
    return int(assoc.send_c_store(one).Status)


def test_whoever_started_the_service_is_told_when_it_is_ready(service: Serving, systemd: socket.socket) -> None:
    assert systemd.recv(99) == b"READY=1"
    assert service.get("/readyz")[0] == 200
    assert "service.ready" in service.log.read_text()


def test_case_15_wrong_settings_change_nothing_and_right_ones_reach_every_process(service: Serving) -> None:
    series, right = phantom(), (service.folder / "medseg.toml").read_text()
    assoc = associate(service)
    assert store(assoc, series[0]) == 0
    pids = {name: service.pid_of(name) for name in ("receiver", "director", "worker", "sender")}

    said = reload(service, right.replace("quiet_s = 0.2", "quiet_s = -1").replace('mode = "off"', 'mode = "on"'))
    assert "complete.quiet_s: expected seconds, 0 or more, found -1" in said and "line " in said
    (problem,) = wait_for("the problem in the ledger", lambda: told(service)["problems"])
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

    (job,) = wait_for("a job by the new rule", lambda: service.rows("SELECT * FROM job"))
    assert (job.rule, job.state, job.revision) == ("wait", "held", 6)
    wait_for("the reload in the ledger", lambda: told(service) == {"problems": [], "kept": ["gateway.port"]})
    assert {name: service.pid_of(name) for name in pids} == pids
    (first, *_) = service.rows("SELECT * FROM association WHERE calling_ae = 'SENDER' ORDER BY opened_at")
    assert first.ending == "released"

    reload(service, changed + '[[rule]]\nname = "liver"\nbundle = "liver_ct"\n')
    query = "SELECT detail FROM event WHERE kind = 'settings.doubted' ORDER BY id DESC LIMIT 1"
    doubted = "rule liver: no bundle 'liver_ct'"
    wait_for("what cannot work", lambda: any(doubted in row.detail for row in service.rows(query)))
    assert f"settings: {doubted}" in service.log.read_text()
