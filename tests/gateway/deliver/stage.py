"""A peer that answers as it is told to, and an outbox with results for it, by a clock that is set by hand."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy import insert, text

from gateway.deliver import outbox
from gateway.dimse.scu import RequestorTimeouts
from gateway.ledger import tables
from gateway.ledger.ledger import Ledger
from gateway.settings.model import Deliver, Gateway, GatewaySettings, Peer
from tests.gateway.clock import Clock
from tests.gateway.ledgers import new_ledger
from tests.gateway.pacs import SEG, SR
from tests.gateway.receiving import make_ct, write_file

QUICK = RequestorTimeouts(connect_s=5, acse_s=5, dimse_s=10, report_s=10)


class Outbox(outbox.Outbox):
    """settings: those that it serves by; may be replaced."""

    def __init__(self, ledger: Ledger, settings: GatewaySettings, **chosen: Any) -> None:
        super().__init__(ledger, settings.gateway.spool, **chosen)
        self.settle(settings)

    def settle(self, settings: GatewaySettings) -> None:
        self.settings = settings

    def serve(self, name: str) -> None:  # type: ignore[override]
        super().serve(self.settings, name)


@dataclass
class Stage:
    """An outbox with its ledger and spool."""

    ledger: Ledger
    settings: GatewaySettings
    clock: Clock
    outbox: Outbox

    @property
    def spool(self) -> Path:
        return self.settings.gateway.spool

    def result(self, *kinds: str, to: Collection[str] = ("pacs",), predecessor: int | None = None) -> list[str]:
        """A result with small objects of those kinds; their SOP Instance UIDs."""
        classes = {"seg": SEG, "sr": SR}
        made = []
        for kind in kinds:
            instance = make_ct(SOPClassUID=classes[kind])
            instance.file_meta.MediaStorageSOPClassUID = classes[kind]
            made.append((kind, write_file(instance, self.spool / f"{instance.SOPInstanceUID}.dcm")))
        self.deliver(made, to, predecessor)
        return [str(path.stem) for _, path in made]

    def deliver(
        self, objects: Collection[tuple[str, Path]], to: Collection[str] = ("pacs",), predecessor: int | None = None
    ) -> None:
        """Put the files of a result into the outbox."""
        now = self.clock.wall_s

        def prepare(db: Any) -> None:
            study, one = str(generate_uid()), str(generate_uid())
            first = None if predecessor is None else db.execute(tables.result.select()).first()
            names = {"study_uid": first.study_uid if first else study, "series_uid": first.series_uid if first else one}
            if first is None:
                times = {"first_at": now, "last_at": now, "complete_at": now}
                row = names | times | {"instances": 1, "revision": 1, "state": "complete"}
                db.execute(insert(tables.series), row)
            work = names | {"revision": 1, "bundle": "b", "rule": "r", "mode": "on", "state": "done", "attempt": 1}
            times = {"due": now, "ready_at": now, "created_at": now, "finished_at": now}
            job = db.execute(insert(tables.job).returning(tables.job.c.id), work | times).scalar_one()
            came = names | {"job_id": job, "result_key": f"k{job}", "bundle": "b", "bundle_version": "1"}
            more = {"facts": "{}", "created_at": now, "predecessor_id": predecessor}
            result = db.execute(insert(tables.result).returning(tables.result.c.id), came | more).scalar_one()
            for kind, path in objects:
                header, content = dcmread(path, stop_before_pixels=True), path.read_bytes()
                thing = {
                    "result_id": result,
                    "kind": kind,
                    "sop_class_uid": str(header.SOPClassUID),
                    "sop_instance_uid": str(header.SOPInstanceUID),
                    "path": path.relative_to(self.spool).as_posix(),
                    "size_bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
                row_id = db.execute(
                    insert(tables.result_object).returning(tables.result_object.c.id), thing
                ).scalar_one()
                for name in to:
                    way = {"object_id": row_id, "destination": name, "state": "queued", "attempt": 0}
                    db.execute(insert(tables.delivery), way | {"ready_at": now, "created_at": now})

        self.ledger.write(prepare)

    def rows(self) -> dict[str, Any]:
        """SOP Instance UID to delivery; to the last destination where there are several."""
        query = "SELECT o.sop_instance_uid AS uid, d.* FROM delivery d JOIN result_object o ON o.id = d.object_id"
        with self.ledger.read() as db:
            return {row.uid: row for row in db.execute(text(query))}

    def states(self) -> list[str]:
        with self.ledger.read() as db:
            return list(db.execute(text("SELECT state FROM delivery ORDER BY id")).scalars())

    def open(self, **changes: Any) -> None:
        """Another outbox on the same ledger."""
        chosen: dict[str, Any] = {"clock": self.clock.wall, "chance": lambda: 0.5, "timeouts": QUICK} | changes
        self.outbox = Outbox(self.ledger, self.settings, **chosen)

    def later(self, seconds: float) -> None:
        self.clock.after(seconds)


@contextlib.contextmanager
def staged(folder: Path, *ports: int, **deliver: Any) -> Iterator[Stage]:
    """An outbox for peers called pacs, pacs2, ... at those ports."""
    names = ["pacs", *(f"pacs{number}" for number in range(2, len(ports) + 1))]
    peers = tuple(Peer(name, "PACS", "127.0.0.1", port) for name, port in zip(names, ports, strict=True))
    gateway = Gateway(spool=folder / "spool", database=f"sqlite:///{folder}/ledger.db")
    settings = GatewaySettings(gateway=gateway, deliver=Deliver(**deliver), peers=peers)
    gateway.spool.mkdir(exist_ok=True)
    clock = Clock(1e9)
    with new_ledger(folder) as ledger:
        outbox = Outbox(ledger, settings, clock=clock.wall, chance=lambda: 0.5, timeouts=QUICK)
        yield Stage(ledger, settings, clock, outbox)
