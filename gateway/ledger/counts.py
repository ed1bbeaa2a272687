"""What peers answer when they are asked how many instances there are (C-FIND)."""

from __future__ import annotations

from sqlalchemy import Connection, case, select

from gateway.ledger.peer_tables import count
from gateway.ledger.records import CountRow
from gateway.ledger.statements import UPSERT
from gateway.ledger.states import UNDECIDED
from gateway.ledger.tables import series

WHOLE_STUDY = ""


def answer(db: Connection, study_uid: str, series_uid: str | None, source: str, value: int, at: float) -> float:
    """A peer said how many instances there are; since when it has said the same (s since 1970)."""
    new = UPSERT[db.dialect.name](count).values(
        study_uid=study_uid, series_uid=series_uid or WHOLE_STUDY, source=source, value=value, since_at=at, at=at
    )
    same = count.c.value == new.excluded.value
    upsert = new.on_conflict_do_update(
        index_elements=[count.c.study_uid, count.c.series_uid, count.c.source],
        set_={"value": value, "at": at, "since_at": case((same, count.c.since_at), else_=at)},
    )
    return float(db.execute(upsert.returning(count.c.since_at)).scalar_one())


def counts(db: Connection) -> list[CountRow]:
    """The latest answers of each peer on studies of which more may come."""
    more = select(series.c.study_uid).where(series.c.state.in_(UNDECIDED))
    return CountRow.all(db, select(count).where(count.c.study_uid.in_(more)))
