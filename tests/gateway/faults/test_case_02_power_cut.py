"""Case 2: the power goes. Every instance answered 0000H is readable and digest-equal afterwards.

A service is recorded by `strace` while studies come in and results leave; then the recording is replayed up to many
moments, what was not synced by then is dropped (all of it, or sectors at random), and the service recovers on the rest.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import text

from gateway.dimse.command import elements
from gateway.ledger.ledger import Ledger
from gateway.serve import supervisor
from gateway.settings.model import GatewaySettings
from gateway.settings.read import load_settings
from tests.gateway.faults.conftest import TIMES, rules
from tests.gateway.faults.faulty import QUICK, Faulty, store_all
from tests.gateway.faults.power import Call, Disk, command, read_trace
from tests.gateway.faults.report import report
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import Receiver, encode
from tests.gateway.spooling import Inbox
from tests.peers import require
from tests.waiting import wait_for

STORE_RESPONSE = 0x8001


@dataclass
class Recording:
    """What a service did to its disk. data_sets: of what was sent, by SOP Instance UID."""

    calls: list[Call]
    root: Path
    settings: GatewaySettings
    data_sets: dict[str, bytes]


def record(folder: Path, bundle: Path, pacs: FakePacs, studies: int, slices: int) -> Recording:
    """Let a service live through studies from three senders at once, a repetition, results, and a stop."""
    root = folder / "disk"
    root.mkdir()
    trace = folder / "trace"
    deliver = "[deliver]\ncommitment = false\n"
    constants = QUICK | {"gateway.ledger.ledger": {"WAL_BYTES": 1 << 18}}  # a shorter recording
    recorded = Faulty(folder, TIMES + deliver + rules(bundle, pacs.port), constants, root, root)
    recorded.before = command(trace)
    sent = [new_phantom(seed, slices) for seed in range(studies)]
    recorded.start()
    try:
        senders = [threading.Thread(target=_send, args=(recorded.port, sent[n::3])) for n in range(3)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert store_all(recorded.port, sent[0][:2]) == [0, 0]
        wait_for("results", lambda: len(pacs.of("SEG")) == len(pacs.of("SR")) == studies)
    finally:
        (pid,) = Path(f"/proc/{recorded.process.pid}/task/{recorded.process.pid}/children").read_text().split()
        os.kill(int(pid), signal.SIGTERM)
        recorded.process.wait(60)
    return Recording(
        list(read_trace(trace)),
        root,
        load_settings(folder / "medseg.toml"),
        {str(one.SOPInstanceUID): encode(one) for series in sent for one in series},
    )


def _send(port: int, studies: list[list[Dataset]]) -> None:
    for study in studies:
        assert store_all(port, study) == [0] * len(study)


def acknowledged(call: Call) -> Iterator[str]:
    """SOP Instance UIDs that a peer is told are stored, when this is sent."""
    for data in call.args:
        if call.name == "sendto" and isinstance(data, bytes) and data[:1] == b"\x04" and data[11] & 1:  # a command
            found = elements(data[12:])
            if int.from_bytes(found[0x0100], "little") == STORE_RESPONSE and not any(found[0x0900]):
                yield found[0x1000].rstrip(b"\0").decode()


def cuts(recording: Recording, count: int, chance: random.Random) -> list[int]:
    """Moments: some right after an answer left, the others anywhere something happened to the disk."""
    root = str(recording.root).encode()
    touching = [
        number
        for number, call in enumerate(recording.calls, 1)
        if any(root in (arg if isinstance(arg, bytes) else arg.encode()) for arg in call.args)
    ]
    answers = [number for number, call in enumerate(recording.calls, 1) if any(acknowledged(call))]
    chosen = [*chance.sample(answers, min(len(answers), count // 2))]
    return sorted([*chosen, *chance.sample(touching, min(len(touching), count - len(chosen)))])


def check(folder: Path, recording: Recording, told: set[str]) -> None:
    """After a cut: recover as `serve` does at start, and look at what is there."""
    root, gateway = recording.root, recording.settings.gateway
    moved = {"spool": folder / gateway.spool.relative_to(root), "database": f"sqlite:///{folder}/ledger.db"}
    settings = _replaced(recording.settings, moved)
    with Ledger(settings.gateway.database) as ledger:
        supervisor.recover(settings, ledger)
        spool = supervisor.Spool(settings.gateway.spool, ledger, supervisor.processes.watermark(settings))
        receiver = Receiver(None, spool, ledger)  # type: ignore[arg-type]
        stored = receiver.stored()
        assert {uid: recording.data_sets[uid] for uid in told}.items() <= stored.items()
        with ledger.read() as db:
            assert db.execute(text("PRAGMA integrity_check")).scalar() == "ok"
        for row in receiver.rows("result_object"):
            assert hashlib.sha256((spool.folder / row.path).read_bytes()).hexdigest() == row.sha256
        assert not {row.state for row in receiver.rows("job")} & {"running"}
        new = new_phantom()  # and it goes on
        Inbox(spool, ledger).send(new)
        assert receiver.stored().keys() >= told | {str(one.SOPInstanceUID) for one in new}


def _replaced(settings: GatewaySettings, gateway: dict[str, Any]) -> GatewaySettings:
    from dataclasses import replace

    return replace(settings, gateway=replace(settings.gateway, **gateway))


@pytest.mark.parametrize(
    ("studies", "slices", "count"),
    [pytest.param(2, 4, 10, marks=pytest.mark.slow), pytest.param(40, 8, 600, marks=pytest.mark.reliability)],
)
def test_case_02_power_cut(tmp_path: Path, bundle: Path, studies: int, slices: int, count: int) -> None:
    require("strace")
    with listening(FakePacs()) as pacs:
        recording = record(tmp_path, bundle, pacs, studies, slices)
    began_s, chance = time.monotonic(), random.Random(count)
    disk, told, done = Disk(recording.root), set[str](), 0
    moments = cuts(recording, count, chance)
    for cut in moments:
        for call in recording.calls[done:cut]:
            disk.apply(call)
            told.update(acknowledged(call))
        done = cut
        for some in (None, chance):
            there = tmp_path / "after"
            there.mkdir()
            disk.write_after_cut(there, some)
            check(there, recording, told)
            shutil.rmtree(there)
    for call in recording.calls[done:]:
        disk.apply(call)
        told.update(acknowledged(call))
    assert told == recording.data_sets.keys()
    seen = {path.relative_to(recording.root).as_posix(): path for path in recording.root.rglob("*") if path.is_file()}
    assert disk.files() == {name: path.read_bytes() for name, path in seen.items()}  # the replay is true
    report(
        "power cut (case 2)",
        began_s,
        injected=f"{len(moments)} cuts (seed {count}) of a recording of {len(recording.calls)} system calls, "
        "each with all that was not synced dropped, and again with sectors of it kept at random",
        held=f"every instance answered 0000H before the cut (of {len(told)}) is there, digest-equal; every result "
        "in the ledger whole, the ledger sound; the next study is taken",
    )
