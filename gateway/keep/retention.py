"""Retention: what is done with goes, and nothing else.

    all confirmed ──inputs_s──> the files of the series' instances go; what they were stays known
                  ──results_s─> its results go, and all that the ledger knows of it

The times count from the last that happened: the last image, the decision, the end of the job, the last confirmation. A
series is done with when it is complete, its last job has ended and has not failed, and each of its results is confirmed
by each of its destinations; and the same of jobs and results of several series of its study, and what these wait for; a
reason why nothing was segmented is one of those.
A destination that cannot be asked is believed; what a later result replaced before it was sent need not arrive. Where
there was no job (no rule matched, its mode is off), no result (the series is passed over: it forms no volume, or no
bundle fits it) or nothing to send (shadow), the same times hold.

Dead letters, failed jobs, held jobs and held series keep all that is theirs until somebody looks; but for a dead letter
that only says that nothing was segmented: a destination that takes none of these would fill the disk.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, FromClause, and_, exists, func, or_, select, update

from gateway.keep.deletion import sweep
from gateway.keep.erase import erase
from gateway.ledger import events
from gateway.ledger.deletions import mark_deleted
from gateway.ledger.deliveries import LAST_ASK
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import SeriesRow
from gateway.ledger.states import LIVE, DeliveryState, JobState, ResultKind, SeriesState
from gateway.ledger.tables import (
    delivery,
    gathering,
    has_file,
    instance,
    job,
    of_series,
    result,
    result_object,
    series,
    unanswered,
)
from gateway.settings.model import Retain

logger = logging.getLogger(__name__)

ROUND_S = 10.0  # between two looks that find nothing


class Retention:
    """Lets go of one series at a step, so that whoever else has steps to make need not wait for long."""

    def __init__(self, ledger: Ledger, spool: Path) -> None:
        self._ledger, self._spool = ledger, spool
        self._due_s = 0.0

    def step(self, settings: Retain, now_s: float, wall_s: float) -> bool:
        """Let go of a series that is due; False where none is.

        now_s and wall_s: the same moment by the monotonic clock and in seconds since 1970.
        """
        if now_s < self._due_s:
            return False
        try:
            done = self._step(settings, wall_s)
            sweep(self._ledger, self._spool)  # and what a purge that was killed has left
        except OSError as error:
            logger.error("files are not deleted: %s", error, extra={"event": "retention.failed"})
            done = False
        if not done:
            self._due_s = now_s + ROUND_S
        return done

    def _step(self, settings: Retain, wall_s: float) -> bool:
        with self._ledger.read() as db:
            inputs = _due(db, wall_s, wall_s - settings.inputs_s, deleted=False)
            whole = _due(db, wall_s, wall_s - settings.results_s, deleted=True)
        if inputs is not None:
            gone = self._ledger.write(delete_inputs, inputs, wall_s, wall_s - settings.inputs_s)
            self._log("retention.inputs", inputs, f"{gone} files of instances deleted")
        elif whole is not None:
            self._ledger.write(erase_series, whole, wall_s, wall_s - settings.results_s)
            self._log("retention.forgotten", whole, "forgotten")
        return inputs is not None or whole is not None

    def _log(self, event: str, row: SeriesRow, what: str) -> None:
        facts = {"event": event, "study": row.study_uid, "series": row.series_uid}
        logger.info("series %s: %s", row.series_uid, what, extra=facts)


def delete_inputs(db: Connection, row: SeriesRow, at: float, before: float) -> int:
    """Let go of the files of a series, unless something happened to it meanwhile. Returns how many."""
    if not _is_due(db, row, at, before, deleted=False):
        return 0
    kept = and_(of_series(instance, row.study_uid, row.series_uid), has_file())
    paths = db.execute(select(instance.c.path).where(kept)).scalars().all()
    db.execute(update(instance).where(kept).values(deleted_at=at))
    db.execute(update(series).where(of_series(series, row.study_uid, row.series_uid)).values(deleted_at=at))
    detail = {"files": len(paths)}
    events.record(db, "series.inputs_deleted", at, detail, study_uid=row.study_uid, series_uid=row.series_uid)
    return mark_deleted(db, paths, at)


def erase_series(db: Connection, row: SeriesRow, at: float, before: float) -> None:
    """Take a series out of the ledger, unless something happened to it meanwhile."""
    if _is_due(db, row, at, before, deleted=True):
        erase(db, row.study_uid, at, row.series_uid)


def _due(db: Connection, now: float, before: float, *, deleted: bool) -> SeriesRow | None:
    """The series that has been done with for longest, of those to which nothing has happened since `before`."""
    done = _done_with(now, before, deleted=deleted)
    return SeriesRow.one_or_none(db, select(series).where(done).order_by(series.c.complete_at).limit(1))


def _is_due(db: Connection, row: SeriesRow, now: float, before: float, *, deleted: bool) -> bool:
    """Whether that still holds."""
    mine = of_series(series, row.study_uid, row.series_uid)
    return bool(db.execute(select(exists().where(mine, _done_with(now, before, deleted=deleted)))).scalar())


def _done_with(now: float, before: float, *, deleted: bool) -> ColumnElement[bool]:
    """now: what a destination is still being asked after is not done with."""
    later = job.alias("later")
    last = ~exists().where(_follows(later, job))
    awaited = or_(
        exists().where(gathering.c.study_uid == series.c.study_uid, gathering.c.due_at.is_not(None)),
        exists().where(unanswered.c.study_uid == series.c.study_uid),
    )
    working = exists().where(
        _is_of(job, series),
        or_(job.c.state.in_(LIVE), and_(job.c.state == JobState.FAILED, last), job.c.finished_at > before),
    )
    there = or_(
        delivery.c.state.in_((DeliveryState.CONFIRMED, DeliveryState.CANCELLED)),
        and_(delivery.c.state == DeliveryState.STORED, delivery.c.asked >= LAST_ASK, delivery.c.ready_at <= now),
        and_(delivery.c.state == DeliveryState.DEAD, result.c.kind == ResultKind.REASON),
    )
    recently = func.coalesce(delivery.c.confirmed_at, delivery.c.stored_at) > before
    on_its_way = exists().where(
        _is_of(result, series),
        result_object.c.result_id == result.c.id,
        delivery.c.object_id == result_object.c.id,
        or_(~there, recently),
    )
    return and_(
        series.c.state == SeriesState.COMPLETE,
        series.c.deleted_at.is_not(None) if deleted else series.c.deleted_at.is_(None),
        series.c.complete_at <= before,
        series.c.last_at <= before,
        ~awaited,
        ~working,
        ~on_its_way,
    )


def _is_of(table: FromClause, of: FromClause) -> ColumnElement[bool]:
    """The jobs, or results, of a series, and those of several series of its study: all of that is kept for them."""
    mine = or_(table.c.series_uid == of.c.series_uid, table.c.series_uid.is_(None))
    return and_(table.c.study_uid == of.c.study_uid, mine)


def _follows(later: FromClause, of: FromClause) -> ColumnElement[bool]:
    """The jobs that were made after one, of its series; or of its study and bundle."""
    of_study = and_(later.c.series_uid.is_(None), of.c.series_uid.is_(None), later.c.bundle == of.c.bundle)
    same = or_(later.c.series_uid == of.c.series_uid, of_study)
    return and_(later.c.study_uid == of.c.study_uid, same, later.c.id > of.c.id)
