"""Rows as callers hold them: frozen, a field for each column in its place, and words as what they are.

What a column means stands in `gateway.ledger.tables`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from typing import Any, Self, get_args, get_type_hints

from sqlalchemy import Connection, Row, Select

from gateway.ledger.claims import Claim
from gateway.ledger.object_kind import ObjectKind
from gateway.ledger.states import (
    CommitmentState,
    ConflictState,
    DeliveryState,
    Ending,
    InstanceState,
    JobState,
    ResultKind,
    SeriesState,
)
from gateway.settings.model import Mode


class Record:
    __slots__ = ()

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """row: of a select that begins with these columns; they are taken by their place, since names cost more."""
        record: Any = cls
        length, words = _shape(record)
        values = list(row[:length])
        for place, word in words:
            if values[place] is not None:
                values[place] = word(values[place])
        made: Self = record(*values)
        return made

    @classmethod
    def all(cls, db: Connection, query: Select[Any]) -> list[Self]:
        """All rows of a query."""
        return [cls.of(row) for row in db.execute(query).all()]

    @classmethod
    def one(cls, db: Connection, query: Select[Any]) -> Self:
        """The only row of a query."""
        return cls.of(db.execute(query).one())

    @classmethod
    def one_or_none(cls, db: Connection, query: Select[Any]) -> Self | None:
        """The only row of a query; None where there is none."""
        row = db.execute(query).one_or_none()
        return None if row is None else cls.of(row)


@cache
def _shape(record: type[Any]) -> tuple[int, tuple[tuple[int, type[str]], ...]]:
    """How many columns a record has, and which of them hold words of what type."""
    hints = get_type_hints(record)
    types = [next(iter(get_args(hints[field.name])), hints[field.name]) for field in fields(record)]
    words = ((place, kind) for place, kind in enumerate(types) if issubclass(kind, StrEnum | ObjectKind))
    return len(types), tuple(words)


class ClaimedRecord(Record):
    """A row that is worked on under a lease."""

    __slots__ = ()
    id: int
    attempt: int
    tried_from: float | None
    created_at: float

    @property
    def claim(self) -> Claim:
        return Claim(self.id, self.attempt)

    @property
    def patience_from(self) -> float:
        """When patience with its failures, or its destination's, began."""
        return self.created_at if self.tried_from is None else self.tried_from


@dataclass(frozen=True, slots=True)
class AssociationRow(Record):
    id: str
    calling_ae: str
    called_ae: str
    host: str
    receiver: str
    opened_at: float
    ended_at: float | None
    ending: Ending | None


@dataclass(frozen=True, slots=True)
class SeriesRow(Record):
    study_uid: str
    series_uid: str
    instances: int
    revision: int
    first_at: float
    last_at: float
    expected: int | None
    state: SeriesState
    complete_at: float | None
    complete_by: str | None
    deleted_at: float | None
    taken_at: float | None
    taken_id: int | None
    passed_by: str


@dataclass(frozen=True, slots=True)
class InstanceRow(Record):
    id: int
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: str
    offset_bytes: int
    size_bytes: int
    sha256: str
    calling_ae: str
    association_id: str | None
    priority: int
    received_at: float
    state: InstanceState
    deleted_at: float | None
    patient: str | None


@dataclass(frozen=True, slots=True)
class ConflictRow(Record):
    """A study whose images name several patients, and how that was settled."""

    study_uid: str
    state: ConflictState
    winner: str | None
    since_at: float
    settled_at: float | None


@dataclass(frozen=True, slots=True)
class JobRow(ClaimedRecord):
    id: int
    study_uid: str
    series_uid: str | None
    revision: int
    bundle: str
    rule: str
    terms: str
    mode: Mode
    state: JobState
    due: float
    ready_at: float
    attempt: int
    lease_owner: str | None
    lease_until: float | None
    failures: int
    tried_from: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    error_code: str | None
    error: str | None
    may_lack: int

    @property
    def lacks_something(self) -> bool:
        """Whether it is held since it lacks something, and not because its rule says so."""
        return self.state == JobState.HELD and self.error_code is not None


@dataclass(frozen=True, slots=True)
class JobChannelRow(Record):
    """The series of a channel of a job."""

    job_id: int
    place: int
    name: str
    study_uid: str
    series_uid: str
    revision: int
    volume: int


@dataclass(frozen=True, slots=True)
class GatheringRow(Record):
    """What a bundle of several channels waits for in a study."""

    study_uid: str
    bundle: str
    since_at: float
    due_at: float | None
    asked: int
    whole: int
    said: str
    code: str | None
    why: str | None


@dataclass(frozen=True, slots=True)
class ResultRow(Record):
    id: int
    job_id: int | None
    result_key: str
    study_uid: str
    series_uid: str | None
    bundle: str
    bundle_version: str
    predecessor_id: int | None
    facts: str
    sources: str
    created_at: float
    kind: ResultKind
    rule: str | None
    replaced_at: float | None


@dataclass(frozen=True, slots=True)
class UnansweredRow(Record):
    """A rule's study of which something ended without a result."""

    study_uid: str
    rule: str
    terms: str
    bundles: str
    asked: int


@dataclass(frozen=True, slots=True)
class ObjectRow(Record):
    """An object of a result."""

    id: int
    result_id: int
    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DeliveryRow(ClaimedRecord):
    """With the object that it delivers, and the series whose result that is of (`gateway.ledger.deliveries`)."""

    id: int
    object_id: int
    destination: str
    state: DeliveryState
    ready_at: float
    attempt: int
    lease_owner: str | None
    lease_until: float | None
    failures: int
    tried_from: float | None
    created_at: float
    stored_at: float | None
    asked: int
    transaction_uid: str | None
    confirmed_at: float | None
    status: int | None
    copies: int
    stored_as: str | None
    error_code: str | None
    error: str | None
    result_id: int
    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    path: str
    sha256: str
    study_uid: str
    series_uid: str | None


@dataclass(frozen=True, slots=True)
class EventRow(Record):
    id: int
    at: float
    kind: str
    study_uid: str | None
    series_uid: str | None
    sop_instance_uid: str | None
    job_id: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class CommitmentRow(Record):
    id: int
    transaction_uid: str
    calling_ae: str
    association_id: str
    asked_at: float
    state: CommitmentState
    known_at: float | None
    ready_at: float
    attempt: int
    reported_at: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class CountRow(Record):
    study_uid: str
    series_uid: str
    source: str
    value: int
    since_at: float
    at: float


@dataclass(frozen=True, slots=True)
class DoomedRow(Record):
    path: str
    at: float
