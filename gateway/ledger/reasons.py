"""Reasons: why nothing of a study was segmented, by a rule. They are results of the study, delivered as others are.

Of each study and rule one is current: until a result of what the rule takes, or another reason, takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from gateway.ledger import unanswered
from gateway.ledger.deliveries import withdraw
from gateway.ledger.records import JobRow, ResultRow
from gateway.ledger.results import NewObject, deliver_objects
from gateway.ledger.states import ResultKind
from gateway.ledger.study_jobs import channels_of
from gateway.ledger.tables import result


@dataclass(frozen=True)
class NewReason:
    """What is told of a study. facts: in words, and of which series; sources: whose each object is."""

    result_key: str
    study_uid: str
    rule: str
    facts: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]] = ()
    objects: tuple[NewObject, ...] = ()


def current_reason(db: Connection, study_uid: str, rule: str) -> ResultRow | None:
    """What was told last of a study, by a rule, and still holds."""
    mine = and_(_is_current(), result.c.study_uid == study_uid, result.c.rule == rule)
    return ResultRow.one_or_none(db, select(result).where(mine))


def last_reason(db: Connection, study_uid: str, rule: str) -> ResultRow | None:
    """What was told last of a study, by a rule, whether it still holds or not."""
    mine = and_(result.c.kind == ResultKind.REASON, result.c.study_uid == study_uid, result.c.rule == rule)
    return ResultRow.one_or_none(db, select(result).where(mine).order_by(result.c.id.desc()).limit(1))


def current_reasons(db: Connection, study_uids: Collection[str]) -> list[ResultRow]:
    """The same of some studies, by all rules."""
    mine = and_(_is_current(), result.c.study_uid.in_(study_uids))
    return ResultRow.all(db, select(result).where(mine).order_by(result.c.id))


def file_reason(db: Connection, new: NewReason, destinations: Iterable[str], now: float) -> int:
    """A study has this reason: it is current, and on its way; what it replaces and was not sent is not. Returns its
    id."""
    before = current_reason(db, new.study_uid, new.rule)
    if before is not None:
        replace(db, before, now)
    facts = {
        "result_key": new.result_key,
        "study_uid": new.study_uid,
        "bundle": "",
        "bundle_version": "",
        "facts": json.dumps(dict(new.facts)),
        "sources": json.dumps(list(new.sources)),
        "created_at": now,
        "kind": ResultKind.REASON,
        "rule": new.rule,
    }
    result_id = int(db.execute(insert(result).returning(result.c.id), facts).scalar_one())
    deliver_objects(db, result_id, new.objects, destinations, now)
    return result_id


def replace(db: Connection, row: ResultRow, now: float) -> None:
    """A reason holds no more; where it was not sent yet, it is not."""
    db.execute(update(result).where(result.c.id == row.id).values(replaced_at=now))
    withdraw(db, row.id)


def answered_by(db: Connection, of: JobRow) -> list[ResultRow]:
    """The reasons whose place a result of a job takes: those of its rule, and those that name its series."""
    mine = {of.series_uid} if of.series_uid is not None else {one.series_uid for one in channels_of(db, of.id)}
    return [
        row
        for row in current_reasons(db, [of.study_uid])
        if row.rule == of.rule or mine & set(json.loads(row.facts)["series"])
    ]


def answer(db: Connection, of: JobRow, now: float) -> None:
    """A job came to a result: what said that there was none holds no more."""
    for row in answered_by(db, of):
        replace(db, row, now)


def anew(db: Connection, row: ResultRow, now: float) -> None:
    """A reason is to be told again, since another patient is meant: see `gateway.decide.settle`."""
    replace(db, row, now)
    told = json.loads(row.facts)
    unanswered.ask(db, row.study_uid, row.rule or "", told["terms"], told["bundles"])


def _is_current() -> ColumnElement[bool]:
    return and_(result.c.kind == ResultKind.REASON, result.c.replaced_at.is_(None))
