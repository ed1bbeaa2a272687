"""What bundles of several channels wait for: a row for each study and bundle, from the first series of its rule on.

    series complete ──came──> due now ──a look──> nothing to wait for │ due at a moment │ a job (`study_jobs`)

A look takes time, and more may come meanwhile: it counts where `asked` is what it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, and_, delete, select, update

from gateway.ledger import patients
from gateway.ledger.records import GatheringRow, SeriesRow
from gateway.ledger.statements import UPSERT
from gateway.ledger.states import SeriesState
from gateway.ledger.tables import gathering, series


def came(db: Connection, study_uid: str, bundles: Collection[str], at: float, *, whole: bool = False) -> None:
    """Something of a study is complete, or is to be looked at anew: all that waits for it is due.

    bundles: those whose rule takes what came. whole: all of the study is known to be here.
    """
    new = {"study_uid": study_uid, "since_at": at, "due_at": at, "asked": 0, "whole": 0}
    for bundle in bundles:
        db.execute(UPSERT[db.dialect.name](gathering).values(bundle=bundle, **new).on_conflict_do_nothing())
    due = {"due_at": at, "asked": gathering.c.asked + 1, "whole": int(whole)}
    db.execute(update(gathering).where(gathering.c.study_uid == study_uid).values(**due))


def due(db: Connection, now: float) -> list[GatheringRow]:
    """What is to be looked at, but in studies with images of two patients."""
    wanted = and_(gathering.c.due_at <= now, ~patients.stopped(gathering.c.study_uid).correlate(gathering))
    return GatheringRow.all(db, select(gathering).where(wanted).order_by(gathering.c.due_at))


def is_current(db: Connection, row: GatheringRow, revisions: Mapping[str, int]) -> bool:
    """Whether nothing has come since a row was read, nor for series of which these revisions were complete."""
    same = select(gathering.c.asked).where(_of(row))
    if db.execute(same).scalar() != row.asked or patients.is_stopped(db, row.study_uid):
        return False
    whole = and_(series.c.study_uid == row.study_uid, series.c.state == SeriesState.COMPLETE)
    complete = SeriesRow.all(db, select(series).where(whole))
    return revisions.items() <= {(row.series_uid, row.revision) for row in complete}


def looked(db: Connection, row: GatheringRow, until: float | None, code: str | None, why: str | None) -> None:
    """A study was looked at: it is again at a moment, or when something comes; at once where it came meanwhile.

    why: what is missing.
    """
    same = gathering.c.asked == row.asked
    db.execute(update(gathering).where(_of(row), same).values(due_at=until, code=code, why=why))


def say(db: Connection, study_uid: str, bundle: str, said: Mapping[str, Any], at: float) -> bool:
    """A person says something of the channels of a study, beside what was said before: it is looked at anew."""
    mine = and_(gathering.c.study_uid == study_uid, gathering.c.bundle == bundle)
    before = db.execute(select(gathering.c.said).where(mine)).scalar()
    if before is None:
        return False
    all_said = json.loads(before)
    all_said |= dict(said) | {"channels": all_said.get("channels", {}) | dict(said.get("channels", {}))}
    again = {"said": json.dumps(all_said), "due_at": at, "asked": gathering.c.asked + 1}
    db.execute(update(gathering).where(mine).values(**again))
    return True


def heard(db: Connection, row: GatheringRow) -> None:
    """It was done again, as a person said."""
    said = {key: value for key, value in json.loads(row.said).items() if key != "anew"}
    db.execute(update(gathering).where(_of(row)).values(said=json.dumps(said)))


def drop(db: Connection, row: GatheringRow) -> bool:
    """No rule wants it any more. False where something came meanwhile."""
    return db.execute(delete(gathering).where(_of(row), gathering.c.asked == row.asked)).rowcount == 1


def of_studies(db: Connection, study_uids: Collection[str]) -> list[GatheringRow]:
    """What is waited for in some studies."""
    return GatheringRow.all(db, select(gathering).where(gathering.c.study_uid.in_(study_uids)))


def _of(row: GatheringRow) -> Any:
    return and_(gathering.c.study_uid == row.study_uid, gathering.c.bundle == row.bundle)
