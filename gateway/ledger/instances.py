"""Instances: filed once per content, lost, filed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    null,
    select,
    update,
)

from gateway.ledger import patients, tallies
from gateway.ledger.deletions import mark_deleted
from gateway.ledger.events import record
from gateway.ledger.records import InstanceRow, SeriesRow
from gateway.ledger.statements import UPSERT, Prepared
from gateway.ledger.states import COUNTING, REAL, SAYING, UNCOUNTED, InstanceState, SeriesState
from gateway.ledger.tables import has_file, instance, of_series, series
from medseg.dicom.classes import IMAGES


class Filed(StrEnum):
    """What filing an instance came to."""

    NEW = "new"
    DUPLICATE = "duplicate"  # these very bytes are there already: the new file is not needed
    CONFLICT = "conflict"  # other bytes under the same UIDs: both are kept; the later one counts if its image differs
    RESTORED = "restored"  # these very bytes were there, and their file was lost or deleted by retention


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance whose file is in the spool.

    patient: whom an image names (`gateway.ledger.patients.key`); None for what is no image.
    path: of the file, relative to the spool.
    offset_bytes, size_bytes, sha256: of the data set, in the file and as sent.
    association_id: None for a file that was adopted at start.
    """

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
    patient: str | None = None


def _series_statement(build: Callable[[Table], Any]) -> Any:
    """Add `more` counting instances to a series, whose content changed if `changed`."""
    new = build(series).values(
        instances=bindparam("more"),
        revision=1,
        first_at=bindparam("at"),
        last_at=bindparam("at"),
        state=SeriesState.ARRIVING,
    )
    changed = bindparam("changed") == 1
    return new.on_conflict_do_update(
        index_elements=[series.c.study_uid, series.c.series_uid],
        set_={
            "instances": series.c.instances + bindparam("more"),
            "revision": series.c.revision + bindparam("changed"),
            "last_at": case((series.c.last_at < bindparam("at"), bindparam("at")), else_=series.c.last_at),
            "state": case((changed, SeriesState.ARRIVING), else_=series.c.state),
            "complete_at": case((changed, null()), else_=series.c.complete_at),
            "complete_by": case((changed, null()), else_=series.c.complete_by),
            "deleted_at": null(),
        },
    )


_FACTS = tuple(field.name for field in fields(StoredInstance))


_NEW_INSTANCE = Prepared(
    lambda name: UPSERT[name](instance).on_conflict_do_nothing().returning(instance.c.id), *_FACTS, "state"
)


_ADD_TO_SERIES = Prepared(
    lambda name: _series_statement(UPSERT[name]), "study_uid", "series_uid", "more", "changed", "at"
)


def file_instance(db: Connection, new: StoredInstance) -> Filed:
    """Take an instance into the ledger, once per content.

    Of several versions under the same study, series and SOP Instance UID the one first seen last counts, whatever is
    sent again afterwards; each of them is kept, and the conflict told. Other bytes of an image that names the same
    patient count from when they were compared (`take_version`, `keep_copy`).
    """
    filed = _file(db, new)
    if filed is not Filed.DUPLICATE and new.patient:
        patients.note(db, new.study_uid, new.patient, new.calling_ae, new.received_at)
    tallies.add(db, (*tallies.INSTANCES.plus(outcome=filed), *tallies.RECEIVED_BYTES.plus(new.size_bytes)))
    return filed


def _file(db: Connection, new: StoredInstance) -> Filed:
    facts = {name: getattr(new, name) for name in _FACTS}
    if _NEW_INSTANCE.scalar(db, facts | {"state": InstanceState.CURRENT}) is not None:
        _add_to_series(db, new, more=1, changed=True)
        return Filed.NEW
    versions = InstanceRow.all(db, select(instance).where(_same_uids(new)).order_by(instance.c.id))
    counting = [version for version in versions if version.state in COUNTING]
    content = (new.sha256, new.transfer_syntax_uid)
    known = next((version for version in versions if (version.sha256, version.transfer_syntax_uid) == content), None)
    if known is not None and known.state != InstanceState.MISSING:
        _add_to_series(db, new, more=0, changed=False)
        if known.deleted_at is None:
            return Filed.DUPLICATE
        back = {"path": new.path, "offset_bytes": new.offset_bytes, "deleted_at": None}
        db.execute(update(instance).where(instance.c.id == known.id).values(back))
        return Filed.RESTORED
    if known is not None:
        state = InstanceState.SUPERSEDED if counting else InstanceState.CURRENT
        found_again = {"path": new.path, "offset_bytes": new.offset_bytes, "state": state, "deleted_at": None}
        db.execute(update(instance).where(instance.c.id == known.id).values(found_again))
        _add_to_series(db, new, more=0 if counting else 1, changed=not counting)
        return Filed.RESTORED
    here = [version for version in versions if version.deleted_at is None]
    to_be_compared = any(patients.adds_nothing(version.patient, new.patient) for version in here)
    mine = db.execute(insert(instance).returning(instance.c.id), facts | {"state": InstanceState.PENDING}).scalar_one()
    if to_be_compared:
        _add_to_series(db, new, more=0, changed=False)
    else:
        take_version(db, mine, new.received_at)
    return Filed.CONFLICT


