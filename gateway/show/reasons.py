"""Why nothing of a study was segmented, by a rule, as people look at it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.ledger.results import results_of
from gateway.ledger.states import ResultKind
from gateway.show.objects import Delivery, Object, objects_by_result


@dataclass(frozen=True)
class ReasonView:
    """What was told of a study. current: no result, and no other reason, took its place. why, expected: sentences.
    objects: reports; none where it is for the page alone."""

    id: int
    rule: str
    current: bool
    created_at: float
    why: tuple[str, ...]
    expected: tuple[str, ...]
    objects: tuple[Object, ...]
    deliveries: tuple[Delivery, ...]


def reasons_by_study(db: Connection, study_uids: Sequence[str]) -> Mapping[str, tuple[ReasonView, ...]]:
    """The reasons of some studies, the latest first."""
    told: dict[str, tuple[ReasonView, ...]] = defaultdict(tuple)
    rows = [row for row in results_of(db, study_uids) if row.kind is ResultKind.REASON]
    objects, deliveries = objects_by_result(db, study_uids) if rows else ({}, {})
    for row in sorted(rows, key=lambda one: -one.id):
        facts = json.loads(row.facts)
        told[row.study_uid] += (
            ReasonView(
                row.id, row.rule or "", row.replaced_at is None, row.created_at, tuple(facts["why"]),
                tuple(facts["expected"]), tuple(objects.get(row.id, ())), tuple(deliveries.get(row.id, ())),
            ),
        )  # fmt: skip
    return told
