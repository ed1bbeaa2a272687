"""What a look at a study comes to, in one commit: it waits, a job is made or held, or its series are passed over."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from gateway.decide.gather import Look, Said
from gateway.decide.jobs import ASSUME_REGISTERED, ask_why, study_job_for
from gateway.decide.rules import Explanation
from gateway.ledger import events, gatherings, series, study_jobs
from gateway.ledger.records import GatheringRow, JobRow
from gateway.ledger.states import JobState
from gateway.settings.model import Mode, Rule
from medseg.dicom.series import Series
from medseg.errors import BundleError, MedsegError, UsageError

AWAITED = "channel_awaited"
BY_HAND = "by hand"  # the rule of a job that no rule made
NO_RULE = "no rule names its bundle any more"


@dataclass(frozen=True, eq=False)
class Candidates:
    """The series of a study that may be channels of a rule's bundle. revisions: at which they are complete, by UID.

    explanations: what rules say to each.
    """

    rule: Rule
    series: tuple[Series, ...]
    revisions: Mapping[str, int]
    explanations: Mapping[str, Explanation]


def carry_out(
    db: Connection, row: GatheringRow, candidates: Candidates, found: Look, said: Said, now: float
) -> int | None:
    """The id of the job that is made, if one is. Where something came meanwhile the study stays due, and nothing is
    done."""
    if not gatherings.is_current(db, row, candidates.revisions):
        return None
    last = study_jobs.latest_job(db, row.study_uid, row.bundle)
    until = row.since_at + candidates.rule.channels_within_s
    over = bool(row.whole) or now >= until
    if found.missing is not None:
        if not (over or isinstance(found.missing, BundleError | UsageError)):
            gatherings.looked(db, row, until, found.missing.code, str(found.missing))
            return None
        gatherings.looked(db, row, None, found.missing.code, str(found.missing))
        return _lacking(db, row, candidates.rule, found, found.missing, last, now)
    if found.absent and not over:
        why = f"channel {' and '.join(found.absent)} is optional, and is waited for"
        gatherings.looked(db, row, until, AWAITED, why)
        return None
    gatherings.looked(db, row, None, None, None)
    if last is not None and not last.lacks_something and not said.anew and _has(db, last, found):
        return None
    gatherings.heard(db, row)
    new = study_job_for(candidates.rule, row.study_uid, found.channels, now, assume_registered=said.assume_registered)
    _pass_over(db, row.study_uid, found.no_channel, now)
    return study_jobs.make_job(db, new, now)


def rule_of(bundle: str, asked: Sequence[Explanation], rules: Sequence[Rule], said: Said) -> Rule | None:
    """The rule by which a study is looked at for a bundle: the first of those that decide on one of its series, or the
    one that a person named."""
    if said.rule is not None:
        each = (one for rule in rules if rule.name == said.rule for one in rule.each)
        named = next((one for one in each if one.bundle == bundle), None)
        return named or Rule(BY_HAND, bundle=bundle)
    deciding = [one.chosen.rule for one in asked if one.chosen is not None]
    wanted = (rule for rule in rules if rule in deciding and rule.mode is not Mode.OFF)
    return next((one for rule in wanted for one in rule.each if one.bundle == bundle), None)


def let_go(db: Connection, row: GatheringRow, now: float, *, wanted: bool) -> None:
    """Nothing of a study is there to be looked at for a bundle. wanted: a rule may take what comes."""
    if wanted:
        gatherings.looked(db, row, None, row.code, row.why)
        return
    last = study_jobs.latest_job(db, row.study_uid, row.bundle)
    if gatherings.drop(db, row) and last is not None and last.lacks_something:
        study_jobs.cancel_job(db, last, now, NO_RULE)


def release(db: Connection, job: JobRow, channels: Mapping[str, str], assume_registered: bool, now: float) -> None:
    """A job that lacks something is looked at once more. channels: the series of some, which a person named."""
    said: dict[str, Any] = {"channels": dict(channels)}
    said |= {ASSUME_REGISTERED: True} if assume_registered else {}
    if not gatherings.say(db, job.study_uid, job.bundle, said, now):
        gatherings.came(db, job.study_uid, [job.bundle], now)
        gatherings.say(db, job.study_uid, job.bundle, said, now)


def ask_by_hand(db: Connection, study_uid: str, rule: Rule, now: float) -> bool:
    """A study is looked at by a rule, whatever its conditions; False where nothing of it is here."""
    if not series.series_of(db, study_uid):
        return False
    bundle = rule.bundle or ""
    gatherings.came(db, study_uid, [bundle], now)
    return gatherings.say(db, study_uid, bundle, {"rule": rule.name, "anew": True}, now)


def _has(db: Connection, job: JobRow, found: Look) -> bool:
    """Whether a job is of just these channels."""
    mine = [(one.name, one.series_uid, one.revision, one.volume) for one in study_jobs.channels_of(db, job.id)]
    return mine == [(one.name, one.series_uid, one.revision, one.volume) for one in found.channels]


def _lacking(
    db: Connection, row: GatheringRow, rule: Rule, found: Look, why: MedsegError, last: JobRow | None, now: float
) -> int | None:
    """The time of a study is over: what it has is held; a job that there is stays, and so does its result."""
    if last is not None and last.state != JobState.CANCELLED and not last.lacks_something:
        has = {one.series_uid for one in study_jobs.channels_of(db, last.id)}
        _pass_over(db, row.study_uid, {uid: text for uid, text in found.no_channel.items() if uid not in has}, now)
        return None
    if not found.fits:
        if last is not None and last.lacks_something:
            study_jobs.cancel_job(db, last, now, str(why))
        chosen = {one.series_uid: str(why) for one in found.channels}
        _pass_over(db, row.study_uid, dict(found.no_channel) | chosen, now)
        ask_why(db, row.study_uid, rule)
        return None
    ask_why(db, row.study_uid, rule)
    new = study_job_for(rule, row.study_uid, found.channels, now)
    return study_jobs.make_job(db, replace(new, state=JobState.HELD, code=why.code, error=str(why)), now)


def _pass_over(db: Connection, study_uid: str, reasons: Mapping[str, str], now: float) -> None:
    """Say why series are no channels; not again what was said of one last."""
    said = _said(db, study_uid, reasons.keys())
    for series_uid, why in reasons.items():
        if said.get(series_uid) != why:
            events.record(db, events.PASSED_OVER, now, {"why": why}, study_uid=study_uid, series_uid=series_uid)


def _said(db: Connection, study_uid: str, series_uids: Collection[str]) -> dict[str, str]:
    return {
        row.series_uid: json.loads(row.detail)["why"]
        for row in events.of_studies(db, (events.PASSED_OVER,), (study_uid,))
        if row.series_uid is not None and row.series_uid in series_uids
    }
