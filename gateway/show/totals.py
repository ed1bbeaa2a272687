"""How much there is of everything now: what `medseg status` and the gauges of `/metrics` show."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, select

from gateway.ledger.states import UNSENT, DeliveryState, JobState, SeriesState
from gateway.ledger.tables import delivery, has_file, instance, job, result_object, series

#: States of rows, so that one that no row is in can be shown as none.
STATES: dict[str, type[StrEnum]] = {"series": SeriesState, "job": JobState, "delivery": DeliveryState}


def by_state(db: Connection) -> dict[str, dict[str, int]]:
    """How many series, jobs and deliveries are in which state; without those that none is in."""
    return {table.name: dict(db.execute(_counted(table, table.c.state)).all()) for table in (series, job, delivery)}


def by_destination(db: Connection) -> dict[tuple[str, str], int]:
    """How many deliveries there are, by destination and state."""
    counted = db.execute(_counted(delivery, delivery.c.destination, delivery.c.state))
    return {(destination, state): number for destination, state, number in counted}


def waiting_since(db: Connection) -> dict[str, float | None]:
    """Since when the oldest series arrives, the oldest job waits for a worker, the oldest delivery for its peer."""
    asked = {
        "series": select(func.min(series.c.first_at)).where(series.c.state == SeriesState.ARRIVING),
        "job": select(func.min(job.c.created_at)).where(job.c.state == JobState.QUEUED),
        "delivery": select(func.min(delivery.c.created_at)).where(delivery.c.state.in_(UNSENT)),
    }
    return {name: db.execute(query).scalar() for name, query in asked.items()}


def spool_bytes(db: Connection) -> int:
    """Bytes of all instances and results in the spool, as the ledger has them."""
    length = instance.c.offset_bytes + instance.c.size_bytes
    instances = db.execute(select(func.coalesce(func.sum(length), 0)).where(has_file())).scalar_one()
    results = db.execute(select(func.coalesce(func.sum(result_object.c.size_bytes), 0))).scalar_one()
    return int(instances + results)


def _counted(table: Any, *columns: Any) -> Any:
    return select(*columns, func.count()).select_from(table).group_by(*columns).order_by(*columns)
