"""The outbox's rows: who may claim what, and who comes too late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ledger import deliveries
from gateway.ledger.records import DeliveryRow
from gateway.retry import Fault
from gateway.settings.model import Deliver
from tests.gateway.deliver.stage import Stage, staged
from tests.ports import free_port

DELIVER = Deliver()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path, free_port()) as one:
        yield one


def claim(stage: Stage, owner: str = "one", *, most: int = 9, lease_s: float = 100) -> tuple[DeliveryRow, ...]:
    now = stage.clock.wall_s
    return stage.ledger.write(deliveries.claim_outgoing, "pacs", owner, now, now + lease_s, most)


def test_two_senders_share_nothing(stage: Stage) -> None:
    for _ in range(4):
        stage.result("seg")
    first, second = claim(stage, "one", most=3), claim(stage, "two", most=3)
    assert (len(first), len(second)) == (3, 1)
    assert not {out.claim.id for out in first} & {out.claim.id for out in second}


def test_a_report_does_not_overtake_its_segmentation(stage: Stage) -> None:
    stage.result("seg", "sr")
    (seg,) = claim(stage, "one", most=1)
    assert seg.kind == "seg"
    assert claim(stage, "two") == ()  # while another sends the segmentation
    now = stage.clock.wall_s
    why = {"status": 0xA700, "detail": "full"}
    assert stage.ledger.write(deliveries.fail, seg, Fault.BUSY, now, DELIVER, 0.5, **why)
    assert claim(stage, "two") == ()  # while the segmentation waits
    stage.later(5)
    assert [out.kind for out in claim(stage, "two")] == ["seg", "sr"]


def test_another_result_does_overtake(stage: Stage) -> None:
    stage.result("seg")
    claim(stage, "one")
    stage.result("sr")
    assert [out.kind for out in claim(stage, "two")] == ["sr"]


def test_a_lease_that_runs_out_is_taken_over_and_fences(stage: Stage) -> None:
    stage.result("seg")
    (late,) = claim(stage, "one", lease_s=10)
    stage.later(9)
    assert stage.ledger.write(deliveries.renew_delivery, late.claim, stage.clock.wall_s + 10)
    stage.later(9)
    assert claim(stage, "two") == ()
    stage.later(2)
    assert stage.outbox.due() == {"pacs"}
    (taken,) = claim(stage, "two")
    now = stage.clock.wall_s
    assert not stage.ledger.write(deliveries.renew_delivery, late.claim, now + 10)
    assert not stage.ledger.write(deliveries.put_back_delivery, late.claim)
    assert not stage.ledger.write(deliveries.end_delivery, late.claim, 0, now)
    assert stage.ledger.write(deliveries.end_delivery, taken.claim, 0, now)


def test_who_asks_is_fenced_by_who_asks_later(stage: Stage) -> None:
    stage.result("seg")
    (out,) = claim(stage)
    now = stage.clock.wall_s
    stage.ledger.write(deliveries.end_delivery, out.claim, 0, now)

    def ask(at: float) -> tuple[DeliveryRow, ...]:
        return stage.ledger.write(deliveries.claim_unconfirmed, "pacs", at, at + 900, 9)

    (first,) = ask(now)
    assert ask(now + 1) == ()
    (second,) = ask(now + 901)
    assert (first.asked, second.asked) == (1, 2)
    assert not stage.ledger.write(deliveries.confirm, first.claim, now + 902)
    assert not stage.ledger.write(deliveries.lose, first, now + 902, DELIVER, 0.5, "late")
    assert stage.ledger.write(deliveries.confirm, second.claim, now + 902)
    assert stage.states() == ["confirmed"]


def test_what_was_superseded_while_it_was_sent_is_not_sent_again(stage: Stage) -> None:
    stage.result("seg")
    (out,) = claim(stage)
    stage.result("seg", predecessor=1)
    now = stage.clock.wall_s
    stage.ledger.write(deliveries.fail, out, Fault.BUSY, now, DELIVER, 0.5, status=0xA700, detail="full")
    assert len(claim(stage)) == 1
    assert stage.states() == ["cancelled", "sending"]


def test_all_dead_letters_are_retried_at_once(stage: Stage) -> None:
    stage.result("seg", "sr", to=["pacs", "gone"])
    now = stage.clock.wall_s
    for out in claim(stage):
        stage.ledger.write(deliveries.fail, out, Fault.REFUSED, now, DELIVER, 0.5, status=0xC000, detail="no")
    letters = stage.ledger.write(deliveries.deliveries, "dead")
    assert [letter.status for letter in letters] == [0xC000, 0xC000]
    assert stage.ledger.write(deliveries.retry_dead, now) == 2
    assert stage.ledger.write(deliveries.retry_dead, now) == 0
    assert stage.states() == ["queued"] * 4
