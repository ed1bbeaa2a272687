"""How long each stage took, counted (`gateway.ledger.tallies`) by the moves that end it, in their transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, exists, func, select

from gateway.ledger import tallies
from gateway.ledger.records import DeliveryRow, JobRow, SeriesRow
from gateway.ledger.states import UNCOUNTED, JobState
from gateway.ledger.tables import instance, job, job_channel, of_series, result, series
from gateway.ledger.tallies import DELIVERIES, JOB_RETRIES, JOBS, LAST_IMAGE_TO_SEG, SERIES_COMPLETE, STAGE, STEP


def series_complete(db: Connection, study_uid: str, series_uid: str, by: str, at: float) -> None:
    """A series is complete. What came late to one that was worked on before has no time of receiving of its own, and an
    image that is sent again moves no time."""
    row = SeriesRow.one(db, select(series).where(of_series(series, study_uid, series_uid)))
    before = exists().where(of_series(job, study_uid, series_uid), job.c.finished_at.is_not(None))
    came = select(func.max(instance.c.received_at)).where(of_series(instance, study_uid, series_uid))
    last_at = db.execute(came).scalar() or row.last_at
    grown = [
        *SERIES_COMPLETE.plus(by=by.partition(":")[0]),
        *STAGE.took(at - last_at, stage="wait_complete"),
    ]
    if not db.execute(select(before)).scalar():
        grown += STAGE.took(last_at - row.first_at, stage="receive")
    tallies.add(db, grown)


def job_claimed(db: Connection, job_id: int, now: float) -> None:
    """A job has a worker, or its series is complete while it has one. A job that failed has waited before, and one
    whose series still arrives does not wait."""
    row = JobRow.one(db, select(job).where(job.c.id == job_id))
    if row.state == JobState.RUNNING and row.revision and not row.failures:
        tallies.add(db, STAGE.took(now - row.ready_at, stage="queue"))


def job_ended(db: Connection, state: JobState, code: str | None) -> None:
    """A job will not be tried again."""
    tallies.add(db, JOBS.plus(state=state, code=code or ""))


def job_requeued(db: Connection, code: str) -> None:
    """A job will be tried again."""
    tallies.add(db, JOB_RETRIES.plus(code=code))


def result_made(db: Connection, job_id: int, now: float, facts: Iterable[Mapping[str, Any]]) -> None:
    """A job came to a new result. facts: the records of its stacks."""
    started_at = db.execute(select(job.c.started_at).where(job.c.id == job_id)).scalar_one()
    grown = [*STAGE.took(now - started_at, stage="infer")]
    for record in facts:
        for step, seconds in record.get("timings_s", {}).items():
            if step != "total":
                grown += STEP.took(seconds, step=step)
    tallies.add(db, grown)


def object_stored(db: Connection, before: DeliveryRow, now: float) -> None:
    """A destination has stored an object. before: the delivery as it was before."""
    grown = [*DELIVERIES.plus(step="stored")]
    if before.stored_at is None:
        grown += STAGE.took(now - before.created_at, stage="deliver")
        last_at = _last_image_at(db, before.result_id)
        if before.kind.is_segmentation and last_at is not None:
            grown += LAST_IMAGE_TO_SEG.took(now - last_at)
    tallies.add(db, grown)


def object_confirmed(db: Connection, of: DeliveryRow, now: float) -> None:
    """A destination has an object for good."""
    stored_at = now if of.stored_at is None else of.stored_at
    tallies.add(db, (*DELIVERIES.plus(step="confirmed"), *STAGE.took(now - stored_at, stage="confirm")))


def delivery_failed(db: Connection, *, dead: bool) -> None:
    """An attempt to deliver failed. dead: it was the last one."""
    tallies.add(db, DELIVERIES.plus(step="dead" if dead else "failed"))


def _last_image_at(db: Connection, result_id: int) -> float | None:
    """When the last image that a result is about came: each version that came made a new revision of its series."""
    made_by = select(job).join(result, result.c.job_id == job.c.id).where(result.c.id == result_id)
    of = JobRow.one_or_none(db, made_by)
    if of is None:  # it is no segmentation
        return None
    if of.series_uid is not None:
        return _last_of_series(db, of.study_uid, of.series_uid, of.revision)
    channels = select(job_channel.c.series_uid, job_channel.c.revision).where(job_channel.c.job_id == of.id)
    each = [_last_of_series(db, of.study_uid, uid, revision) for uid, revision in db.execute(channels).all()]
    return max((at for at in each if at is not None), default=None)


def _last_of_series(db: Connection, study_uid: str, series_uid: str, revision: int) -> float | None:
    version = instance.c.state.not_in(UNCOUNTED)
    came = select(instance.c.received_at).where(of_series(instance, study_uid, series_uid), version)
    first = came.order_by(instance.c.id).limit(revision).subquery()
    return db.execute(select(func.max(first.c.received_at))).scalar()
