"""Whose images a study's are: of one patient, or of two, which stops all work on it until it is settled.

    all images name one patient ──────────────────────────────> nothing to settle
    some name another ──> open ──all say the same again───────> nothing to settle
                           ├─────`medseg studies merge`────────> merged: all are of the patient that is named
                           └─────`medseg studies split`────────> split: each patient's part goes on by itself

A Study Instance UID belongs to one patient (PS3.3 A.1.2), so another Patient ID (0010,0020) under it is a wrong image
or a correction that is on its way: which of the two, only its end or a person can tell. Where one of two images has no
Patient ID, or no Issuer of Patient ID (0010,0021), they do not contradict each other; nor do case, spaces and padding
(LO, PS3.5 6.2). The ledger holds no identifier, only a digest that tells one from another; people call them A, B, ...
in the order in which they came.

Each function takes a connection inside a transaction, as `Ledger.write` gives it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from sqlalchemy import Connection, Exists, and_, delete, exists, func, select, update

from gateway.ledger.events import record
from gateway.ledger.records import ConflictRow
from gateway.ledger.statements import UPSERT, Prepared
from gateway.ledger.states import COUNTING, SAYING, ConflictState
from gateway.ledger.tables import has_file, instance, of_series, patient_conflict, study_patient


def key(patient_id: str, issuer: str = "") -> str:
    """What stands for a patient: "digest of the identifier/digest of its issuer"; empty without an identifier."""
    name, issuer = _plain(patient_id), _plain(issuer)
    return f"{_digest(name)}/{_digest(issuer) if issuer else ''}" if name else ""


def _plain(text: str) -> str:
    """Without what means no difference: case, width, spaces and padding."""
    return "".join(unicodedata.normalize("NFKC", text.replace("\0", "")).casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def groups(keys: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Keys by patient, each in the order given, those without an identifier left out. The same identifier is another
    patient's where two issuers are named for it; without an issuer it is then a third one's, since nobody can tell."""
    by_name: dict[str, list[str]] = {}
    for patient in filter(None, dict.fromkeys(keys)):
        by_name.setdefault(patient.partition("/")[0], []).append(patient)
    grouped: list[tuple[str, ...]] = []
    for several in by_name.values():
        issuers = sum(not patient.endswith("/") for patient in several)
        grouped += [tuple(several)] if issuers <= 1 else [(patient,) for patient in several]
    return tuple(grouped)


def adds_nothing(here: str | None, new: str | None) -> bool:
    """Whether a version of an image names no other patient than one that is here, nor one where that names none.

    None: it is no image, or not known.
    """
    if here is None or new is None:
        return False
    return len(groups((here, new))) <= 1 and not (new and not here)


def fullest(group: Iterable[str]) -> str:
    """Of the keys of one patient the one that says most."""
    return max(group, key=len)


def conflict(db: Connection, study_uid: str) -> ConflictRow | None:
    """None where there is nothing to settle, and never was."""
    return ConflictRow.one_or_none(db, select(patient_conflict).where(patient_conflict.c.study_uid == study_uid))


def conflicts(db: Connection, study_uids: Collection[str]) -> list[ConflictRow]:
    """The same of some studies."""
    return ConflictRow.all(db, select(patient_conflict).where(patient_conflict.c.study_uid.in_(study_uids)))


@dataclass(frozen=True)
class Basis:
    """What says whose the images of a series are: how several patients in its study were settled, and whom those that
    count name."""

    conflict: ConflictRow | None
    said: frozenset[str | None]


def basis(db: Connection, study_uid: str, series_uid: str | None) -> Basis:
    mine = of_series(instance, study_uid, series_uid)
    counting = and_(mine, instance.c.state.in_(COUNTING))
    said = db.execute(select(instance.c.patient).where(counting).distinct()).scalars()
    return Basis(conflict(db, study_uid), frozenset(said))


def stopped(study_uid: Any) -> Exists:
    """Whether a study, by a column, has images of two patients that nobody has settled: a condition."""
    mine = and_(patient_conflict.c.study_uid == study_uid, patient_conflict.c.state == ConflictState.OPEN)
    return exists().where(mine)


def is_stopped(db: Connection, study_uid: str) -> bool:
    return bool(db.execute(select(stopped(study_uid))).scalar())


def open_conflicts(db: Connection) -> list[ConflictRow]:
    """The studies that are stopped, those for longest first."""
    still = select(patient_conflict).where(patient_conflict.c.state == ConflictState.OPEN)
    return ConflictRow.all(db, still.order_by(patient_conflict.c.since_at))


# ---- as images come


