"""What went wrong and is not mended: failed jobs, those that lack channels, dead letters, held series.

It is found by its code, and by whose study it is.

Nothing of a patient is kept or shown: who looks for a study by accession number, patient or date is answered by the
images' own headers, read for that, and sees UIDs and a digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from gateway.ledger import deliveries, events, instances, jobs, patients, series
from gateway.ledger.states import DeliveryState, JobState, SeriesState
from gateway.show import next_steps
from medseg.conditions.clock import Moments
from medseg.dicom.headers import look, read_instance
from medseg.errors import UnreadableInstance


@dataclass(frozen=True)
class Trouble:
    """Something a person has to look at. kind: job, delivery or series. id: of the job or delivery. at: since when.

    series_uid: empty where it is of several.
    """

    kind: str
    id: int | None
    study_uid: str
    series_uid: str
    code: str
    at: float
    message: str
    next_step: str


@dataclass(frozen=True)
class StudyIdentity:
    """What a study is looked for by. patient: a digest of the Patient ID; date: YYYYMMDD. Empty where it is absent."""

    accession: str
    patient: str
    date: str


def troubles(db: Connection) -> tuple[Trouble, ...]:
    """All that is not mended, the latest first."""
    wrong = [
        Trouble(
            "job", row.id, row.study_uid, row.series_uid or "", row.error_code or "",
            row.finished_at or row.created_at, row.error or "", next_steps.for_job(row),
        )
        for row in jobs.jobs_in(db, JobState.FAILED, JobState.HELD)
        if row.state is not JobState.HELD or row.lacks_something
    ]  # fmt: skip
    wrong += [
        Trouble(
            "delivery", row.id, row.study_uid, row.series_uid or "", row.error_code or "", row.ready_at,
            f"{row.kind} to {row.destination}: {row.error}", next_steps.for_delivery(row),
        )
        for row in deliveries.deliveries(db, DeliveryState.DEAD)
    ]  # fmt: skip
    wrong += [
        Trouble("series", None, row.study_uid, row.series_uid, "held", row.last_at, _why_held(db, row.study_uid,
                row.series_uid), next_steps.for_series(row))
        for row in series.series_in(db, SeriesState.HELD)
    ]  # fmt: skip
    return tuple(sorted(wrong, key=lambda trouble: -trouble.at))


def _why_held(db: Connection, study_uid: str, series_uid: str) -> str:
    held = [row for row in events.of_studies(db, (events.HELD,), (study_uid,)) if row.series_uid == series_uid]
    return str(json.loads(held[-1].detail).get("why", "")) if held else ""


def patient_digest(patient_id: str) -> str:
    """What stands for a Patient ID (0010,0020) without its issuer, as in `patients.key`."""
    return patients.key(patient_id).partition("/")[0]


def identity(db: Connection, spool: Path, study_uid: str) -> StudyIdentity:
    """Whose a study is, by the first of its images that can be read; nothing where none can."""
    for row in instances.present(db, study_uid):
        opener: Callable[[], Any] = partial((spool / row.path).open, "rb")
        try:
            header = look(read_instance(opener, row.sop_instance_uid).header)
        except (UnreadableInstance, OSError):
            continue
        return StudyIdentity(
            header.text("AccessionNumber"), patient_digest(header.text("PatientID")), header.text("StudyDate")
        )
    return StudyIdentity("", "", "")


def of_whom(
    db: Connection,
    spool: Path,
    among: Iterable[Trouble],
    *,
    accession: str | None,
    patient: str | None,
    date: Moments | None,
) -> Sequence[Trouble]:
    """Those of studies with that accession number, of that patient (Patient ID or its digest), of that study date."""
    if accession is None and patient is None and date is None:
        return tuple(among)
    kept: list[Trouble] = []
    whose: dict[str, StudyIdentity] = {}
    for trouble in among:
        if trouble.study_uid not in whose:
            whose[trouble.study_uid] = identity(db, spool, trouble.study_uid)
        known = whose[trouble.study_uid]
        if (
            (accession is None or known.accession == accession.strip())
            and (patient is None or known.patient in (patient.strip(), patient_digest(patient)))
            and (date is None or date.admits(known.date) is True)
        ):
            kept.append(trouble)
    return kept
