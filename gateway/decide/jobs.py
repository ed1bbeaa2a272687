"""Jobs: made of a complete series by the rule that matches, and what follows when one fails."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import Connection, Row

from gateway import moves, rows
from gateway.decide.rules import due_s
from gateway.moves import NewJob
from gateway.retry import Fault, RetryAt, decide, job_fault
from gateway.rows import Claim
from gateway.settings import Deliver, Mode, Rule
from medseg.errors import DoesNotFit, MedsegError


def job_for(rule: Rule, study_uid: str, series_uid: str, revision: int, now: float) -> NewJob:
    """The job that a rule makes of a series."""
    return NewJob(
        study_uid,
        series_uid,
        revision,
        bundle=rule.bundle or "",
        rule=rule.name,
        mode="shadow" if rule.mode is Mode.SHADOW else "on",
        state="held" if rule.mode is Mode.HOLD else "queued",
        due=due_s(now, rule.priority),
    )


def failed(db: Connection, claim: Claim, error: BaseException, now: float, settings: Deliver) -> bool:
    """An attempt ended in an error: again, later, or never. False where the claim has run out."""
    code = error.code if isinstance(error, MedsegError) else type(error).__name__
    if isinstance(error, DoesNotFit) and not moves.job_row(db, claim.id).bundle:
        return rows.end_job(db, claim, "cancelled", now, code=code, error=str(error))
    return _after(db, claim, job_fault(error), code, str(error), now, settings)


def lost(db: Connection, job: Row[Any], fault: Fault, now: float, settings: Deliver) -> bool:
    """The worker that ran a job is gone, and could not say what happened."""
    return _after(db, Claim(job.id, job.attempt), fault, fault.name.lower(), fault.value, now, settings)


def _after(db: Connection, claim: Claim, fault: Fault, code: str, said: str, now: float, settings: Deliver) -> bool:
    age_s = now - moves.job_row(db, claim.id).created_at
    following = decide(fault, claim.attempt, age_s, settings, random.random())
    if isinstance(following, RetryAt):
        return rows.requeue_job(db, claim, now + following.delay_s, code=code, error=said)
    return rows.end_job(db, claim, "failed", now, code=code, error=said)