def take_version(db: Connection, instance_id: int, at: float) -> bool:
    """A pending version of an instance counts from now on, and the others do not. False where it is not pending."""
    new = _pending(db, instance_id)
    if new is None:
        return False
    db.execute(
        update(instance).where(_same_uids(new), instance.c.state.in_(COUNTING)).values(state=InstanceState.SUPERSEDED)
    )
    db.execute(update(instance).where(instance.c.id == instance_id).values(state=InstanceState.CONFLICT))
    versions = db.execute(select(func.count()).select_from(instance).where(_same_uids(new))).scalar_one()
    _add_to_series(db, new, more=0, changed=True)
    _record(db, "instance.conflict", at, {"versions": versions, "sha256": new.sha256}, new)
    return True


def keep_copy(db: Connection, instance_id: int, at: float, why: str) -> bool:
    """A pending version of an instance holds nothing that counts. False where it is not pending."""
    new = _pending(db, instance_id)
    if new is None:
        return False
    db.execute(update(instance).where(instance.c.id == instance_id).values(state=InstanceState.COPY))
    _record(db, "instance.copy", at, {"why": why, "sha256": new.sha256}, new)
    return True


def _pending(db: Connection, instance_id: int) -> InstanceRow | None:
    mine = and_(instance.c.id == instance_id, instance.c.state == InstanceState.PENDING)
    return InstanceRow.one_or_none(db, select(instance).where(mine))


def lose_instance(db: Connection, path: str, at: float) -> bool:
    """The file of an instance is not what it was: the row is kept, and counts for nothing. False if that was known."""
    mine = and_(instance.c.path == path, instance.c.state != InstanceState.MISSING)
    row = InstanceRow.one_or_none(db, select(instance).where(mine))
    if row is None:
        return False
    db.execute(update(instance).where(mine).values(state=InstanceState.MISSING))
    if row.state in COUNTING:
        mine = of_series(series, row.study_uid, row.series_uid)
        fewer = {"instances": series.c.instances - 1, "revision": series.c.revision + 1}
        db.execute(update(series).where(mine).values(fewer))
    _record(db, "instance.missing", at, {"path": path}, row)
    return True


def instance_files(db: Connection) -> dict[str, int]:
    """Path and length in bytes of every file that should be in the spool."""
    length = instance.c.offset_bytes + instance.c.size_bytes
    files = db.execute(select(instance.c.path, length).where(has_file()))
    return dict(files.all())


def names_file(db: Connection, path: str) -> bool:
    """Whether a row names a file of the spool."""
    return bool(db.execute(select(exists().where(instance.c.path == path))).scalar())


def _record(
    db: Connection, kind: str, at: float, detail: Mapping[str, Any], about: StoredInstance | InstanceRow
) -> None:
    uids = about.study_uid, about.series_uid, about.sop_instance_uid
    record(db, kind, at, detail, study_uid=uids[0], series_uid=uids[1], sop_instance_uid=uids[2])


def _same_uids(new: StoredInstance | InstanceRow) -> ColumnElement[bool]:
    return and_(
        instance.c.study_uid == new.study_uid,
        instance.c.series_uid == new.series_uid,
        instance.c.sop_instance_uid == new.sop_instance_uid,
    )


def _add_to_series(db: Connection, new: StoredInstance | InstanceRow, *, more: int, changed: bool) -> None:
    facts = {"study_uid": new.study_uid, "series_uid": new.series_uid, "at": new.received_at}
    _ADD_TO_SERIES.execute_all(db, [facts | {"more": more, "changed": int(changed)}])


def refile_lost(db: Connection, new: StoredInstance, is_whole: Callable[[str, int], bool]) -> bool:
    """Name the file of a duplicate where the one that is known is lost or damaged; what is left of that is to be
    deleted. is_whole: whether a file of the spool, by its path, has so many bytes. Returns whether it is named."""
    same_content = and_(instance.c.sha256 == new.sha256, instance.c.transfer_syntax_uid == new.transfer_syntax_uid)
    known = InstanceRow.one(db, select(instance).where(_same_uids(new), same_content))
    if is_whole(known.path, known.offset_bytes + known.size_bytes):
        return False
    still = and_(instance.c.id == known.id, instance.c.path == known.path)
    there = {"path": new.path, "offset_bytes": new.offset_bytes}
    moved = db.execute(update(instance).where(still).values(there)).rowcount == 1
    if moved:
        mark_deleted(db, [known.path], new.received_at)
        _record(db, "instance.missing", new.received_at, {"path": known.path}, new)
    return moved


