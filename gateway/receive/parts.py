"""A series by whose it is: as a whole, under the patient that its study was settled on, or a part for each patient.

    all images name one patient ──> the series, under the fullest identity where some say less
    merged                      ──> the series, under the identity of the patient that was named
    split                       ──> a series for each patient: of each object the latest version that names them
    two patients, not settled   ──> nothing

Another identity is laid over a header as a whole, patient and study (`medseg.results.modules`), from one image that has
it. What was changed so gets digests of its own, since the result's key must tell it from others of the same images.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import Dataset

from gateway.ledger import instances as instance_rows
from gateway.ledger import patients
from gateway.ledger.ledger import Ledger
from gateway.ledger.patients import Basis
from gateway.ledger.states import COUNTING, ConflictState
from gateway.receive.source import read_image
from medseg.dicom.headers import look
from medseg.dicom.instance import Instance
from medseg.dicom.series import Series
from medseg.dicom.sources import instance_digest, to_series
from medseg.errors import InputError
from medseg.progress import Cancelled, check, never
from medseg.results.modules import under_identity


@dataclass(frozen=True, eq=False)
class PatientParts:
    """series: with whose each is (`patients.key`). basis: of the ledger, on which that holds. salts: by id of those
    instances that were changed, what makes their digest another."""

    series: tuple[tuple[str, Series], ...]
    basis: Basis
    salts: dict[int, str]

    def digest(self, instance: Instance) -> str:
        """Of an instance as it is segmented."""
        plain = instance_digest(instance)
        salt = self.salts.get(id(instance))
        return plain if salt is None else hashlib.sha256(f"{plain} {salt}".encode()).hexdigest()


def key_of(header: Dataset) -> str:
    """Whom an image names."""
    view = look(header)
    return patients.key(view.text("PatientID"), view.text("IssuerOfPatientID"))


def parted(ledger: Ledger, spool: Path, series: Series, cancelled: Cancelled = never) -> PatientParts | None:
    """The parts of a series as it counts, the series itself where nothing changes; None where its study is stopped."""
    with ledger.read() as db:
        basis = patients.basis(db, series.study_uid, series.series_uid)
    keys = [key_of(one.header) for one in series.instances]
    settled = basis.conflict
    if settled is None and len(patients.groups(keys)) > 1:  # filed by a version of medseg that did not look
        _note(ledger, series, keys)
        return None
    if settled is not None and settled.state is ConflictState.OPEN:
        return None
    if settled is None:
        key = patients.fullest(keys)
        if len({_written(one.header) for one in series.instances}) <= 1:
            return PatientParts(((key, series),), basis, {})
        return _under(series.instances, _latest(series.instances, key), key, basis)
    if settled.state is ConflictState.MERGED:
        winner = str(settled.winner)
        identity = _latest(series.instances, winner) or _elsewhere(ledger, spool, series.study_uid, winner)
        if identity is None:
            raise NoIdentity(series.series_uid)
        return _under(series.instances, identity, winner, basis)
    return _split(ledger, spool, series, basis, cancelled)


class NoIdentity(InputError):
    """A study was merged, and no image of the patient that was named is here any more."""

    code = "no_identity"

    def __init__(self, series_uid: str) -> None:
        super().__init__(
            f"series {series_uid}: its study was merged, and no image of the patient that was named is here any more: "
            "send one again, or merge to another patient"
        )


def _note(ledger: Ledger, series: Series, keys: Sequence[str]) -> None:
    now = time.time()
    for key in dict.fromkeys(keys):
        ledger.write(patients.note, series.study_uid, key, "", now)


def _written(header: Dataset) -> tuple[str, str]:
    view = look(header)
    return view.text("PatientID"), view.text("IssuerOfPatientID")


def _latest(instances: Sequence[Instance], key: str) -> Instance | None:
    """The image that came last of those that name a patient so."""
    exact = [one for one in instances if key_of(one.header) == key]
    same = [one for one in instances if len(patients.groups((key, found := key_of(one.header)))) == 1 and found]
    return exact[-1] if exact else same[-1] if same else None


def _elsewhere(ledger: Ledger, spool: Path, study_uid: str, key: str) -> Instance | None:
    """An image of a patient in any series of a study."""
    with ledger.read() as db:
        row = instance_rows.latest_of_patient(db, study_uid, key)
    return None if row is None else read_image(spool, row)


def _under(instances: Sequence[Instance], identity: Instance | None, key: str, basis: Basis) -> PatientParts:
    """A series of instances under one identity."""
    if identity is None:
        return PatientParts(((key, to_series(instances)),), basis, {})
    changed = [replace(one, header=under_identity(one.header, identity.header)) for one in instances]
    salt = f"{key} {_written(identity.header)} {basis.conflict and basis.conflict.settled_at}"
    return PatientParts(((key, to_series(changed)),), basis, {id(one): salt for one in changed})


def _split(ledger: Ledger, spool: Path, series: Series, basis: Basis, cancelled: Cancelled) -> PatientParts:
    """Of each object the latest version of each patient, or the one that counts where that is theirs."""
    with ledger.read() as db:
        known = patients.groups(patients.known(db, series.study_uid))
        rows = instance_rows.real_instances(db, series.study_uid, series.series_uid)
    by_patient: dict[tuple[str, ...], dict[str, tuple[bool, Instance]]] = {}
    for row in rows:
        check(cancelled)
        instance = read_image(spool, row)
        if instance is None:
            continue
        said = key_of(instance.header)
        group = next((one for one in known if said in one), ())
        versions = by_patient.setdefault(group, {})
        if row.sop_instance_uid not in versions or not versions[row.sop_instance_uid][0]:
            versions[row.sop_instance_uid] = row.state in COUNTING, instance
    nameless = by_patient.pop((), {})
    if len(by_patient) == 1:  # who else: the others of their series are all of one patient
        ((group, versions),) = by_patient.items()
        by_patient[group] = nameless | versions
    elif nameless:
        by_patient[()] = nameless
    parts: list[tuple[str, Series]] = []
    salts: dict[int, str] = {}
    for group, versions in by_patient.items():
        key, instances = patients.fullest(group or ("",)), [instance for _, instance in versions.values()]
        alike = len({_written(one.header) for one in instances}) == 1
        part = _under(instances, None if alike else _latest(instances, key), key, basis)
        parts += part.series
        salts |= part.salts
    return PatientParts(tuple(parts), basis, salts)
