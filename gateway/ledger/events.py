"""Events: what people should be able to look up later."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from gateway.ledger.records import EventRow
from gateway.ledger.tables import event


def record(
    db: Connection,
    kind: str,
    at: float,
    detail: Mapping[str, Any],
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_instance_uid: str | None = None,
    job_id: int | None = None,
) -> None:
    """Something that people should be able to look up later; UIDs and facts, never names."""
    about = {"study_uid": study_uid, "series_uid": series_uid, "sop_instance_uid": sop_instance_uid, "job_id": job_id}
    db.execute(insert(event), {"kind": kind, "at": at, "detail": json.dumps(dict(detail))} | about)


def of_studies(db: Connection, kinds: Collection[str], study_uids: Collection[str]) -> list[EventRow]:
    """What was recorded of some studies, in the order in which it happened."""
    chosen = select(event).where(event.c.kind.in_(kinds), event.c.study_uid.in_(study_uids))
    return EventRow.all(db, chosen.order_by(event.c.id))


def settings_recorded(db: Connection) -> dict[str, list[str]]:
    """What the last reading of the settings came to: `problems` that kept the old ones, keys `kept` till a restart, and
    `doubts` about those in force."""
    settings: dict[str, list[str]] = {"problems": [], "kept": [], "doubts": []}
    for kind in (SETTINGS, DOUBTS):
        last = select(event.c.detail).where(event.c.kind == kind).order_by(event.c.id.desc()).limit(1)
        settings |= json.loads(db.execute(last).scalar() or "{}")
    return settings


def record_settings(db: Connection, problems: Iterable[str], kept: Iterable[str], at: float) -> None:
    """The settings were read."""
    record(db, SETTINGS, at, {"problems": list(problems), "kept": list(kept)})


def record_doubts(db: Connection, doubts: Iterable[str], at: float) -> None:
    """The settings in force were looked at: what in them cannot work, or not as it looks."""
    record(db, DOUBTS, at, {"doubts": list(doubts)})


PASSED_OVER = "series.passed_over"
HELD = "series.held"
SETTINGS = "settings.read"
DOUBTS = "settings.doubted"
