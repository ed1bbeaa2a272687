"""Withdrawals: results that are not to be used, and never were right. Each is the successor of the one withdrawn.

    result ──successor──> withdrawal ──successor──> the next result, of another version of the bundle or other images

What a withdrawn result had replaced is withdrawn with it: else an archive that hides it would show that again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, or_, select

from gateway.ledger import deliveries
from gateway.ledger.records import ObjectRow, ResultRow
from gateway.ledger.results import NewObject, deliver_objects
from gateway.ledger.states import STORED, DeliveryState, ResultKind
from gateway.ledger.tables import delivery, result, result_object
from medseg.errors import InputError


class Withdrawn(InputError):
    """A result is asked for that a person has withdrawn."""

    code = "withdrawn"

    def __init__(self, study_uid: str, series_uid: str | None, bundle: str) -> None:
        where = f"study {study_uid}" if series_uid is None else f"series {series_uid}"
        super().__init__(
            f"{where}: its result of bundle {bundle} was withdrawn, and the same images, bundle and settings give the "
            "same again: name another bundle or version of it, or send other images"
        )


@dataclass(frozen=True)
class NewWithdrawal:
    """That a result is withdrawn. sources: whose each report is, and its key."""

    result_key: str
    of: ResultRow
    sources: Sequence[Mapping[str, Any]]
    objects: tuple[NewObject, ...]


def why_not(db: Connection, result_id: int) -> str:
    """Why a result cannot be withdrawn; empty where it can."""
    row = _find(db, result_id)
    if row is None or row.kind is not ResultKind.SEGMENTED:
        return f"there is no result {result_id}: `medseg results` shows those that there are"
    if is_withdrawn(db, result_id):
        return f"result {result_id} is withdrawn already"
    later = _successor(db, result_id)
    return "" if later is None else f"result {result_id} was replaced by result {later.id}: withdraw that"


def is_withdrawn(db: Connection, result_id: int) -> bool:
    """Whether a result is withdrawn, or one that replaced it."""
    later = _successor(db, result_id)
    while later is not None and later.kind is not ResultKind.WITHDRAWAL:
        later = _successor(db, later.id)
    return later is not None


def is_withdrawn_in(db: Connection, folder: str) -> bool:
    """The same of the result whose objects lie in a folder of the spool, given with its last slash."""
    of = select(result_object.c.result_id).where(result_object.c.path.startswith(folder, autoescape=True)).distinct()
    return any(is_withdrawn(db, number) for number in db.execute(of).scalars().all())


def with_replaced(db: Connection, result_id: int) -> list[ResultRow]:
    """A result, and those that it replaced, up to the last withdrawal; the latest first."""
    rows: list[ResultRow] = []
    row = _find(db, result_id)
    while row is not None and row.kind is ResultKind.SEGMENTED:
        rows.append(row)
        row = None if row.predecessor_id is None else _find(db, row.predecessor_id)
    return rows


def objects_in(db: Connection, rows: Iterable[ResultRow]) -> list[ObjectRow]:
    """The objects of some results."""
    mine = result_object.c.result_id.in_([row.id for row in rows])
    return ObjectRow.all(db, select(result_object).where(mine).order_by(result_object.c.id))


def destinations_of(db: Connection, rows: Iterable[ResultRow]) -> list[str]:
    """Where objects of some results are, or may be."""
    there = or_(delivery.c.state.in_((DeliveryState.SENDING, *STORED)), delivery.c.copies > 0)
    mine = result_object.c.result_id.in_([row.id for row in rows])
    of = select(delivery.c.destination).join(result_object, result_object.c.id == delivery.c.object_id)
    return list(db.execute(of.where(mine, there).distinct().order_by(delivery.c.destination)).scalars())


def file_withdrawal(db: Connection, new: NewWithdrawal, now: float) -> list[str]:
    """A result is withdrawn: where it is, that is told; what of it was not sent is not. Returns where it is told."""
    rows = with_replaced(db, new.of.id)
    for row in rows:
        deliveries.withdraw(db, row.id)
    destinations = destinations_of(db, rows)
    facts = {
        "result_key": new.result_key,
        "study_uid": new.of.study_uid,
        "series_uid": new.of.series_uid,
        "bundle": new.of.bundle,
        "bundle_version": new.of.bundle_version,
        "predecessor_id": new.of.id,
        "facts": "[]",
        "sources": json.dumps(list(new.sources)),
        "created_at": now,
        "kind": ResultKind.WITHDRAWAL,
    }
    result_id = int(db.execute(insert(result).returning(result.c.id), facts).scalar_one())
    deliver_objects(db, result_id, new.objects, destinations, now)
    return destinations


def state_of(db: Connection, row: ResultRow) -> str:
    """What a result is now: current, replaced, or withdrawn."""
    if is_withdrawn(db, row.id):
        return "withdrawn"
    return "current" if _successor(db, row.id) is None else "replaced"


def latest(db: Connection, limit: int) -> list[ResultRow]:
    """The latest results that are segmentations, newest first."""
    mine = result.c.kind == ResultKind.SEGMENTED
    return ResultRow.all(db, select(result).where(mine).order_by(result.c.id.desc()).limit(limit))


def _find(db: Connection, result_id: int) -> ResultRow | None:
    return ResultRow.one_or_none(db, select(result).where(result.c.id == result_id))


def _successor(db: Connection, result_id: int) -> ResultRow | None:
    return ResultRow.one_or_none(db, select(result).where(result.c.predecessor_id == result_id))
