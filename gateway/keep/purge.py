"""Purge: a study goes from spool, results and ledger because somebody asked for it, whether the service runs or not.

What remains is one event: that the study of this UID was purged, when, and how much there was. What was sent to others
before stays with them; what comes for that study later is a new study.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from sqlalchemy import Connection, select

from gateway.keep.deletion import sweep
from gateway.keep.erase import Content, content, erase
from gateway.ledger import events
from gateway.ledger.deletions import mark_deleted
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import instance
from medseg.errors import UsageError

QUARANTINE = "quarantine"


def content_of(ledger: Ledger, study_uid: str) -> Content:
    """What a purge would take away. Raises UsageError where the study is not known."""
    with ledger.read() as db:
        there = content(db, study_uid)
    if not there.series:
        raise UsageError(f"study {study_uid} is not in the ledger")
    return there


def purge(ledger: Ledger, spool: Path, study_uid: str, at: float) -> Content:
    """Take a study away, with its files, and end all work for it. Returns what there was.

    Killed in the middle, it is finished by the running service within seconds, else by the next that starts.
    """

    def commit(db: Connection) -> Content:
        mark_deleted(db, _quarantined(db, spool, study_uid), at)
        there = erase(db, study_uid, at)
        events.record(db, "study.purged", at, asdict(there), study_uid=study_uid)
        return there

    there = ledger.write(commit)
    sweep(ledger, spool)
    return there


def _quarantined(db: Connection, spool: Path, study_uid: str) -> Iterator[str]:
    """Damaged files of the study that were put aside; their names say where they were (`receive.reconcile`)."""
    path = db.execute(select(instance.c.path).where(instance.c.study_uid == study_uid).limit(1)).scalar()
    if path is not None:
        name = "_".join(PurePosixPath(path).parts[:2])
        yield from (f"{QUARANTINE}/{file.name}" for file in (spool / QUARANTINE).glob(f"{name}_*"))
