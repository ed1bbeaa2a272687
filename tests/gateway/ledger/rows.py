"""Rows that tests of the ledger put into it, and read out of it."""

from __future__ import annotations

from sqlalchemy import insert, text

from gateway.ledger import tables
from gateway.ledger.instances import StoredInstance
from gateway.ledger.ledger import Ledger


def stored(
    name: str = "a", *, sop: str = "1.1", series: str = "1.3", at: float = 5.0, syntax: str = "1.2.840.10008.1.2"
) -> StoredInstance:
    return StoredInstance(
        study_uid="1.2",
        series_uid=series,
        sop_instance_uid=sop,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid=syntax,
        path=f"{series}/{sop}.{name}.{at}",
        offset_bytes=300,
        size_bytes=10,
        sha256=name[0] * 64,
        calling_ae="CT",
        association_id=None,
        priority=0,
        received_at=at,
    )


def table(ledger: Ledger, query: str) -> list[tuple[object, ...]]:
    with ledger.read() as db:
        return [tuple(row) for row in db.execute(text(query))]


def add_job(ledger: Ledger, *, due: float, bundle: str = "b", ready_at: float = 0.0) -> None:
    """A job for the series, which is complete."""
    complete = "UPDATE series SET state = 'complete', complete_at = 0"
    ledger.write(lambda db: db.execute(text(complete)).rowcount)
    facts = {"study_uid": "1.2", "series_uid": "1.3", "revision": 1, "bundle": bundle, "rule": "r", "mode": "on"}
    facts |= {"state": "queued", "due": due, "ready_at": ready_at, "attempt": 0, "created_at": 0.0}
    ledger.write(lambda db: db.execute(insert(tables.job), facts))
