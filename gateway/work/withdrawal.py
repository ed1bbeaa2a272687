"""A result withdrawn: a report and a rejection of its objects, frozen as results are, sent to where it is.

    frozen objects of the result, and of those that it replaced ── a report that takes the report's place: "withdrawn"
                                                                └─ a note of rejection, which archives act upon

Patient and study are those of the withdrawn objects: their images may be gone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from sqlalchemy import Connection

from gateway.files import RESULTS
from gateway.ledger import patients, withdrawals
from gateway.ledger.ledger import Ledger
from gateway.ledger.object_kind import ObjectKind
from gateway.ledger.records import ObjectRow, ResultRow
from gateway.ledger.results import NewObject
from gateway.ledger.withdrawals import NewWithdrawal
from gateway.settings.model import ResultForm
from gateway.work.freeze import frozen, sync_all, sync_places
from medseg.dicom.headers import look
from medseg.errors import UsageError
from medseg.results.identity import ResultKey
from medseg.results.report import RESEARCH
from medseg.results.statement import Statement, write_rejection, write_statement

SCHEMA = "1"  # raised whenever the same would be told by another object


def withdraw(ledger: Ledger, spool: Path, result_id: int, why: str, now: float) -> list[str]:
    """Withdraw a result, with what it replaced. why: a person's words, for the objects alone. Returns where it is told.

    Raises UsageError where there is none to withdraw, or its files cannot be read.
    """
    with ledger.read() as db:
        if said := withdrawals.why_not(db, result_id):
            raise UsageError(said)
        rows = withdrawals.with_replaced(db, result_id)
        objects = withdrawals.objects_in(db, rows)
    new = _made(rows, objects, spool, why, now)

    def commit(db: Connection) -> list[str]:
        if said := withdrawals.why_not(db, result_id):  # meanwhile
            raise UsageError(said)
        return withdrawals.file_withdrawal(db, new, now)

    try:
        return ledger.write(commit)
    except UsageError:
        for made in new.objects:  # its study may have been purged
            shutil.rmtree((spool / made.path).parent, ignore_errors=True)
        raise


def _made(rows: Sequence[ResultRow], objects: Sequence[ObjectRow], spool: Path, why: str, now: float) -> NewWithdrawal:
    """rows: the result, then those that it replaced. Where a study was split, each patient is told of apart."""
    of, current = rows[0], {one.id for one in objects if one.result_id == rows[0].id}
    read = [(one, _header(spool, one)) for one in objects]
    parts: dict[str, list[tuple[ObjectRow, Dataset]]] = defaultdict(list)
    for one, header in read:
        seen = look(header)
        parts[patients.key(seen.text("PatientID"), seen.text("IssuerOfPatientID"))].append((one, header))
    made: list[NewObject] = []
    sources: list[dict[str, str]] = []
    whole = _digest([SCHEMA, of.result_key, why, str(now)])  # two who do so at once write apart, and one is refused
    for number, (patient, part) in enumerate(parts.items(), 1):
        key = whole if number == 1 else _digest([whole, str(number)])
        reports = [(one, header) for one, header in part if one.id in current and header.Modality == "SR"]
        said = Statement(
            key=ResultKey(key),
            study_uid=of.study_uid,
            header=part[0][1],
            made_at=datetime.now(),
            texts=tuple(_texts(of, why)),
            images={},
            description="AI result withdrawn (research use)",
            evidence=_references(part),
            predecessors=_references(reports),
        )
        made += _frozen(said, number, spool)
        sources.append({"patient": patient, "result_key": key})
    sync_places(spool)
    return NewWithdrawal(whole, of, sources, tuple(made))


def _texts(of: ResultRow, why: str) -> list[str]:
    where = f"of study {of.study_uid}" if of.series_uid is None else f"of series {of.series_uid}"
    said = f"Withdrawn: the result of bundle {of.bundle} {of.bundle_version} {where} is wrong and must not be used."
    return [said, *([why] if why else []), RESEARCH]


def _header(spool: Path, of: ObjectRow) -> Dataset:
    try:
        return dcmread(spool / of.path, stop_before_pixels=True)
    except (OSError, InvalidDicomError) as error:
        why = f"the file of its {of.kind} cannot be read ({type(error).__name__}): restore it from a backup"
        raise UsageError(f"result {of.result_id}: {why}") from error


def _references(of: Sequence[tuple[ObjectRow, Dataset]]) -> Mapping[str, Sequence[tuple[str, str]]]:
    """Objects by their series."""
    by_series: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one, header in of:
        by_series[str(header.SeriesInstanceUID)].append((one.sop_class_uid, one.sop_instance_uid))
    return by_series


def _frozen(said: Statement, number: int, spool: Path) -> list[NewObject]:
    folder = spool / RESULTS / said.key.digest
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was cut off
    made = {ResultForm.SR: write_statement, ResultForm.KO: write_rejection}
    for kind, write in made.items():
        write(folder / f"{kind}.dcm", said)
    sync_all(folder)
    return [frozen(ObjectKind.of(kind, number), folder / f"{kind}.dcm", spool) for kind in made]


def _digest(facts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
