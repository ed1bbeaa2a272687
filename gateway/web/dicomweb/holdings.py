"""The objects that are here, by study, series and instance; and what is said of those that are not given out.

counts, its file is here ─> given out          superseded, a copy, pending ─> as if it were not here
deleted by retention ─────> 410, or left out with a warning
two patients in a study ──> 409: nothing of it, until somebody settles that (`gateway.ledger.patients`)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from sqlalchemy import Connection

from gateway.ledger import holdings, instances, patients
from gateway.ledger.holdings import HeldObject
from gateway.web.dicomweb.attributes import NOTHING, Known, known_of
from gateway.web.dicomweb.problems import Problem, not_here
from gateway.web.site import Site

SERIES_UID = "0020000E"


@dataclass(frozen=True, slots=True)
class Held:
    """An object that is here."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    path: Path

    @property
    def known(self) -> Known:
        """Of its header; nothing where its file went a moment ago."""
        try:
            return known_of(self.path)
        except OSError:
            return NOTHING


@dataclass(frozen=True)
class Given:
    """What is given out. deleted: how many more there were, before retention."""

    objects: tuple[Held, ...]
    deleted: int = 0


def of_study(
    site: Site, db: Connection, study_uid: str, series_uid: str | None = None, sop_instance_uid: str | None = None
) -> list[Held]:
    """What is here of a study, of a series, or of an instance, whatever is to be said of it."""
    rows = holdings.instances_held(db, study_uid, series_uid, sop_instance_uid)
    rows += holdings.result_objects_held(db, study_uid, sop_instance_uid)
    return [held for row in rows if series_uid in (None, (held := _held(site, row)).series_uid)]


def _held(site: Site, row: HeldObject) -> Held:
    held = Held(row.study_uid, row.series_uid or "", row.sop_instance_uid, row.sop_class_uid, site.spool / row.path)
    return held if row.series_uid else replace(held, series_uid=held.known.text(SERIES_UID))


def given(site: Site, study_uid: str, series_uid: str | None = None, sop_instance_uid: str | None = None) -> Given:
    """What is given out of a study, a series or an instance. Raises Problem, LedgerUnavailable."""
    with site.ledger.read() as db:
        objects = of_study(site, db, study_uid, series_uid, sop_instance_uid)
        deleted = 0 if sop_instance_uid else instances.deleted_instances(db, study_uid, series_uid)
        if patients.is_stopped(db, study_uid):
            raise Problem(HTTPStatus.CONFLICT, two_patients(study_uid))
    if not objects and deleted:
        gone = f"study {study_uid}: its {deleted} images were deleted by retention ([retain] inputs_s): send it again"
        raise Problem(HTTPStatus.GONE, gone)
    if not objects:
        raise not_here(_named(study_uid, series_uid, sop_instance_uid))
    return Given(tuple(objects), deleted)


def two_patients(study_uid: str) -> str:
    return f"study {study_uid}: its images name two patients, so none is given out: settle it with `medseg studies`"


def _named(study_uid: str, series_uid: str | None, sop_instance_uid: str | None) -> str:
    if sop_instance_uid is not None:
        return f"instance {sop_instance_uid} of series {series_uid}"
    return f"study {study_uid}" if series_uid is None else f"series {series_uid} of study {study_uid}"
