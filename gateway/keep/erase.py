"""Taking a series, or a whole study, out of the ledger; its files are let go of in the same commit."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, delete, func, or_, select

from gateway.keep.deletion import folder_of
from gateway.ledger import commitments, patients
from gateway.ledger.deletions import mark_deleted
from gateway.ledger.tables import (
    delivery,
    event,
    gathering,
    instance,
    job,
    job_channel,
    of_series,
    result,
    result_object,
    series,
    unanswered,
)


@dataclass(frozen=True)
class Content:
    """What the ledger knows of a study or series. size_bytes: of the files of its instances and results."""

    series: int
    instances: int
    jobs: int
    results: int
    deliveries: int
    size_bytes: int


def content(db: Connection, study_uid: str, series_uid: str | None = None) -> Content:
    """What there is of a study, or of one series of it."""

    def number(table: Table, *conditions: ColumnElement[bool]) -> int:
        return int(db.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())

    size = func.coalesce(func.sum(instance.c.offset_bytes + instance.c.size_bytes), 0)
    inputs = db.execute(select(size).where(of_series(instance, study_uid, series_uid), instance.c.deleted_at.is_(None)))
    objects = result_object.c.result_id.in_(_results(study_uid, series_uid))
    outputs = db.execute(select(func.coalesce(func.sum(result_object.c.size_bytes), 0)).where(objects))
    return Content(
        series=number(series, of_series(series, study_uid, series_uid)),
        instances=number(instance, of_series(instance, study_uid, series_uid)),
        jobs=number(job, of_series(job, study_uid, series_uid)),
        results=number(result, of_series(result, study_uid, series_uid)),
        deliveries=number(delivery, delivery.c.object_id.in_(_objects(study_uid, series_uid))),
        size_bytes=int(inputs.scalar_one()) + int(outputs.scalar_one()),
    )


def erase(db: Connection, study_uid: str, at: float, series_uid: str | None = None) -> Content:
    """Take a study, or one series of it, out of the ledger. Returns what there was.

    Whoever works on it has lost its claim: no worker and no sender can file anything for it from this commit on.
    """
    if series_uid is not None and content(db, study_uid).series == 1:  # what is of several goes with the last
        series_uid = None
    there = content(db, study_uid, series_uid)
    results, objects = _results(study_uid, series_uid), _objects(study_uid, series_uid)
    jobs = select(job.c.id).where(of_series(job, study_uid, series_uid))
    kept = and_(of_series(instance, study_uid, series_uid), instance.c.deleted_at.is_(None))
    files = db.execute(select(instance.c.path).where(kept)).scalars()
    folders = db.execute(select(result_object.c.path).where(result_object.c.result_id.in_(results))).scalars()
    mark_deleted(db, [*files, *map(folder_of, folders)], at)
    db.execute(delete(delivery).where(delivery.c.object_id.in_(objects)))
    db.execute(delete(result_object).where(result_object.c.result_id.in_(results)))
    db.execute(delete(result).where(of_series(result, study_uid, series_uid)))
    db.execute(delete(event).where(or_(of_series(event, study_uid, series_uid), event.c.job_id.in_(jobs))))
    commitments.erase(db, study_uid, series_uid)
    theirs = of_series(job_channel, study_uid, series_uid)
    db.execute(delete(job_channel).where(or_(theirs, job_channel.c.job_id.in_(jobs))))
    if series_uid is None:
        for table in (gathering, unanswered):
            db.execute(delete(table).where(table.c.study_uid == study_uid))
    for table in (job, instance, series):
        db.execute(delete(table).where(of_series(table, study_uid, series_uid)))
    if not content(db, study_uid).series:
        patients.erase(db, study_uid)
    return there


def _results(study_uid: str, series_uid: str | None) -> Select[tuple[int]]:
    return select(result.c.id).where(of_series(result, study_uid, series_uid))


def _objects(study_uid: str, series_uid: str | None) -> Select[tuple[int]]:
    return select(result_object.c.id).where(result_object.c.result_id.in_(_results(study_uid, series_uid)))