def counting_instances(db: Connection, study_uid: str, series_uid: str) -> list[InstanceRow]:
    """The instances of a series that count, in the order they came."""
    counts = and_(of_series(instance, study_uid, series_uid), instance.c.state.in_(COUNTING))
    return InstanceRow.all(db, select(instance).where(counts).order_by(instance.c.received_at, instance.c.id))


def next_pending(db: Connection) -> InstanceRow | None:
    """The version that has waited longest to be compared."""
    pending = select(instance).where(instance.c.state == InstanceState.PENDING)
    return InstanceRow.one_or_none(db, pending.order_by(instance.c.id).limit(1))


def real_versions(db: Connection, of: InstanceRow) -> list[InstanceRow]:
    """The versions of an instance whose files are here and that count, or did; those that count first."""
    here = select(instance).where(_same_uids(of), instance.c.state.in_(REAL), instance.c.deleted_at.is_(None))
    superseded = instance.c.state == InstanceState.SUPERSEDED
    return InstanceRow.all(db, here.order_by(superseded, instance.c.id))


def real_instances(db: Connection, study_uid: str, series_uid: str) -> list[InstanceRow]:
    """The same of all instances of a series, in the order they came."""
    here = and_(instance.c.state.in_(REAL), instance.c.deleted_at.is_(None))
    mine = select(instance).where(of_series(instance, study_uid, series_uid), here)
    return InstanceRow.all(db, mine.order_by(instance.c.id))


def present(db: Connection, study_uid: str) -> list[InstanceRow]:
    """The versions of a study's instances whose files are here, in the order they came."""
    here = select(instance).where(instance.c.study_uid == study_uid, has_file())
    return InstanceRow.all(db, here.order_by(instance.c.id))


def last_images(db: Connection, study_uids: Collection[str]) -> dict[tuple[str, str], float]:
    """When the last image of each series of some studies came for the first time."""
    last_at = func.max(instance.c.received_at)
    chosen = and_(instance.c.study_uid.in_(study_uids), instance.c.state.not_in(UNCOUNTED))
    came = select(instance.c.study_uid, instance.c.series_uid, last_at).where(chosen)
    by_series = came.group_by(instance.c.study_uid, instance.c.series_uid)
    return {(study_uid, series_uid): at for study_uid, series_uid, at in db.execute(by_series)}


def latest_of_patient(db: Connection, study_uid: str, patient: str) -> InstanceRow | None:
    """The latest instance of a study that names a patient, and whose file is here."""
    names = and_(instance.c.study_uid == study_uid, instance.c.patient == patient)
    latest = select(instance).where(names, has_file()).order_by(instance.c.id.desc()).limit(1)
    return InstanceRow.one_or_none(db, latest)


def patients_ever(db: Connection, study_uid: str, series_uid: str | None) -> set[str]:
    """Whom the versions of the instances of a series, or a study, name, but copies and those that are missing."""
    says = instance.c.state.in_((*SAYING, InstanceState.SUPERSEDED))
    named = select(instance.c.patient).where(of_series(instance, study_uid, series_uid), says)
    return {patient for patient in db.execute(named).scalars() if patient}


def deleted_instances(db: Connection, study_uid: str, series_uid: str | None) -> int:
    """How many of the instances of a series, or a study, that count have lost their file to retention."""
    gone = and_(
        of_series(instance, study_uid, series_uid), instance.c.state.in_(COUNTING), instance.c.deleted_at.is_not(None)
    )
    return int(db.execute(select(func.count()).select_from(instance).where(gone)).scalar_one())


def lost_instances(db: Connection, of: SeriesRow) -> int:
    """How many of the instances of a series have come, and do not count: no version of them has a file any more."""
    came = select(func.count(func.distinct(instance.c.sop_instance_uid)))
    return int(db.execute(came.where(of_series(instance, of.study_uid, of.series_uid))).scalar_one()) - of.instances


def first_instances(db: Connection, study_uid: str, series_uid: str, last_id: int) -> list[InstanceRow]:
    """The versions of the instances of a series up to one of them, in the order they first came."""
    came = and_(of_series(instance, study_uid, series_uid), instance.c.id <= last_id, instance.c.state.in_(REAL))
    return InstanceRow.all(db, select(instance).where(came).order_by(instance.c.id))


def calling_ae(db: Connection, study_uid: str, series_uid: str) -> str | None:
    """Who sent a series: most of its images, or of whatever it holds; of equally many, the first by name."""
    is_image = case((instance.c.sop_class_uid.in_(sorted(IMAGES)), 0), else_=1)
    counting = and_(of_series(instance, study_uid, series_uid), instance.c.state.in_(COUNTING))
    counted = select(instance.c.calling_ae).where(counting).group_by(instance.c.calling_ae, is_image)
    most = counted.order_by(is_image, func.count().desc(), instance.c.calling_ae).limit(1)
    return db.execute(most).scalar()
