"""Jobs: made of a complete series by the rule that matches, and what follows when one fails."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from gateway import logs
from gateway.decide.rules import SeriesFacts, due_s
from gateway.ledger import events, jobs, unanswered
from gateway.ledger.claims import Claim
from gateway.ledger.jobs import NewJob
from gateway.ledger.records import JobRow
from gateway.ledger.states import JobState
from gateway.ledger.study_jobs import NewChannel, NewStudyJob
from gateway.ledger.unanswered import ON_FAILURE
from gateway.ledger.withdrawals import Withdrawn
from gateway.retry import Fault, RetryAt, decide, job_fault
from gateway.settings.model import Deliver, Mode, OnFailure, ResultForm, Rule
from medseg.dicom.reason import Reason
from medseg.errors import DoesNotFit, GeometryRefused, MedsegError

ASSUME_REGISTERED = "assume_registered"


def is_passed_over(error: BaseException) -> bool:
    """Whether an error says that a series forms no volume, or that no bundle was made for it, or that its result was
    withdrawn: nothing to mend.

    That there are slices of several patients in it, somebody has to look at.
    """
    if isinstance(error, GeometryRefused):
        return error.reason != Reason.MIXED_PATIENT
    return isinstance(error, DoesNotFit | Withdrawn)


def job_for(rule: Rule, study_uid: str, series_uid: str, revision: int, now: float) -> NewJob:
    """The job that a rule makes of a series."""
    return NewJob(
        study_uid,
        series_uid,
        revision,
        bundle=rule.bundle or "",
        rule=rule.name,
        terms=_rule_snapshot(rule),
        mode=Mode.SHADOW if rule.mode is Mode.SHADOW else Mode.ON,
        state=JobState.HELD if rule.mode is Mode.HOLD else JobState.QUEUED,
        due=due_s(now, rule.priority),
    )


def study_job_for(
    rule: Rule, study_uid: str, channels: tuple[NewChannel, ...], now: float, *, assume_registered: bool = False
) -> NewStudyJob:
    """The job that a rule makes of the channels of a study."""
    return NewStudyJob(
        study_uid,
        bundle=rule.bundle or "",
        rule=rule.name,
        mode=Mode.SHADOW if rule.mode is Mode.SHADOW else Mode.ON,
        state=JobState.HELD if rule.mode is Mode.HOLD else JobState.QUEUED,
        due=due_s(now, rule.priority),
        terms=_rule_snapshot(rule, assume_registered=assume_registered),
        channels=channels,
    )


def begun_for(rules: Sequence[Rule], facts: SeriesFacts, now: float) -> tuple[NewJob, ...]:
    """The jobs that a rule, once for each of its bundles, makes of a series while it is arriving; none where it must
    see the whole of it."""
    if any(rule.takes_one or rule.mode not in (Mode.ON, Mode.SHADOW) for rule in rules):
        return ()
    made = (job_for(rule, facts.study_uid, facts.series_uid, 0, now) for rule in rules)
    return tuple(replace(one, state=JobState.WAITING) for one in made)


def ask_why(db: Connection, study_uid: str, rule: Rule) -> None:
    """Something that a rule wants of a study ended without a job."""
    if rule.mode in (Mode.ON, Mode.HOLD):
        unanswered.ask(db, study_uid, rule.name, _rule_snapshot(rule), [one.bundle or "" for one in rule.each])


def _rule_snapshot(rule: Rule, *, assume_registered: bool = False) -> str:
    """What a rule says of the work on a job: it goes with the job, whatever a reload makes of the rules meanwhile.

    assume_registered: a person said so of this study.
    """
    terms = {"results": rule.results, "send_to": rule.send_to, "assume": rule.assume_frame_of_reference}
    terms |= {ASSUME_REGISTERED: True} if assume_registered else {}
    return json.dumps(terms | ({} if rule.on_failure is OnFailure.REPORT else {ON_FAILURE: rule.on_failure}))


def rule_of(job: JobRow) -> Rule:
    """The rule that a job was made by, as it was then."""
    return rule_of_terms(job.rule, job.terms)


def rule_of_terms(name: str, said: str) -> Rule:
    """The same from what was kept of it. said: JSON."""
    terms = json.loads(said)
    if not terms:
        return Rule(name)
    send_to = None if terms["send_to"] is None else tuple(terms["send_to"])
    results = tuple(map(ResultForm, terms["results"]))
    return Rule(name, send_to=send_to, results=results, assume_frame_of_reference=terms["assume"])


def assumes_registered(job: JobRow) -> bool:
    """Whether a person said that the channels of a job lie to each other as they say."""
    return bool(json.loads(job.terms).get(ASSUME_REGISTERED, False))


def failed(db: Connection, claim: Claim, error: BaseException, now: float, settings: Deliver) -> bool:
    """An attempt ended in an error: again, later, or never; or its series is passed over. False where the claim has run
    out."""
    job = jobs.job_under(db, claim)
    if job is None:
        return False
    code = error.code if isinstance(error, MedsegError) else type(error).__name__
    if is_passed_over(error):
        detail = {"why": str(error), "code": code}
        uids = {"study_uid": job.study_uid, "series_uid": job.series_uid}
        events.record(db, events.PASSED_OVER, now, detail, job_id=job.id, **uids)
        return jobs.end_job(db, claim, JobState.CANCELLED, now, code=code, error=str(error))
    return _after(db, job, job_fault(error), code, logs.said(error), now, settings)


def lost(db: Connection, job: JobRow, fault: Fault, now: float, settings: Deliver) -> bool:
    """The worker that ran a job is gone, and could not say what happened."""
    return _after(db, job, fault, fault.name.lower(), fault.value, now, settings)


def _after(db: Connection, job: JobRow, fault: Fault, code: str, error: str, now: float, settings: Deliver) -> bool:
    """job: as it was when its attempt ended. That somebody stopped the worker is no failure of the job."""
    failed = 0 if fault is Fault.DRAINED else 1
    following = decide(fault, job.failures + 1, now - job.patience_from, settings, random.random())
    if isinstance(following, RetryAt):
        return jobs.requeue_job(db, job.claim, now + following.delay_s, code=code, error=error, failed=failed)
    return jobs.end_job(db, job.claim, JobState.FAILED, now, code=code, error=error, failed=failed)
