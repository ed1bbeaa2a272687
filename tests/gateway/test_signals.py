"""What senders say ends the waiting, or forbids the end: storage commitment and C-FIND, with the running service."""

from __future__ import annotations

import json
import queue
import sqlite3
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from tests.gateway.phantoms import phantom
from tests.gateway.receiving import CAREFUL, write_file
from tests.gateway.running import Serving, serving
from tests.peers import orthanc
from tests.ports import free_port
from tests.waiting import PATIENCE_S, wait_for

Report = tuple[str, list[str], dict[str, int]]


class Modality:
    """Sends, asks for storage commitment, and hears of it: on the association, or as a peer that is called."""

    def __init__(self) -> None:
        self.called: queue.Queue[Report] = queue.Queue()
        ae = AE("MODALITY")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, _hear, [self.called])]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()

    @contextmanager
    def association(self, port: int) -> Iterator[tuple[Any, queue.Queue[Report]]]:
        heard: queue.Queue[Report] = queue.Queue()
        ae = AE("MODALITY")
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scu_role=True)
        handlers = [*CAREFUL, (evt.EVT_N_EVENT_REPORT, _hear, [heard])]
        assoc = ae.associate("127.0.0.1", port, ae_title="MEDSEG", ext_neg=[role], evt_handlers=handlers)
        assert assoc.is_established
        yield assoc, heard
        assoc.release()
        assert assoc.is_released


def _hear(event: Any, heard: queue.Queue[Report]) -> tuple[int, None]:
    told = event.event_information
    failed = {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in told.get("FailedSOPSequence", ())}
    committed = [str(item.ReferencedSOPInstanceUID) for item in told.get("ReferencedSOPSequence", ())]
    assert event.request.EventTypeID == (2 if failed else 1)
    heard.put((str(told.TransactionUID), sorted(committed), failed))
    return 0x0000, None


def store(assoc: Any, datasets: Sequence[Dataset]) -> None:
    assert {assoc.send_c_store(one).Status for one in datasets} <= {0x0000}


def ask(assoc: Any, datasets: Sequence[Dataset]) -> str:
    """N-ACTION; the transaction."""
    asked = Dataset()
    asked.TransactionUID = generate_uid()
    asked.ReferencedSOPSequence = Items()
    for one in datasets:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
        asked.ReferencedSOPSequence.append(item)
    status, _ = assoc.send_n_action(asked, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    assert status.Status == 0x0000
    return str(asked.TransactionUID)


def uids(datasets: Sequence[Dataset]) -> list[str]:
    return sorted(str(one.SOPInstanceUID) for one in datasets)


@pytest.fixture(scope="module")
def modality() -> Iterator[Modality]:
    peer = Modality()
    yield peer
    peer.close()


ORTHANC_PORT = free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, modality: Modality) -> Iterator[Serving]:
    """Silence completes nothing while an association is open, and else after a moment."""
    settings = f"""
[complete]
quiet_s = 1
quiet_gap_s = 1
quiet_open_s = 600
quiet_abort_s = 600
[[peer]]
name = "modality"
ae_title = "MODALITY"
host = "127.0.0.1"
port = {modality.port}
query = false
[[peer]]
name = "orthanc"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {ORTHANC_PORT}
[[rule]]
mode = "off"
"""
    with serving(tmp_path_factory.mktemp("signals"), settings) as running:
        yield running


def series_of(service: Serving, datasets: Sequence[Dataset]) -> Any:
    (row,) = service.rows(f"SELECT * FROM series WHERE series_uid = '{datasets[0].SeriesInstanceUID}'")
    return row


def complete_by(service: Serving, datasets: Sequence[Dataset]) -> str:
    wait_for("a complete series", lambda: series_of(service, datasets).state == "complete")
    return str(series_of(service, datasets).complete_by)


