"""Case 10: a PACS that is down for an hour, rejects us, takes no SEG, answers B000H, A700H or 0110H, or loses things.

Pauses grow, what will never be taken stops at once, warnings count as stored, and commitment finds what was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from pynetdicom.sop_class import Verification

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import COMMIT, FIND, SEG, SR, FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import data_set_of
from tests.waiting import wait_for

HOUR_S, ROUNDS = 3600.0, 24
NO_SUCH_OBJECT = 0x0112  # Failure Reason of storage commitment


@pytest.fixture
def peers(fakes: dict[str, FakePacs]) -> Iterator[dict[str, FakePacs]]:
    """All of them listen, but the one that is down."""
    fakes["rejecting"].reject = (1, 1, 3)  # permanent: calling AE title not recognized
    fakes["warning"].answer = lambda _: 0xB000
    fakes["busy"].answer = lambda _: 0xA700
    fakes["failing"].answer = lambda _: 0x0110
    fakes["losing"].committed = lambda uid: NO_SUCH_OBJECT if fakes["losing"].uids().count(uid) == 1 else None
    classes = {
        "no_seg": (SR, Verification),
        "losing": (SEG, SR, COMMIT, FIND, Verification),
    }
    with contextlib.ExitStack() as stack:
        for name, fake in fakes.items():
            if name not in ("down", "reporting", "away"):
                stack.enter_context(listening(fake, classes.get(name, (SEG, SR, Verification))))
        yield fakes


@pytest.mark.slow
def test_case_10_each_peer_gets_what_it_can(gateway: Faulty, peers: dict[str, FakePacs]) -> None:
    series = new_phantom(SeriesDescription="to every peer")
    assert store_all(gateway.port, series) == [0] * 8
    gateway.complete(series)
    assert gateway.ended(series).state == "done"

    def rows(name: str) -> dict[str, Any]:
        return {row.kind: row for row in gateway.deliveries(series) if row.destination == name}

    def until(name: str, seg: str, sr: str) -> None:
        def there() -> bool:
            found = {kind: row.state for kind, row in rows(name).items()}
            if found == {"seg": seg, "sr": sr}:
                return True
            gateway.leap(2)
            return False

        wait_for(f"{seg} and {sr} at {name}", there)

    until("warning", "stored", "stored")
    assert rows("warning")["seg"].status == 0xB000
    until("rejecting", "dead", "dead")
    assert (rows("rejecting")["seg"].error_code, peers["rejecting"].associations) == ("rejected", 1)
    until("no_seg", "dead", "stored")
    assert rows("no_seg")["seg"].error_code == "not_accepted" and SEG in rows("no_seg")["seg"].error
    until("losing", "confirmed", "confirmed")
    seg, sr = (rows("losing")[kind].sop_instance_uid for kind in ("seg", "sr"))
    assert peers["losing"].uids().count(seg) == 2
    assert len({content for uid, content in peers["losing"].got if uid == seg}) == 1  # the same bytes again

    for name, code in (("busy", "busy"), ("failing", "failed"), ("down", "unreachable")):
        row = wait_for(f"a failure at {name}", lambda name=name: rows(name)["seg"].failures and rows(name)["seg"])
        assert (row.state, row.error_code) in {("queued", code), ("sending", code)}
    for _ in range(ROUNDS):
        gateway.leap(HOUR_S / ROUNDS)
        wait_for("what is due", lambda: not due(gateway, rows("down")["seg"]))
    tried = rows("down")["seg"].failures
    assert 5 < tried < 20  # 5, 10, 20, ... 600, 600 s
    assert {row.state for row in rows("down").values()} == {"queued"}
    for name in ("busy", "failing"):
        peers[name].answer = lambda _: 0x0000
    with listening(peers["down"], (SEG, SR, Verification)):
        for name in ("busy", "failing", "down"):
            until(name, "stored", "stored")
    for name in ("busy", "failing", "down"):
        sent = dict(peers[name].got)
        assert sent == {row.sop_instance_uid: frozen(gateway, row.sop_instance_uid) for row in rows(name).values()}
    assert sr in {row.sop_instance_uid for row in rows("down").values()}


def due(gateway: Faulty, row: Any) -> bool:
    """Whether a delivery is being sent, or should be."""
    return row.state == "sending" or (row.state == "queued" and row.ready_at <= gateway.wall_clock())


def frozen(gateway: Faulty, uid: str) -> bytes:
    (row,) = gateway.rows(f"SELECT path FROM result_object WHERE sop_instance_uid = '{uid}'")
    return data_set_of(gateway.spool / row.path)