def note(db: Connection, study_uid: str, patient: str, calling_ae: str, at: float) -> None:
    """An image names a patient; another than those before it stops its study."""
    facts = {"study_uid": study_uid, "patient": patient, "calling_ae": calling_ae, "first_at": at}
    if not patient or _NOTE.scalar(db, facts) is None:
        return
    after = known(db, study_uid)
    if len(groups(after)) <= max(1, len(groups(other for other in after if other != patient))):
        return
    again = {"state": ConflictState.OPEN, "winner": None, "since_at": at, "settled_at": None}
    new = UPSERT[db.dialect.name](patient_conflict).values(study_uid=study_uid, **again)
    db.execute(new.on_conflict_do_update(index_elements=[patient_conflict.c.study_uid], set_=again))
    record(db, "patient.conflict", at, {"patients": len(groups(after))}, study_uid=study_uid)


_NOTE = Prepared(
    lambda name: UPSERT[name](study_patient).on_conflict_do_nothing().returning(study_patient.c.patient),
    "study_uid", "patient", "calling_ae", "first_at",
)  # fmt: skip


def known(db: Connection, study_uid: str) -> tuple[str, ...]:
    """The keys that the images of a study gave, in the order in which they came."""
    of = select(study_patient.c.patient).where(study_patient.c.study_uid == study_uid)
    return tuple(db.execute(of.order_by(study_patient.c.first_at, study_patient.c.patient)).scalars())


def letters(keys: Iterable[str]) -> dict[str, str]:
    """What people call each patient, by key. keys: in the order in which they came."""
    names = [*ascii_uppercase, *(f"{a}{b}" for a in ascii_uppercase for b in ascii_uppercase)]
    return {patient: name for name, group in zip(names, groups(keys), strict=False) for patient in group}


def whose(db: Connection, study_uid: str) -> list[str]:
    """Whom the images of a study name, as they count now or may."""
    says = and_(instance.c.study_uid == study_uid, instance.c.state.in_(SAYING))
    return [patient for patient in db.execute(select(instance.c.patient).where(says).distinct()).scalars() if patient]


def close(db: Connection, study_uid: str, at: float) -> bool:
    """Let go on a study whose images all say the same by now; False where they do not."""
    said = whose(db, study_uid)
    if len(groups(said)) > 1:
        return False
    mine = study_patient.c.study_uid == study_uid
    db.execute(delete(study_patient).where(mine, study_patient.c.patient.not_in(said)))
    db.execute(delete(patient_conflict).where(patient_conflict.c.study_uid == study_uid))
    record(db, "patient.settled", at, {"by": "all images say the same"}, study_uid=study_uid)
    return True


# ---- for people


@dataclass(frozen=True)
class Patient:
    """A patient whom images of a study name.

    letter: by the order in which they came. calling_ae, first_at: who sent the first of them, and when (seconds since
        1970). instances: how many count. path: of the latest that is here, relative to the spool.
    """

    letter: str
    calling_ae: str
    first_at: float
    instances: int
    path: str | None


def described(db: Connection, study_uid: str) -> tuple[Patient, ...]:
    """The patients of a study, those first who came first."""
    order = (study_patient.c.first_at, study_patient.c.patient)
    rows = db.execute(select(study_patient).where(study_patient.c.study_uid == study_uid).order_by(*order)).all()
    names = letters(row.patient for row in rows)
    by_letter: dict[str, Patient] = {}
    for row in rows:
        name = names[row.patient]
        by_letter.setdefault(name, Patient(name, row.calling_ae, row.first_at, 0, None))
        mine = and_(instance.c.study_uid == study_uid, instance.c.patient == row.patient)
        counting = select(func.count()).select_from(instance).where(mine, instance.c.state.in_(COUNTING))
        there = and_(mine, has_file())
        path = db.execute(select(instance.c.path).where(there).order_by(instance.c.id.desc()).limit(1)).scalar()
        number = by_letter[name].instances + int(db.execute(counting).scalar_one())
        by_letter[name] = replace(by_letter[name], instances=number, path=path or by_letter[name].path)
    return tuple(by_letter.values())


def settle(db: Connection, study_uid: str, winner: str | None, at: float) -> None:
    """All images of a study are of one patient (its key), or, without a winner, each part is its own patient's."""
    state = ConflictState.SPLIT if winner is None else ConflictState.MERGED
    mine = patient_conflict.c.study_uid == study_uid
    db.execute(update(patient_conflict).where(mine).values(state=state, winner=winner, settled_at=at))
    record(db, "patient.settled", at, {"by": state}, study_uid=study_uid)


def erase(db: Connection, study_uid: str) -> None:
    """A study is taken out of the ledger."""
    for table in (study_patient, patient_conflict):
        db.execute(delete(table).where(table.c.study_uid == study_uid))
