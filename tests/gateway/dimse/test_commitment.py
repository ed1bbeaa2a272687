"""Storage commitment at the SCP: what may be asked, and reports on an association on which other things happen."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_messages import N_EVENT_REPORT_RQ, DIMSEMessage
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from gateway.dimse.command import elements, p_data
from gateway.dimse.commitment import CommitmentReport, CommitmentRequest, CommitmentResult, ObjectReference
from gateway.ledger.ledger import LedgerUnavailable
from tests.gateway.receiving import (
    CAREFUL,
    CT,
    RawPeer,
    Receiver,
    associate_request,
    element,
    encode,
    make_ct,
    padded,
    receiving,
    store_message,
)
from tests.waiting import wait_for

PUSH, INSTANCE = str(StorageCommitmentPushModel), str(StorageCommitmentPushModelInstance)
RESULT = CommitmentResult("1.2.3", {ObjectReference(CT, "1.2.4"): None, ObjectReference(CT, "1.2.5"): 0x0112})


def request(**changes: Any) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, "1.2.4"
    asked = Dataset()
    asked.TransactionUID = "1.2.3"
    asked.ReferencedSOPSequence = Items([item])
    for keyword, value in changes.items():
        if value is None:
            delattr(asked, keyword)
        else:
            setattr(asked, keyword, value)
    return asked


@pytest.mark.parametrize(
    ("asked", "action", "instance", "status"),
    [
        pytest.param(request(), 1, INSTANCE, 0x0000, id="right"),
        pytest.param(request(), 2, INSTANCE, 0x0123, id="another action"),
        pytest.param(request(), 1, "1.2.3", 0x0112, id="another instance"),
        pytest.param(request(TransactionUID=None), 1, INSTANCE, 0x0115, id="no transaction"),
        pytest.param(request(ReferencedSOPSequence=None), 1, INSTANCE, 0x0115, id="no objects"),
        pytest.param(request(ReferencedSOPSequence=Items()), 1, INSTANCE, 0x0115, id="an empty list"),
        pytest.param(request(ReferencedSOPSequence=Items([Dataset()])), 1, INSTANCE, 0x0115, id="an empty item"),
        pytest.param(request(TransactionUID="9.9"), 1, INSTANCE, 0x0110, id="a ledger that cannot be written"),
    ],
)
def test_what_may_be_asked(tmp_path: Path, asked: Dataset, action: int, instance: str, status: int) -> None:
    taken: list[CommitmentRequest] = []

    def take(one: CommitmentRequest) -> None:
        if one.transaction_uid == "9.9":
            raise LedgerUnavailable("full")
        taken.append(one)

    with receiving(tmp_path, asked=take) as receiver:
        ae = AE("SENDER")
        ae.add_requested_context(PUSH)
        role = build_role(PUSH, scu_role=True)
        assoc = ae.associate("127.0.0.1", receiver.scp.port, ae_title="MEDSEG", ext_neg=[role], evt_handlers=CAREFUL)
        answer, _ = assoc.send_n_action(asked, action, PUSH, instance)
        assoc.release()
        assert answer.Status == status
        assert [(one.peer.calling_ae, one.objects) for one in taken] == (
            [("SENDER", (ObjectReference(CT, "1.2.4"),))] if status == 0 else []
        )


@contextmanager
def reporting(tmp_path: Path) -> Iterator[tuple[Receiver, RawPeer, Callable[[], bool]]]:
    """A peer that is being told, with the N-EVENT-REPORT read; the last gives what the report came to."""
    contexts = [(1, CT, str(ExplicitVRLittleEndian)), (3, PUSH, str(ImplicitVRLittleEndian))]
    with (
        receiving(tmp_path, asked=lambda _: None) as receiver,
        RawPeer(receiver.scp.port, associate_request(contexts=contexts)) as peer,
    ):
        (row,) = receiver.rows("association")
        taken: list[bool] = []
        thread = threading.Thread(target=lambda: taken.append(receiver.scp.report(row.id, RESULT)))
        thread.start()

        def outcome() -> bool:
            thread.join(30)
            return taken[0]

        kind, command = peer.read_pdu()
        assert kind == 4
        found = elements(command[6:])
        assert (found[0x0100], found[0x1002]) == (b"\x00\x01", b"\x02\x00")  # N-EVENT-REPORT-RQ, some failed
        assert peer.read_pdu()[0] == 4
        yield receiver, peer, outcome


def answer_to_report() -> bytes:
    """An N-EVENT-REPORT-RSP (PS3.7 10.3.1.2)."""
    body = (
        element(0x0002, padded(PUSH))
        + element(0x0100, struct.pack("<H", 0x8100))
        + element(0x0120, struct.pack("<H", 1))
        + element(0x0800, struct.pack("<H", 0x0101))
        + element(0x0900, struct.pack("<H", 0x0000))
        + element(0x1000, padded(INSTANCE))
        + element(0x1002, struct.pack("<H", 2))
    )
    return p_data(3, element(0x0000, struct.pack("<I", len(body))) + body, 0)


def test_instances_may_come_before_the_answer_to_a_report(tmp_path: Path) -> None:
    with reporting(tmp_path) as (receiver, peer, outcome):
        before, after = make_ct(seed=1), make_ct(seed=2)
        peer.send(store_message(CT, str(before.SOPInstanceUID), encode(before)))
        assert peer.read_status() == 0
        peer.send(answer_to_report())
        assert outcome()
        peer.send(store_message(CT, str(after.SOPInstanceUID), encode(after)))
        assert peer.read_status() == 0
        peer.release()
        assert set(receiver.stored()) == {str(before.SOPInstanceUID), str(after.SOPInstanceUID)}


def test_an_answer_never_comes_between_the_parts_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()
    encode_msg = DIMSEMessage.encode_msg

    def held_up(message: DIMSEMessage, *facts: Any) -> Iterator[Any]:
        for part in encode_msg(message, *facts):
            yield part
            if isinstance(message, N_EVENT_REPORT_RQ):
                begun.set()
                answered.wait(20)

    monkeypatch.setattr(DIMSEMessage, "encode_msg", held_up)
    contexts = [(1, CT, str(ExplicitVRLittleEndian)), (3, PUSH, str(ImplicitVRLittleEndian))]
    with (
        receiving(tmp_path, asked=lambda _: None) as receiver,
        RawPeer(receiver.scp.port, associate_request(contexts=contexts)) as peer,
        ThreadPoolExecutor(1) as pool,
    ):
        (row,) = receiver.rows("association")
        told = pool.submit(receiver.scp.report, row.id, RESULT)
        assert begun.wait(20)
        instance = make_ct()
        peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance)))
        came = []
        for _ in range(3):
            _, content = peer.read_pdu()
            is_command = bool(content[5] & 1)  # message control header (PS3.8 E.2)
            came.append(elements(content[6:])[0x0100] if is_command else b"data")
            if came[-1] == b"\x01\x80":
                answered.set()
        assert came == [b"\x01\x80", b"\x00\x01", b"data"]  # C-STORE-RSP, then N-EVENT-REPORT-RQ whole
        peer.send(answer_to_report())
        assert told.result(30)


def test_a_peer_that_leaves_instead_of_answering_is_let_go(tmp_path: Path) -> None:
    with reporting(tmp_path) as (receiver, peer, outcome):
        peer.release()
        assert not outcome()
        wait_for("the release on record", lambda: [row.ending for row in receiver.rows("association")] == ["released"])


def test_a_connection_that_breaks_ends_the_report(tmp_path: Path) -> None:
    with reporting(tmp_path) as (receiver, peer, outcome):
        peer.socket.close()
        assert not outcome()
        assert not receiver.scp.report("another", RESULT)
        wait_for("the connections to end", lambda: not receiver.scp.connections)


def test_what_comes_right_after_the_acceptance_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[CommitmentReport] = []
    answered = threading.Event()
    trigger = evt.trigger

    def held_up(assoc: Any, event: Any, attributes: Any = None) -> Any:
        if event is evt.EVT_ACCEPTED and assoc.is_acceptor:
            answered.wait(20)
        return trigger(assoc, event, attributes)

    monkeypatch.setattr(evt, "trigger", held_up)
    with receiving(tmp_path, reported=heard.append) as receiver:
        ae = AE("PACS")
        ae.add_requested_context(PUSH)
        role = build_role(PUSH, scp_role=True)
        assoc = ae.associate("127.0.0.1", receiver.scp.port, ae_title="MEDSEG", ext_neg=[role], evt_handlers=CAREFUL)
        status, _ = assoc.send_n_event_report(RESULT.information(), RESULT.event_type, PUSH, INSTANCE)
        answered.set()
        assoc.release()
    assert status.get("Status") == 0x0000
    assert [(one.transaction_uid, one.failed) for one in heard] == [("1.2.3", {"1.2.5": 0x0112})]


def test_reports_at_once_go_one_after_the_other(tmp_path: Path) -> None:
    heard: list[str] = []

    def hear(event: evt.Event) -> tuple[int, None]:
        heard.append(str(event.event_information.TransactionUID))
        return 0x0000, None

    with receiving(tmp_path, asked=lambda _: None) as receiver, ThreadPoolExecutor(4) as pool:
        ae = AE("SENDER")
        ae.add_requested_context(PUSH)
        handlers = [*CAREFUL, (evt.EVT_N_EVENT_REPORT, hear)]
        assoc = ae.associate("127.0.0.1", receiver.scp.port, ae_title="MEDSEG", evt_handlers=handlers)
        (row,) = receiver.rows("association")
        transactions = [f"1.2.{number}" for number in range(4)]
        results = [CommitmentResult(one, RESULT.reasons) for one in transactions]
        assert list(pool.map(lambda result: receiver.scp.report(row.id, result), results)) == [True] * 4
        assert sorted(heard) == transactions
        assert assoc.is_established
        assoc.release()
        wait_for("the release on record", lambda: [row.ending for row in receiver.rows("association")] == ["released"])
