"""What was not taken is counted for each peer, outlives a restart, and stays bounded."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.dimse.noise import OTHERS
from gateway.dimse.store import RefusedCaller, StoreRefusal
from gateway.ledger import refusals
from gateway.ledger.ledger import Ledger
from gateway.ledger.refusals import LATELY_S, MOST, SHOWN
from gateway.receive.refused import Refusals
from medseg.cli.app import make_app
from tests.gateway.clock import Clock
from tests.gateway.ledgers import new_ledger
from tests.gateway.receiving import CT, RawPeer, associate_request, encode, make_ct, receiving, store_message
from tests.waiting import wait_for


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/refusals.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger(url) as opened:
        yield opened


def shown(ledger: Ledger, now: float) -> list[refusals.RefusedPeer]:
    with ledger.read() as db:
        return list(refusals.latest(db, now))


def refusal(host: str = "192.0.2.1", calling: str = "CT07", **more: object) -> StoreRefusal:
    return StoreRefusal(RefusedCaller.ASSOCIATION, calling, host, "calling AE title not recognized, for good", **more)  # type: ignore[arg-type]


def test_counts_grow_and_the_last_reason_counts(url: str, ledger: Ledger) -> None:
    clock = Clock(1e9)
    gathered = Refusals(ledger, clock.wall)
    for _ in range(3):
        gathered.note(refusal())
    gathered.step()
    clock.after(0.5)
    gathered.note(StoreRefusal(RefusedCaller.ASSOCIATION, "CT07", "192.0.2.1", "local limit exceeded, for now"))
    gathered.step()  # once a second
    assert [one.count for one in shown(ledger, clock.wall_s)] == [3]
    clock.after(1)
    gathered.step()
    clock.after(10)
    gathered.note(StoreRefusal(RefusedCaller.INSTANCE, "CT07", "192.0.2.1", "cannot understand (C000H)", "1.2.3"))
    gathered.step()
    with Ledger(url) as again:
        instance, association = shown(again, clock.wall_s)
    assert (association.count, association.reason) == (4, "local limit exceeded, for now")
    assert association.line == "4 associations of CT07 at 192.0.2.1, the last: local limit exceeded, for now"
    assert instance.line == "1 instance of CT07 at 192.0.2.1, the last: instance 1.2.3: cannot understand (C000H)"
    assert shown(ledger, clock.wall_s + LATELY_S + 20) == []


def test_names_that_peers_choose_fill_nothing(ledger: Ledger) -> None:
    clock = Clock(1e9)
    gathered = Refusals(ledger, clock.wall)
    for number in range(3 * MOST):
        gathered.note(refusal(calling=f"AE{number}\n" + "x" * 100))
    gathered.step()
    with ledger.read() as db:
        rows = db.exec_driver_sql("SELECT calling_ae, host, count FROM refusal").all()
    assert len(rows) == MOST + 1
    for number in range(3):
        clock.after(10)
        gathered.note(refusal(host=f"198.51.100.{number}"))
        gathered.step()
    assert [one.host for one in shown(ledger, clock.wall_s)][:3] == [f"198.51.100.{number}" for number in (2, 1, 0)]
    assert len(shown(ledger, clock.wall_s)) == SHOWN
    assert all(len(calling) <= 64 and "\n" not in calling for calling, _, _ in rows)
    assert {count for _, host, count in rows if host == OTHERS} == {2 * MOST}


def test_what_is_refused_at_the_port(tmp_path: Path, url: str, ledger: Ledger) -> None:
    """An instance, an association and a connection; then `medseg status` and its JSON tell of them."""
    clock = Clock(1e9)
    gathered = Refusals(ledger, clock.wall)
    instance = make_ct(StudyInstanceUID="1." * 34 + "12")
    with receiving(tmp_path, noted=gathered.note, callers=[("CT07", None)]) as receiver:
        with RawPeer(receiver.scp.port, associate_request(calling="CT07")) as peer:
            peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance)))
            assert peer.read_status() == 0xC000
            peer.release()
        with RawPeer(receiver.scp.port, associate_request(calling="STRANGER")) as peer:
            assert peer.answer_type == 3
        with RawPeer(receiver.scp.port, struct.pack(">I", 0x16030100)) as peer:
            assert peer.answer_type == 7
        wait_for("the connections to end", lambda: not receiver.scp.connections)
    gathered.step()
    told = {one.what: one for one in shown(ledger, clock.wall_s)}
    assert told["instance"].sop_instance_uid == instance.SOPInstanceUID
    assert told["instance"].reason.startswith("cannot understand (C000H): ")
    assert (told["association"].calling_ae, told["association"].host) == ("STRANGER", "127.0.0.1")
    assert told["association"].reason == "calling AE title not recognized, for good"
    assert "TLS" in told["connection"].reason


def test_status_tells_of_them(tmp_path: Path) -> None:
    config = tmp_path / "medseg.toml"
    config.write_text(
        f'[gateway]\nae_title = "MEDSEG"\nspool = "{tmp_path}/spool"\ndatabase = "sqlite:///{tmp_path}/ledger.db"\n'
        "allow_any_caller = true\n",
        "utf-8",
    )
    with new_ledger(tmp_path) as ledger:
        gathered = Refusals(ledger, time.time)
        gathered.note(refusal())
        gathered.step()
    told = CliRunner().invoke(make_app(), ["status", "--config", str(config)])
    assert told.exit_code == 0, told.output
    assert "1 association of CT07 at 192.0.2.1, the last: calling AE title not recognized, for good" in told.output
