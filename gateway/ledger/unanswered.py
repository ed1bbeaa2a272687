"""Studies of which something ended without a result: what is to be looked at for a reason, a row for each rule.

    a job failed or is cancelled ─┐
    channels are missing          ├─ask─> a row ──nothing more is to come (`ripe`)──> a reason is made, or not needed
    a series is held              ┘

A row is written by the commit of what ended, so a kill at any moment leaves it to be looked at. A look takes time, and
more may end meanwhile: it counts where `asked` is what it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select

from gateway.ledger import patients
from gateway.ledger.records import JobRow, UnansweredRow
from gateway.ledger.statements import UPSERT
from gateway.ledger.states import LIVE, JobState, SeriesState
from gateway.ledger.tables import gathering, job, series, unanswered
from gateway.settings.model import Mode, OnFailure

ON_FAILURE = "on_failure"


def on_failure(terms: str) -> OnFailure:
    """What a rule said of studies of which nothing is segmented. terms: of a job, JSON."""
    return OnFailure(json.loads(terms).get(ON_FAILURE, OnFailure.REPORT))


def ask(db: Connection, study_uid: str, rule: str, terms: str, bundles: Iterable[str]) -> None:
    """Something ended of what a rule wants of a study, and there is no result of that."""
    if on_failure(terms) is OnFailure.NONE:
        return
    mine = and_(unanswered.c.study_uid == study_uid, unanswered.c.rule == rule)
    before = json.loads(db.execute(select(unanswered.c.bundles).where(mine)).scalar() or "[]")
    facts = {"terms": terms, "bundles": json.dumps(sorted({*before, *bundles}))}
    new = UPSERT[db.dialect.name](unanswered).values(study_uid=study_uid, rule=rule, asked=0, **facts)
    keys = [unanswered.c.study_uid, unanswered.c.rule]
    db.execute(new.on_conflict_do_update(index_elements=keys, set_=facts | {"asked": unanswered.c.asked + 1}))


def ask_of_job(db: Connection, row: JobRow) -> None:
    """The same of a job. Nobody waits for what is computed in the shadow."""
    if row.mode is Mode.ON:
        ask(db, row.study_uid, row.rule, row.terms, [row.bundle])


def ripe(db: Connection, now: float, quiet_s: float) -> list[UnansweredRow]:
    """What is to be looked at: of the study nothing more comes, as far as is known, and nothing is under way."""
    return UnansweredRow.all(db, select(unanswered).where(_ripe(now, quiet_s)))


def is_ripe(db: Connection, row: UnansweredRow, now: float, quiet_s: float) -> bool:
    """Whether that still holds, and nothing has ended since a row was read."""
    same = and_(_of(row), unanswered.c.asked == row.asked)
    return bool(db.execute(select(exists().where(same, _ripe(now, quiet_s)))).scalar())


def drop(db: Connection, row: UnansweredRow) -> None:
    """It was looked at."""
    db.execute(delete(unanswered).where(_of(row)))


def _of(row: UnansweredRow) -> ColumnElement[bool]:
    return and_(unanswered.c.study_uid == row.study_uid, unanswered.c.rule == row.rule)


def _ripe(now: float, quiet_s: float) -> ColumnElement[bool]:
    study_uid, of_study = unanswered.c.study_uid, series.c.study_uid == unanswered.c.study_uid
    arriving = exists().where(of_study, series.c.state == SeriesState.ARRIVING)
    last_at = select(func.max(series.c.last_at)).where(of_study).correlate(unanswered).scalar_subquery()
    lacks_something = and_(job.c.state == JobState.HELD, job.c.error_code.is_not(None))
    same_rule = and_(job.c.study_uid == study_uid, job.c.rule == unanswered.c.rule)
    working = exists().where(same_rule, job.c.state.in_(LIVE), ~lacks_something)
    awaited = exists().where(gathering.c.study_uid == study_uid, gathering.c.due_at.is_not(None))
    return and_(
        or_(last_at.is_(None), last_at + quiet_s <= now),
        ~arriving.correlate(unanswered),
        ~working.correlate(unanswered),
        ~awaited.correlate(unanswered),
        ~patients.stopped(study_uid).correlate(unanswered),
    )
