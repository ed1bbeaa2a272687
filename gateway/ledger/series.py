"""Series: what is arriving of them, and when they are complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, exists, func, select, update

from gateway.ledger import stages
from gateway.ledger.records import SeriesRow
from gateway.ledger.states import UNDECIDED, InstanceState, SeriesState
from gateway.ledger.tables import instance, of_series, series
from medseg.errors import MedsegError


def series_in(db: Connection, *states: SeriesState) -> list[SeriesRow]:
    """The series in some states."""
    return SeriesRow.all(db, select(series).where(series.c.state.in_(states)))


def series_of(db: Connection, *study_uids: str) -> list[SeriesRow]:
    """The series of some studies, in the order in which they came."""
    theirs = select(series).where(series.c.study_uid.in_(study_uids))
    return SeriesRow.all(db, theirs.order_by(series.c.first_at, series.c.series_uid))


def studies(db: Connection) -> list[str]:
    """All studies of which there is something, by UID."""
    return list(db.execute(select(series.c.study_uid).distinct()).scalars())


def latest_studies(db: Connection, limit: int | None, before: float | None = None) -> list[str]:
    """The studies of which something was heard last, those first. before: only those older than that moment."""
    heard_at = func.max(series.c.last_at)
    chosen = select(series.c.study_uid).group_by(series.c.study_uid).order_by(heard_at.desc()).limit(limit)
    if before is not None:
        chosen = chosen.having(heard_at < before)
    return list(db.execute(chosen).scalars())


class Erased(MedsegError):
    """A series is not in the ledger any more: its study was purged."""

    code = "erased"

    def __init__(self, series_uid: str) -> None:
        super().__init__(f"series {series_uid} is not in the ledger any more: its study was purged")


def series_row(db: Connection, study_uid: str, series_uid: str) -> SeriesRow:
    """What is known of a series. Raises Erased."""
    row = SeriesRow.one_or_none(db, select(series).where(of_series(series, study_uid, series_uid)))
    if row is None:
        raise Erased(series_uid)
    return row


def taken(db: Connection, study_uid: str) -> dict[str, tuple[float, int]]:
    """When each series of a study was last decided upon, and its latest instance then; not those that never were."""
    decided = and_(series.c.study_uid == study_uid, series.c.taken_at.is_not(None))
    moments = db.execute(select(series.c.series_uid, series.c.taken_at, series.c.taken_id).where(decided))
    return {uid: (at, last_id) for uid, at, last_id in moments}


def complete_series(
    db: Connection,
    study_uid: str,
    series_uid: str,
    revision: int,
    by: str,
    at: float,
    passed_by: Mapping[str, int] | None = None,
) -> bool:
    """All of a series is here; False where something came after that revision, or is still to be compared.

    passed_by: what of it is not segmented, and how many of it; None where that is known already.
    """
    latest = select(func.max(instance.c.id)).where(of_series(instance, study_uid, series_uid)).scalar_subquery()
    done: dict[str, Any] = {"state": SeriesState.COMPLETE, "complete_by": by, "complete_at": at}
    done |= {"taken_at": at, "taken_id": latest}
    if passed_by is not None:
        done["passed_by"] = json.dumps(dict(passed_by))
    pending = exists().where(of_series(instance, study_uid, series_uid), instance.c.state == InstanceState.PENDING)
    same = and_(series.c.revision == revision, ~pending, series.c.state != SeriesState.COMPLETE)
    still = and_(of_series(series, study_uid, series_uid), same)
    moved = db.execute(update(series).where(still).values(done)).rowcount == 1
    if moved:
        stages.series_complete(db, study_uid, series_uid, by, at)
    return moved


def hold_series(db: Connection, study_uid: str, series_uid: str, revision: int) -> bool:
    """A series is not known to be complete, and its rule does not want it so."""
    still = and_(
        of_series(series, study_uid, series_uid), series.c.revision == revision, series.c.state == SeriesState.ARRIVING
    )
    return db.execute(update(series).where(still).values(state=SeriesState.HELD)).rowcount == 1


@dataclass(frozen=True, slots=True)
class UndecidedSeries:
    """A series that is not decided upon. senders: their AE titles. instances: how many are here."""

    study_uid: str
    series_uid: str
    instances: int
    senders: frozenset[str]


def arriving(db: Connection) -> list[UndecidedSeries]:
    """The series of which more may come."""
    return [
        UndecidedSeries(
            row.study_uid, row.series_uid, row.instances, frozenset(_senders(db, row.study_uid, row.series_uid))
        )
        for row in series_in(db, *UNDECIDED)
    ]


def expect(db: Connection, study_uid: str, series_uid: str, instances: int) -> None:
    """So many instances a series is known to have."""
    mine = of_series(series, study_uid, series_uid)
    db.execute(update(series).where(mine).values(expected=instances))


def _senders(db: Connection, study_uid: str, series_uid: str) -> Iterable[str]:
    mine = of_series(instance, study_uid, series_uid)
    return db.execute(select(instance.c.calling_ae).where(mine).distinct()).scalars()
