"""What is here to be given out: the instances that count and have a file, and the objects of results that are current.

Nothing that a later image or result replaces, that waits to be compared, or whose file is gone, is among them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, exists, null, select

from gateway.ledger.records import Record
from gateway.ledger.states import COUNTING
from gateway.ledger.tables import has_file, instance, of_series, result, result_object


@dataclass(frozen=True, slots=True)
class HeldObject(Record):
    """An object and its file. series_uid, transfer_syntax_uid: None for an object of a result, whose file says them.
    path: relative to the spool."""

    study_uid: str
    series_uid: str | None
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str | None
    path: str


def instances_held(
    db: Connection, study_uid: str, series_uid: str | None = None, sop_instance_uid: str | None = None
) -> list[HeldObject]:
    """What was received of a study, or of a series of it, in the order in which it came."""
    columns = ("study_uid", "series_uid", "sop_instance_uid", "sop_class_uid", "transfer_syntax_uid", "path")
    mine = and_(of_series(instance, study_uid, series_uid), instance.c.state.in_(COUNTING), has_file())
    if sop_instance_uid is not None:
        mine = and_(mine, instance.c.sop_instance_uid == sop_instance_uid)
    return HeldObject.all(db, select(*(instance.c[name] for name in columns)).where(mine).order_by(instance.c.id))


def result_objects_held(db: Connection, study_uid: str, sop_instance_uid: str | None = None) -> list[HeldObject]:
    """The objects of a study's results that no later result replaces."""
    later = result.alias()
    last = and_(result.c.replaced_at.is_(None), ~exists().where(later.c.predecessor_id == result.c.id))
    current = and_(result.c.study_uid == study_uid, last)
    if sop_instance_uid is not None:
        current = and_(current, result_object.c.sop_instance_uid == sop_instance_uid)
    columns = (
        result.c.study_uid,
        null(),
        result_object.c.sop_instance_uid,
        result_object.c.sop_class_uid,
        null(),
        result_object.c.path,
    )
    objects = select(*columns).join(result, result.c.id == result_object.c.result_id)
    return HeldObject.all(db, objects.where(current).order_by(result_object.c.id))


def studies_of_instances(db: Connection, sop_instance_uids: list[str]) -> list[str]:
    """The studies in which some instances are, received or made."""
    received = select(instance.c.study_uid).where(instance.c.sop_instance_uid.in_(sop_instance_uids))
    made = select(result.c.study_uid).join(result_object, result_object.c.result_id == result.c.id)
    made = made.where(result_object.c.sop_instance_uid.in_(sop_instance_uids))
    return sorted(set(db.execute(received.union(made)).scalars()))