def settle(service: Serving) -> None:
    """A series that silence completes, and which was sent later than what must not be complete by then."""
    marker = phantom(99, slices=2, StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
    for one in marker:
        one.SOPInstanceUID = generate_uid()
    service.send(marker)
    assert complete_by(service, marker) == "quiet"


def test_a_commitment_list_completes_and_the_report_comes_on_the_association(
    service: Serving, modality: Modality
) -> None:
    series = phantom(1)
    with modality.association(service.port) as (assoc, heard):
        store(assoc, series)
        transaction = ask(assoc, series)
        assert heard.get(timeout=PATIENCE_S) == (transaction, uids(series), {})
        assert complete_by(service, series) == "storage commitment list"  # the association is still open
        store(assoc, phantom(2, slices=2))  # and takes more
    assert modality.called.empty()


def test_a_list_that_names_more_forbids_the_end_until_it_has_come(service: Serving, modality: Modality) -> None:
    series = phantom(3)
    with modality.association(service.port) as (assoc, heard):
        store(assoc, series[:4])
        transaction = ask(assoc, series)
    settle(service)
    assert series_of(service, series).state == "arriving"
    assert heard.empty() and modality.called.empty()
    with modality.association(service.port) as (assoc, _):
        store(assoc, series[4:])
    assert complete_by(service, series) == "storage commitment list"
    assert modality.called.get(timeout=PATIENCE_S) == (transaction, uids(series), {})


@pytest.mark.parametrize("restarted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_never_came_is_not_committed(service: Serving, modality: Modality, restarted: bool) -> None:
    """Asked for, and the time of waiting over; also where the service was stopped and started again meanwhile."""
    series = phantom(4)
    with modality.association(service.port) as (assoc, _):
        store(assoc, series[:5])
        transaction = ask(assoc, series)
    if restarted:
        service.stop()
    with closing(sqlite3.connect(service.folder / "ledger.db")) as db:
        db.execute("UPDATE commitment SET asked_at = asked_at - 3600 WHERE state = 'waiting'")
        db.commit()
    if restarted:
        service.start()
    expected = (transaction, uids(series[:5]), {str(series[5].SOPInstanceUID): 0x0112})
    assert modality.called.get(timeout=PATIENCE_S) == expected


def rest(url: str, content: bytes | dict[str, Any] | list[Any] | None = None) -> Any:
    data = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=PATIENCE_S) as answer:
        return json.load(answer)


@pytest.mark.peer("Orthanc")
def test_orthanc_counts_and_is_told_of_its_commitment(service: Serving, tmp_path: Path) -> None:
    series = phantom(5)
    peers = {"gw": ("MEDSEG", service.port)}
    started = orthanc.start(tmp_path / "orthanc", aet="ORTHANC", dicom_port=ORTHANC_PORT, peers=peers)
    try:
        url = started["rest"]
        files = [write_file(one, tmp_path / f"{number}.dcm") for number, one in enumerate(series)]
        ids = [rest(f"{url}/instances", file.read_bytes())["ID"] for file in files]
        rest(f"{url}/modalities/gw/store", {"Resources": ids[:4], "Synchronous": True})
        wait_for("a count", lambda: series_of(service, series).expected == 6)
        settle(service)
        assert series_of(service, series).state == "arriving"
        rest(f"{url}/modalities/gw/store", {"Resources": ids[4:], "Synchronous": True})
        assert complete_by(service, series) == "count"

        asked = {"DicomInstances": [[one.SOPClassUID, one.SOPInstanceUID] for one in series]}
        transaction = rest(f"{url}/modalities/gw/storage-commitment", asked)["ID"]
        known = wait_for(
            "Orthanc to be told",
            lambda: (answer := rest(f"{url}/storage-commitment/{transaction}"))["Status"] != "Pending" and answer,
        )
        assert known["Status"] == "Success"
        assert sorted(one["SOPInstanceUID"] for one in known["Success"]) == uids(series)
    finally:
        orthanc.stop(tmp_path / "orthanc")
