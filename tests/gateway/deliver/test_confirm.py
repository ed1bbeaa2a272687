"""Whether a peer still has it: reports on the same or another association, partial failure, C-FIND, and silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.sop_class import StorageCommitmentPushModelInstance, Verification

from gateway.dimse.commitment import CommitmentReport
from gateway.ledger import deliveries
from gateway.ledger.deliveries import LAST_ASK
from gateway.retry import MOST_COPIES
from gateway.show import next_steps
from tests.gateway.deliver.stage import QUICK, Stage, staged
from tests.gateway.pacs import COMMIT, FIND, SEG, SR, FakePacs, listening
from tests.gateway.receiving import CAREFUL, receiving
from tests.waiting import wait_for

STORE = (SEG, SR, Verification)


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs(), (*STORE, COMMIT, FIND)) as one:
        yield one


@pytest.fixture
def stage(tmp_path: Path, pacs: FakePacs) -> Iterator[Stage]:
    with staged(tmp_path, pacs.port) as one:
        yield one


def sent(stage: Stage) -> tuple[str, str]:
    """A result that the peer has stored, at the time when it is asked after it."""
    seg, sr = stage.result("seg", "sr")
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored", "stored"]
    assert stage.outbox.due() == frozenset()
    stage.later(6)
    assert stage.outbox.due() == {"pacs"}
    return seg, sr


def test_a_report_on_the_same_association_confirms(stage: Stage, pacs: FakePacs) -> None:
    seg, sr = sent(stage)
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed", "confirmed"]
    (asked,) = pacs.asked
    assert [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence] == [
        (SEG, seg),
        (SR, sr),
    ]
    assert stage.outbox.due() == frozenset()


def test_only_what_was_lost_is_sent_again(stage: Stage, pacs: FakePacs) -> None:
    seg, sr = sent(stage)
    pacs.committed = lambda uid: 0x0112 if uid == sr else None
    stage.outbox.serve("pacs")
    found = stage.rows()
    assert (found[seg].state, found[sr].state) == ("confirmed", "queued")
    assert found[sr].error_code == "lost" and "0112H" in found[sr].error
    pacs.got.clear()
    pacs.committed = lambda _: None
    stage.later(5)
    stage.outbox.serve("pacs")
    assert pacs.uids() == [sr]
    stage.later(6)
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed", "confirmed"]


def until_nothing_is_due(stage: Stage) -> None:
    """As a sender goes on for the better part of a day, opened anew each time."""
    for _ in range(40):
        stage.open()
        if stage.outbox.due():
            stage.outbox.serve("pacs")
        stage.later(1800)


@pytest.mark.parametrize("reason", [0x0112, 0x0119, 0x0110, 0x0131, 0x0213, 0xA700])
def test_a_peer_that_always_loses_gets_three_copies(stage: Stage, pacs: FakePacs, reason: int) -> None:
    """However much patience is left, and though the sender is another each time. Who retries sends one more."""
    pacs.committed = lambda _: reason
    (seg,) = stage.result("seg")
    until_nothing_is_due(stage)
    assert (stage.states(), pacs.uids()) == (["dead"], [seg] * MOST_COPIES)
    row = stage.rows()[seg]
    assert (row.error_code, row.copies) == ("lost", MOST_COPIES)
    assert row.error.startswith("the peer said that it stored the object, and does not know it when asked (3 attempts)")
    assert f"({reason:04X}H)" in row.error
    assert "UIDs of its own" in next_steps.for_delivery(row)
    stage.ledger.write(deliveries.retry_dead, stage.clock.wall_s)
    until_nothing_is_due(stage)
    assert (stage.states(), len(pacs.uids())) == (["dead"], MOST_COPIES + 1)


def test_silence_and_nothing_found_give_three_copies(stage: Stage, pacs: FakePacs) -> None:
    pacs.reports = False
    stage.open(timeouts=replace(QUICK, report_s=0))
    stage.result("seg")
    for _ in range(40):
        stage.outbox.serve("pacs")
        stage.later(1800)
    assert (stage.states(), len(pacs.uids())) == (["dead"], MOST_COPIES)


@pytest.mark.parametrize("reason", [0x0110, 0x0131, 0x0213])
def test_a_request_that_was_not_served_is_made_again_before_anything_is_sent_again(
    stage: Stage, pacs: FakePacs, reason: int
) -> None:
    pacs.committed = lambda _: reason
    seg, sr = sent(stage)
    for _ in range(2):
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored", "stored"]
        stage.later(61)
    pacs.committed = lambda _: None
    stage.outbox.serve("pacs")
    assert (stage.states(), pacs.uids()) == (["confirmed", "confirmed"], [seg, sr])
    assert len({asked.TransactionUID for asked in pacs.asked}) == 3


def test_what_a_peer_coerced_is_believed_where_it_does_not_know_our_name(stage: Stage, pacs: FakePacs) -> None:
    pacs.answer = lambda _: 0xB000
    pacs.committed = lambda uid: 0x0112 if uid == seg else None
    seg, sr = sent(stage)
    until_nothing_is_due(stage)
    assert (stage.states(), pacs.uids()) == (["stored", "confirmed"], [seg, sr])
    assert stage.rows()[seg].error_code == "renamed"
    assert "(B000H)" in stage.rows()[seg].error


def test_what_a_peer_stored_under_another_name_is_not_asked_after(stage: Stage, pacs: FakePacs) -> None:
    pacs.renames = lambda uid: "1.2.3.4" if uid == seg else None
    pacs.committed = lambda _: 0x0112
    seg, sr = stage.result("seg", "sr")
    until_nothing_is_due(stage)
    assert {item.ReferencedSOPInstanceUID for asked in pacs.asked for item in asked.ReferencedSOPSequence} == {sr}
    assert stage.rows()[seg].stored_as == "1.2.3.4"
    assert (stage.states(), pacs.uids().count(seg)) == (["stored", "dead"], 1)
    assert "stored it as 1.2.3.4" in stage.rows()[seg].error


def test_a_report_of_something_else_or_of_a_part_moves_nothing_else(stage: Stage, pacs: FakePacs) -> None:
    seg, sr = sent(stage)
    pacs.reports = False
    stage.open(timeouts=replace(QUICK, report_s=0))
    stage.outbox.serve("pacs")
    transaction = pacs.asked[0].TransactionUID
    facts = (stage.clock.wall_s, stage.settings.deliver, 0.5)

    def reported(*committed: str) -> int:
        return stage.ledger.write(deliveries.take_report, transaction, committed, {}, *facts)

    assert [reported("1.2.3"), reported(sr, "1.2.3"), reported(sr)] == [0, 1, 0]
    assert stage.states() == ["stored", "confirmed"]
    assert pacs.uids() == [seg, sr]


def test_a_late_report_on_another_association_confirms_once(tmp_path: Path, stage: Stage, pacs: FakePacs) -> None:
    pacs.reports = False
    stage.open(timeouts=replace(QUICK, report_s=0))
    sent(stage)
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored", "stored"]
    assert stage.outbox.due() == frozenset()  # a report is waited for
    moved: list[int] = []

    def reported(report: CommitmentReport) -> None:
        facts = (report.transaction_uid, report.committed, report.failed, stage.clock.wall_s)
        moved.append(stage.ledger.write(deliveries.take_report, *facts, stage.settings.deliver, 0.5))

    (tmp_path / "receiver").mkdir()
    with receiving(tmp_path / "receiver", reported=reported) as receiver:
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = COMMIT, False, True
        ae = AE("PACS")
        ae.add_requested_context(COMMIT)
        assoc = ae.associate("127.0.0.1", receiver.scp.port, ae_title="MEDSEG", ext_neg=[role], evt_handlers=CAREFUL)
        report = pacs.report(pacs.asked[0])
        report.TransactionUID, known = "1.2.3", report.TransactionUID
        for transaction in ("1.2.3", known, known):  # unknown, then right, then repeated
            report.TransactionUID = transaction
            status, _ = assoc.send_n_event_report(report, 1, COMMIT, StorageCommitmentPushModelInstance)
            assert status.Status == 0x0000
        assoc.release()
        wait_for("the associations to end", lambda: not receiver.scp.associations)
    assert moved == [0, 2, 0]
    assert stage.states() == ["confirmed", "confirmed"]


def test_silence_is_asked_again_and_then_c_find_decides(stage: Stage, pacs: FakePacs) -> None:
    pacs.reports = False
    stage.open(timeouts=replace(QUICK, report_s=0))
    seg, _ = sent(stage)
    pacs.finds = (seg,)
    for _ in range(LAST_ASK - 1):
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored", "stored"]
        stage.later(901)
    assert len({asked.TransactionUID for asked in pacs.asked}) == LAST_ASK - 1
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed", "queued"]  # the report is lost, and nothing else is sent again


@pytest.mark.parametrize("why", ["not accepted", "refused", "switched off"])
def test_c_find_where_there_is_no_commitment(tmp_path: Path, why: str) -> None:
    classes = (*STORE, FIND) if why == "not accepted" else (*STORE, COMMIT, FIND)
    pacs = FakePacs(action_status=0x0122 if why == "refused" else 0x0000)
    with listening(pacs, classes), staged(tmp_path, pacs.port, commitment=why != "switched off") as stage:
        pacs.finds = sent(stage)[:1]
        for _ in range(LAST_ASK - 1):
            stage.outbox.serve("pacs")
            assert stage.states() == ["confirmed", "stored"]  # a peer may take a while to index
            stage.later(61)
        stage.outbox.serve("pacs")
        assert stage.states() == ["confirmed", "queued"]


def test_c_find_for_what_the_peer_never_commits_to(stage: Stage, pacs: FakePacs) -> None:
    pacs.committed = lambda uid: None if uid == seg else 0x0122
    seg, sr = sent(stage)
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed", "stored"]
    pacs.finds = [sr]
    stage.later(61)
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed", "confirmed"]


def test_a_peer_that_answers_neither_is_believed(tmp_path: Path) -> None:
    with listening(FakePacs()) as pacs, staged(tmp_path, pacs.port) as stage:
        sent(stage)
        stage.outbox.serve("pacs")
        stage.later(1e6)
        assert stage.states() == ["stored", "stored"]
        assert stage.outbox.due() == frozenset()


def test_a_peer_that_is_down_is_asked_later(stage: Stage, pacs: FakePacs) -> None:
    sent(stage)
    pacs.reject = (2, 3, 2)
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored", "stored"]
    pacs.reject = None
    stage.later(601)
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed", "confirmed"]


@pytest.mark.parametrize("classes", [(*STORE, COMMIT), (*STORE, COMMIT, FIND)])
def test_a_peer_that_breaks_off_when_asked_is_asked_again(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with listening(FakePacs(), classes) as pacs, staged(tmp_path, pacs.port) as stage:
        sent(stage)
        pacs.aborts = True
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored", "stored"]
        pacs.aborts = False
        stage.later(61)
        stage.outbox.serve("pacs")
        assert stage.states() == ["confirmed", "confirmed"]


def test_a_result_whose_file_is_gone_is_not_asked_after_by_c_find(tmp_path: Path) -> None:
    with listening(FakePacs(), (*STORE, FIND)) as pacs, staged(tmp_path, pacs.port) as stage:
        seg, _ = sent(stage)
        (stage.spool / f"{seg}.dcm").unlink()
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored", "stored"]
        assert len(pacs.asked) == 1
