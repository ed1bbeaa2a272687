"""What was made for others, and on its way to whom: the objects of results, whatever a result says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.ledger.deliveries import deliveries_of
from gateway.ledger.object_kind import ObjectKind
from gateway.ledger.results import objects_of
from gateway.ledger.states import DeliveryState
from gateway.show import next_steps


@dataclass(frozen=True)
class Delivery:
    """An object for a destination. status: of the last C-STORE response. Times are seconds since 1970."""

    id: int
    destination: str
    kind: ObjectKind
    sop_instance_uid: str
    state: DeliveryState
    failures: int
    created_at: float
    stored_at: float | None
    confirmed_at: float | None
    status: int | None
    error_code: str | None
    error: str | None
    next_step: str
    deliver_s: float | None
    confirm_s: float | None


@dataclass(frozen=True)
class Object:
    """One object of a result."""

    kind: ObjectKind
    sop_instance_uid: str


def objects_by_result(
    db: Connection, study_uids: Sequence[str]
) -> tuple[dict[int, list[Object]], dict[int, list[Delivery]]]:
    """Objects of some studies, and their deliveries, by result."""
    objects: dict[int, list[Object]] = defaultdict(list)
    for made in objects_of(db, study_uids):
        objects[made.result_id].append(Object(made.kind, made.sop_instance_uid))
    deliveries: dict[int, list[Delivery]] = defaultdict(list)
    for row in deliveries_of(db, study_uids):
        deliveries[row.result_id].append(
            Delivery(
                row.id, row.destination, row.kind, row.sop_instance_uid, row.state, row.failures, row.created_at,
                row.stored_at, row.confirmed_at, row.status, row.error_code, row.error, next_steps.for_delivery(row),
                between(row.created_at, row.stored_at), between(row.stored_at, row.confirmed_at),
            )
        )  # fmt: skip
    return objects, deliveries


def between(start: float | None, end: float | None) -> float | None:
    """Seconds; none where a step of the clock made them negative."""
    return None if start is None or end is None else max(0.0, end - start)
