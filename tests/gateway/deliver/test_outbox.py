"""Deliveries over real sockets: what each answer of a peer leads to, and what is never lost."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom.sop_class import Verification

from gateway.deliver import outbox
from gateway.deliver.outbox import MOST
from gateway.ledger import deliveries, ledger
from gateway.ledger.deliveries import LAST_ASK
from gateway.settings.current import Live
from tests.gateway.deliver.stage import Stage, staged
from tests.gateway.pacs import SEG, SR, FakePacs, listening
from tests.gateway.receiving import data_set_of
from tests.ports import free_port
from tests.waiting import wait_for


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as one:
        yield one


@pytest.fixture
def stage(tmp_path: Path, pacs: FakePacs) -> Iterator[Stage]:
    with staged(tmp_path, pacs.port) as one:
        yield one


def test_a_result_leaves_over_one_association_byte_for_byte(stage: Stage, pacs: FakePacs) -> None:
    sr, seg = stage.result("sr", "seg")
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored", "stored"]
    assert pacs.associations == 1
    assert pacs.uids() == [seg, sr]  # the segmentation first, whatever the order of the rows
    assert [content for _, content in pacs.got] == [data_set_of(stage.spool / f"{uid}.dcm") for uid in (seg, sr)]
    stage.outbox.serve("pacs")
    assert pacs.associations == 1  # there is nothing more to do, and nothing to ask yet


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_warnings_count_as_stored(stage: Stage, pacs: FakePacs, status: int) -> None:
    pacs.answer = lambda _: status
    (seg,) = stage.result("seg")
    stage.outbox.serve("pacs")
    assert (stage.rows()[seg].state, stage.rows()[seg].status) == ("stored", status)


@pytest.mark.parametrize("status", [0xA700, 0x0110, None])
def test_transient_refusals_are_tried_again_after_a_pause(stage: Stage, pacs: FakePacs, status: int | None) -> None:
    pacs.answer = lambda _: status
    seg, sr = stage.result("seg", "sr")
    stage.outbox.serve("pacs")
    assert stage.states() == ["queued", "queued"]
    row = stage.rows()[seg]
    assert (row.status, row.failures, row.ready_at) == (status, 1, stage.clock.wall_s + 5)
    assert stage.rows()[sr].failures == 0  # it waits for what it refers to
    pacs.answer = lambda _: 0x0000
    pacs.got.clear()
    stage.later(4.9)
    stage.outbox.serve("pacs")
    assert stage.states() == ["queued", "queued"]
    stage.later(0.2)
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored", "stored"]
    assert pacs.uids() == [seg, sr]


@pytest.mark.parametrize("status", [0x0122, 0x0124, 0xA900, 0xC000])
def test_permanent_refusals_stop_at_once(stage: Stage, pacs: FakePacs, status: int) -> None:
    seg, sr = stage.result("seg", "sr")
    pacs.answer = lambda uid: status if uid == seg else 0x0000
    stage.outbox.serve("pacs")
    row = stage.rows()[seg]
    assert (row.state, row.status) == ("dead", status)
    assert f"{status:04X}H" in row.error
    assert stage.rows()[sr].state == "stored"  # the report is taken for what it is
    stage.later(1e6)
    stage.outbox.serve("pacs")
    assert pacs.uids() == [seg, sr]


@pytest.mark.parametrize("classes", [(SEG, Verification), (SR, Verification), (Verification,)])
def test_what_a_peer_accepts_goes_and_the_rest_is_a_dead_letter(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with listening(FakePacs(), classes) as pacs, staged(tmp_path, pacs.port) as stage:
        sent = dict(zip(stage.result("seg", "sr"), (SEG, SR), strict=True))
        stage.outbox.serve("pacs")
        assert pacs.uids() == [uid for uid, sop_class in sent.items() if sop_class in classes]
        for uid, sop_class in sent.items():
            row = stage.rows()[uid]
            if sop_class in classes:
                assert row.state == "stored"
            else:
                assert (row.state, row.error_code) == ("dead", "not_accepted")
                assert f"no presentation context for {UID(sop_class).name} (SOP class {sop_class})" in row.error
        assert stage.outbox.due() == frozenset()


@pytest.mark.parametrize(
    ("reject", "state", "code"),
    [
        ((1, 1, 3), "dead", "rejected"),
        ((1, 1, 7), "dead", "rejected"),
        ((2, 3, 2), "queued", "busy"),
        ((2, 1, 1), "queued", "busy"),
    ],
)
def test_rejected_associations(
    stage: Stage, pacs: FakePacs, reject: tuple[int, int, int], state: str, code: str
) -> None:
    pacs.reject = reject
    (seg,) = stage.result("seg")
    stage.outbox.serve("pacs")
    assert (stage.rows()[seg].state, stage.rows()[seg].error_code) == (state, code)
    pacs.reject = None
    if state == "dead":
        assert stage.ledger.write(deliveries.retry_dead, stage.clock.wall_s) == 1
    stage.later(5)
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored"]


def test_a_peer_that_is_down_for_an_hour_gets_it_all(tmp_path: Path) -> None:
    pacs = FakePacs(port=free_port())
    with staged(tmp_path, pacs.port) as stage:
        uids = stage.result("seg", "sr")
        began, rounds = stage.clock.wall_s, 0
        while stage.clock.wall_s < began + 3600:
            assert stage.outbox.due() <= {"pacs"}
            if stage.outbox.due():
                stage.outbox.serve("pacs")
                rounds += 1
            stage.later(5)
        assert set(stage.states()) == {"queued"}
        assert {row.error_code for row in stage.rows().values()} == {"unreachable"}
        assert rounds < 20
        with listening(pacs):
            stage.later(600)
            stage.outbox.serve("pacs")
            assert stage.states() == ["stored", "stored"]
            assert pacs.uids() == uids


def test_a_peer_that_stays_away_is_given_up_and_retried_by_hand(tmp_path: Path) -> None:
    pacs = FakePacs(port=free_port())
    with staged(tmp_path, pacs.port) as stage:
        (seg,) = stage.result("seg")
        stage.outbox.serve("pacs")
        stage.later(86400)
        stage.outbox.serve("pacs")
        (letter,) = stage.ledger.write(deliveries.deliveries, "dead")
        assert (letter.destination, letter.kind, letter.sop_instance_uid) == ("pacs", "seg", seg)
        assert "given up after 2 attempts in 24.0 h" in letter.error
        assert stage.outbox.due() == frozenset()
        assert stage.ledger.write(deliveries.retry_dead, stage.clock.wall_s, letter.id + 1) == 0
        assert stage.ledger.write(deliveries.retry_dead, stage.clock.wall_s, letter.id) == 1
        stage.outbox.serve("pacs")  # still away: patience begins anew
        assert (stage.rows()[seg].state, stage.rows()[seg].ready_at) == ("queued", stage.clock.wall_s + 5)
        with listening(pacs):
            stage.later(5)
            stage.outbox.serve("pacs")
        assert stage.states() == ["stored"]


def test_an_association_that_breaks_costs_one_attempt_of_one_object(stage: Stage, pacs: FakePacs) -> None:
    (first,), (second,) = stage.result("seg"), stage.result("seg")
    pacs.answer = lambda uid: None if uid == first else 0x0000
    stage.outbox.serve("pacs")
    found = stage.rows()
    assert (found[first].state, found[first].error_code, found[first].failures) == ("queued", "broken", 1)
    assert (found[second].state, found[second].failures) == ("queued", 0)
    stage.outbox.serve("pacs")
    assert stage.rows()[second].state == "stored"


def test_many_results_go_in_turns(stage: Stage, pacs: FakePacs) -> None:
    for _ in range(MOST + 1):
        stage.result("seg")
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored"] * MOST + ["queued"]
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored"] * (MOST + 1)
    assert pacs.associations == 2


def test_a_damaged_or_missing_file_never_leaves(stage: Stage, pacs: FakePacs) -> None:
    damaged, missing = stage.result("seg", "sr")
    path = stage.spool / f"{damaged}.dcm"
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    (stage.spool / f"{missing}.dcm").unlink()
    stage.outbox.serve("pacs")
    assert pacs.got == []
    assert [row.error_code for row in stage.rows().values()] == ["unsendable", "unsendable"]


def test_a_name_that_is_no_peer_is_a_dead_letter(stage: Stage) -> None:
    stage.result("seg", to=["gone"])
    assert stage.outbox.due() == {"gone"}
    stage.outbox.serve("gone")
    (letter,) = stage.ledger.write(deliveries.deliveries, "dead")
    assert letter.error_code == "no_peer" and "gone" in letter.error


def test_a_peer_that_left_the_settings_is_believed(
    stage: Stage, pacs: FakePacs, caplog: pytest.LogCaptureFixture
) -> None:
    stage.result("seg", "sr")
    stage.outbox.serve("pacs")
    stage.outbox.settle(replace(stage.settings, peers=()))
    stage.later(10)
    assert stage.outbox.due() == {"pacs"}
    stage.outbox.serve("pacs")
    for row in stage.rows().values():  # as retention wants it
        assert (row.state, row.asked) == ("stored", LAST_ASK) and row.ready_at <= stage.clock.wall_s
    assert stage.outbox.due() == frozenset()
    assert [record.event for record in caplog.records if "not confirmed" in record.message] == ["delivery.believed"]  # type: ignore[attr-defined]
    assert pacs.associations == 1


def test_a_superseded_result_that_was_not_sent_is_not_sent(stage: Stage, pacs: FakePacs) -> None:
    stage.result("seg", "sr")
    seg, sr = stage.result("seg", "sr", predecessor=1)
    stage.outbox.serve("pacs")
    assert stage.states() == ["cancelled", "cancelled", "stored", "stored"]
    assert pacs.uids() == [seg, sr]


def test_a_sender_that_died_is_followed_by_the_next(stage: Stage, pacs: FakePacs) -> None:
    (seg,) = stage.result("seg")
    now = stage.clock.wall_s
    (dead,) = stage.ledger.write(deliveries.claim_outgoing, "pacs", stage.outbox._owner, now, now + 500, 9)
    assert stage.outbox.due() == frozenset()
    assert stage.outbox.recover() == 1
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored"]
    assert not stage.ledger.write(deliveries.end_delivery, dead.claim, 0, now)  # too late: fenced
    assert pacs.uids() == [seg]


def test_stopping_puts_back_what_was_not_sent(tmp_path: Path, pacs: FakePacs) -> None:
    with staged(tmp_path, pacs.port) as stage:
        stage.result("seg", "sr")
        stage.open(stopping=lambda: len(pacs.got) > 0)
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored", "queued"]
        assert stage.rows()[pacs.uids()[0]].status == 0


def test_a_peer_that_hangs_holds_up_nobody_else(tmp_path: Path, pacs: FakePacs) -> None:
    hang, stop = threading.Event(), threading.Event()
    stuck = FakePacs(answer=lambda _: 0x0000 if hang.wait(20) else None)
    with listening(stuck), staged(tmp_path, stuck.port, pacs.port, commitment=False) as stage:
        stage.result("seg", to=["pacs", "pacs2"])
        sender = threading.Thread(target=outbox.run, args=(Live(stage.settings), stop))
        sender.start()
        try:
            wait_for("the first object", lambda: len(pacs.got) == 1)
            stage.result("sr", to=["pacs2"])
            wait_for("the second object", lambda: len(pacs.got) == 2)
            assert stuck.got == []
            hang.set()
            wait_for("the object of the slow peer", lambda: len(stuck.got) == 1)
            wait_for("the states of the deliveries", lambda: stage.states() == ["stored"] * 3)
        finally:
            hang.set()
            stop.set()
            sender.join(20)
        assert not sender.is_alive()


@contextmanager
def running(stage: Stage) -> Iterator[None]:
    """A sender that runs by itself."""
    stop = threading.Event()
    sender = threading.Thread(target=outbox.run, args=(Live(stage.settings), stop))
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join(20)
    assert not sender.is_alive()


def test_a_file_that_vanishes_under_way_holds_up_nobody_else(tmp_path: Path, pacs: FakePacs) -> None:
    with staged(tmp_path, pacs.port, commitment=False) as stage:
        (first,), (gone,), (last,) = (stage.result("seg") for _ in range(3))

        def take_away(_: str) -> int:
            (stage.spool / f"{gone}.dcm").unlink(missing_ok=True)
            return 0x0000

        pacs.answer = take_away
        with running(stage):
            wait_for("the states of the deliveries", lambda: stage.states() == ["stored", "dead", "stored"])
        assert stage.rows()[gone].error_code == "unsendable"
        assert pacs.uids() == [first, last]


def test_a_ledger_that_is_locked_for_a_while_holds_up_nothing_for_longer(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "BUSY_S", 0.2)
    with (
        staged(tmp_path, pacs.port, commitment=False) as stage,
        closing(sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False)) as other,
    ):
        uids = [*stage.result("seg"), *stage.result("seg")]

        def lock_first(_: str) -> int:
            if not pacs.got:
                other.execute("BEGIN IMMEDIATE")
            return 0x0000

        pacs.answer = lock_first
        with running(stage):
            wait_for("the lock", lambda: other.in_transaction)
            time.sleep(1)  # several attempts fail
            assert stage.states() == ["sending", "sending"]
            other.rollback()
            wait_for("the states of the deliveries", lambda: stage.states() == ["stored", "stored"])
        assert set(pacs.uids()) == set(uids)


def test_implicit_little_endian_is_made_only_where_nothing_else_is_taken(tmp_path: Path) -> None:
    with listening(FakePacs(), [SEG], [ImplicitVRLittleEndian]) as pacs, staged(tmp_path, pacs.port) as stage:
        (seg,) = stage.result("seg")
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored"]
        (received,) = pacs.received
        assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert received.PixelData == dcmread(stage.spool / f"{seg}.dcm").PixelData


def test_a_host_that_answers_no_dicom_is_no_loss(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, staged(tmp_path, mute.getsockname()[1]) as stage:
        threading.Thread(target=lambda: mute.accept()[0].close(), daemon=True).start()
        (seg,) = stage.result("seg")
        stage.outbox.serve("pacs")
        assert (stage.rows()[seg].state, stage.rows()[seg].error_code) == ("queued", "broken")


def test_a_reload_while_it_runs_brings_the_peer_that_was_missing(tmp_path: Path, pacs: FakePacs) -> None:
    stop = threading.Event()
    with staged(tmp_path, pacs.port, commitment=False) as stage:
        live = Live(replace(stage.settings, peers=()))
        sender = threading.Thread(target=outbox.run, args=(live, stop))
        sender.start()
        try:
            (seg,) = stage.result("seg")
            wait_for("the states of the deliveries", lambda: stage.states() == ["dead"])
            assert stage.rows()[seg].error_code == "no_peer"
            live.now = stage.settings
            wait_for("the retry", lambda: _retried(stage))
        finally:
            stop.set()
            sender.join(20)
        assert not sender.is_alive()


def _retried(stage: Stage) -> bool:
    """Send what is dead again, until it is stored: the sender takes other settings between two looks."""
    stage.ledger.write(deliveries.retry_dead, stage.clock.wall_s)
    return stage.states() == ["stored"]
