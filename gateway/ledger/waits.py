"""What waits by the wall clock, when that was set."""

from __future__ import annotations

from sqlalchemy import Connection, Table, Update, update

from gateway.ledger.peer_tables import commitment
from gateway.ledger.states import LIVE, UNDELIVERED, UNREPORTED, DeliveryState, JobState
from gateway.ledger.tables import delivery, gathering, job


def shift_waits(db: Connection, by_s: float) -> None:
    """The wall clock was set by so many seconds: what waits for a moment goes on waiting as long as it was to."""
    db.execute(_later(job, by_s, "due", "ready_at", "lease_until", "tried_from").where(job.c.state.in_(LIVE)))
    db.execute(_later(delivery, by_s, "ready_at", "lease_until", "tried_from").where(delivery.c.state.in_(UNDELIVERED)))
    db.execute(_later(gathering, by_s, "since_at", "due_at"))
    unreported = commitment.c.state.in_(UNREPORTED)
    db.execute(_later(commitment, by_s, "asked_at", "known_at", "ready_at").where(unreported))


def _later(table: Table, by_s: float, *columns: str) -> Update:
    """An absent moment stays absent."""
    return update(table).values({name: table.c[name] + by_s for name in columns})


def cap_waits(db: Connection, until: float) -> int:
    """Nothing waits beyond a moment: only a clock that was set back while nobody looked lets it. Returns how many."""
    return sum(
        db.execute(
            update(table).where(table.c.state == state, table.c.ready_at > until).values(ready_at=until)
        ).rowcount
        for table, state in ((job, JobState.QUEUED), (delivery, DeliveryState.QUEUED), (delivery, DeliveryState.STORED))
    )
