"""Records and states beside the tables that they are of."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Integer, Text, create_engine, literal, select

from gateway.ledger import peer_tables, records, states, tables
from gateway.ledger.deliveries import deliveries_query
from gateway.ledger.object_kind import ObjectKind, is_segmentation
from gateway.ledger.refusals import RefusedPeer
from gateway.settings.model import Mode, ResultForm

ROWS = {
    records.AssociationRow: tables.association,
    records.SeriesRow: tables.series,
    records.InstanceRow: tables.instance,
    records.ConflictRow: tables.patient_conflict,
    records.JobRow: tables.job,
    records.JobChannelRow: tables.job_channel,
    records.GatheringRow: tables.gathering,
    records.ResultRow: tables.result,
    records.UnansweredRow: tables.unanswered,
    records.CommitmentRow: peer_tables.commitment,
    records.CountRow: peer_tables.count,
    records.ObjectRow: tables.result_object,
    records.EventRow: tables.event,
    records.DoomedRow: tables.doomed,
    RefusedPeer: peer_tables.refusal,
}
SELECTED = {row: list(table.columns) for row, table in ROWS.items()}
SELECTED[records.DeliveryRow] = list(deliveries_query().selected_columns)
PYTHON: dict[type[Any], type[Any]] = {Integer: int, BigInteger: int, Double: float, Text: str}
WORDS: dict[tuple[str, str], type[StrEnum]] = {
    ("association", "ending"): states.Ending,
    ("series", "state"): states.SeriesState,
    ("instance", "state"): states.InstanceState,
    ("patient_conflict", "state"): states.ConflictState,
    ("job", "state"): states.JobState,
    ("job", "mode"): Mode,
    ("delivery", "state"): states.DeliveryState,
    ("result", "kind"): states.ResultKind,
    ("commitment", "state"): states.CommitmentState,
    ("refusal", "what"): states.RefusedCaller,
}


@pytest.mark.parametrize("record", SELECTED, ids=lambda record: record.__name__)
def test_a_record_has_each_column_in_its_place_and_of_its_type(record: type[Any]) -> None:
    columns = SELECTED[record]
    hints = get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    assert names == [column.name for column in columns]
    for column in columns:
        types = set(get_args(hints[column.name])) or {hints[column.name]}
        assert (NoneType in types) == column.nullable, column
        assert types - {NoneType} == {expected(column)}, column


def expected(column: Column[Any]) -> type[Any]:
    if column.table is tables.result_object and column.name == "kind":
        return ObjectKind
    return WORDS.get((column.table.name, column.name), PYTHON[type(column.type)])


def test_every_column_of_a_record_that_holds_one_of_some_words_has_their_type() -> None:
    checked = {
        (table.name, column.name)
        for table in [*ROWS.values(), tables.delivery]
        for column in table.columns
        for check in table.constraints
        if isinstance(check, CheckConstraint) and str(check.sqltext).startswith(f"{column.name} IN (")
    }
    assert checked == WORDS.keys()


@pytest.mark.parametrize(
    ("form", "stack", "text", "segmentation"),
    [
        (ResultForm.SEG, 1, "seg", True),
        (ResultForm.SR, 1, "sr", False),
        (ResultForm.SEG, 12, "seg.12", True),
        (ResultForm.SR, 2, "sr.2", False),
    ],
)
def test_a_kind_of_object(form: ResultForm, stack: int, text: str, segmentation: bool) -> None:
    kind = ObjectKind.of(form, stack)
    assert (kind, kind.is_segmentation) == (text, segmentation)
    with create_engine("sqlite://").connect() as db:
        assert bool(db.execute(select(is_segmentation(literal(text)))).scalar()) == segmentation
