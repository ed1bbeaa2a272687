"""What was not taken, and from whom: counted in the ledger for each peer, so that an administrator sees it.

A peer is who called from where; who calls is what it says, so the table holds the MOST that came last, and no more than
came in one second beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from gateway.ledger.peer_tables import refusal
from gateway.ledger.records import Record
from gateway.ledger.statements import UPSERT
from gateway.ledger.states import RefusedCaller

MOST = 500
SHOWN = 5
LATELY_S = 7 * 86400.0


@dataclass(frozen=True)
class RefusedPeer(Record):
    """What was not taken of one peer. calling_ae: empty where nobody said.
    reason, sop_instance_uid: of the last."""

    what: RefusedCaller
    calling_ae: str
    host: str
    count: int
    first_at: float
    last_at: float
    reason: str
    sop_instance_uid: str | None

    @property
    def line(self) -> str:
        """For a terminal and a page."""
        caller = f"{self.calling_ae} at {self.host}" if self.calling_ae else self.host
        last = f"instance {self.sop_instance_uid}: " if self.sop_instance_uid else ""
        return f"{self.count} {self.what}{'' if self.count == 1 else 's'} of {caller}, the last: {last}{self.reason}"


def add(db: Connection, refused: Iterable[RefusedPeer]) -> None:
    """Count what was not taken; the oldest beyond MOST are let go."""
    for peer in refused:
        new = UPSERT[db.dialect.name](refusal).values(**vars(peer))
        changed = {name: new.excluded[name] for name in ("last_at", "reason", "sop_instance_uid")}
        changed["count"] = refusal.c.count + new.excluded.count
        db.execute(new.on_conflict_do_update(index_elements=list(refusal.primary_key), set_=changed))
    last = select(refusal.c.last_at).order_by(refusal.c.last_at.desc()).offset(MOST - 1).limit(1).scalar_subquery()
    db.execute(delete(refusal).where(refusal.c.last_at < last))


def latest(db: Connection, now: float) -> list[RefusedPeer]:
    """What was not taken lately, the last first."""
    lately = select(refusal).where(refusal.c.last_at > now - LATELY_S).order_by(refusal.c.last_at.desc()).limit(SHOWN)
    return RefusedPeer.all(db, lately)
