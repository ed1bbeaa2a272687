"""Series on their way through the gateway, by a clock that the test moves. Worker and sender are played, and who tells
why nothing was segmented."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from gateway.keep.retention import ROUND_S, Retention
from gateway.ledger import deliveries, jobs, results, unanswered
from gateway.ledger.claims import Claim
from gateway.ledger.results import NewObject, NewResult
from gateway.receive.reconcile import Reconciliation, reconcile
from gateway.receive.spool import Spool
from gateway.settings.model import GatewaySettings
from gateway.settings.read import read_settings
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.receiving import NEVER_FULL
from tests.gateway.spooling import Inbox, inbox

LATE_S, INPUTS_S, RESULTS_S = 60, 600, 3600
TIMES = f"""
[complete]
late_s = {LATE_S}
quiet_gap_s = 5
quiet_late_s = 5
[retain]
inputs_s = {INPUTS_S}
results_s = {RESULTS_S}
"""
QUIET_S = 5.0


class House:
    """A gateway without processes."""

    def __init__(self, box: Inbox, folder: Path, rules: str = "") -> None:
        self.box, self.clock = box, Clock()
        settings = read_settings(TIMES + rules, folder)
        self.settings: GatewaySettings = replace(settings, gateway=replace(settings.gateway, spool=box.folder))
        self.director = Director(box.ledger, box.folder, self.settings)
        self.retention = Retention(box.ledger, box.folder)

    def pass_time(self, seconds: float = 0.0) -> None:
        """Let time pass, then let director and retention do what is due."""
        self.clock.after(seconds)
        self.director.step(self.clock.now_s, self.clock.wall_s)
        self.tell()
        for _ in range(10):
            if not self.retention.step(self.settings.retain, self.clock.now_s, self.clock.wall_s):
                break
        self.clock.after(ROUND_S)

    def tell(self) -> None:
        """Say why nothing was segmented, where that is to be said."""
        with self.box.ledger.read() as db:
            ripe = unanswered.ripe(db, self.clock.wall_s, QUIET_S)
        for row in ripe:
            self.box.ledger.write(unanswered.drop, row)

    def take_in(self, series: Sequence[Dataset]) -> None:
        """A series comes, and is decided upon."""
        self.box.send(series)
        self.director.step(*self.clock.after(0))
        self.director.step(*self.clock.after(QUIET_S))

    def claim(self) -> Claim:
        now = self.clock.wall_s
        claim = self.box.ledger.write(jobs.claim_job, "worker", now, now + 30)
        assert claim is not None
        return claim

    def finish(self, claim: Claim, *to: str) -> None:
        """The worker is done: a result with a SEG."""
        folder = self.box.folder / "results" / f"key{claim.id}"
        folder.mkdir(parents=True)
        (folder / "seg.dcm").write_bytes(b"seg")
        (folder / "result.json").write_text("{}")
        for path in (folder / "seg.dcm", folder):
            os.utime(path, (self.clock.wall_s, self.clock.wall_s))
        path, uid = f"results/key{claim.id}/seg.dcm", f"1.2.3.{claim.id}"
        made = NewObject("seg", str(SegmentationStorage), uid, path, 3, "0" * 64)
        result = NewResult(f"key{claim.id}", "bundle", "1", [], (made,))
        now = self.clock.wall_s
        assert self.box.ledger.write(results.finish_job, claim, result, to, now)

    def store(self, confirmed: bool = True, peer: str = "pacs") -> None:
        """The sender has stored all that waits for a peer, and asked after it."""
        now, ledger = self.clock.wall_s, self.box.ledger
        while claim := ledger.write(deliveries.claim_delivery, peer, "sender", now, now + 30):
            ledger.write(deliveries.end_delivery, claim, 0, now)  # type: ignore[misc]
        if confirmed:
            asked = ledger.write(deliveries.claim_unconfirmed, peer, now, now + 900, 100)
            for out in asked:
                ledger.write(deliveries.confirm, out.claim, now)  # type: ignore[misc]

    def deliver(self, series: Sequence[Dataset]) -> None:
        """A series comes, is segmented, and its result is confirmed."""
        self.take_in(series)
        self.finish(self.claim(), "pacs")
        self.store()

    def files(self, below: str) -> list[Path]:
        return sorted(path for path in (self.box.folder / below).rglob("*") if path.is_file())

    def restart(self) -> Reconciliation:
        """What the start of the service finds between spool and ledger."""
        return reconcile(Spool(self.box.folder, self.box.ledger, NEVER_FULL), self.box.ledger)


@contextmanager
def house(folder: Path, rules: str = "") -> Iterator[House]:
    with inbox(folder) as box:
        yield House(box, folder, rules)
