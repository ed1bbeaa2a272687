"""One item of a cohort: planned, segmented, written; whatever goes wrong with it is its own failure."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle
from medseg.cohort.finished import Failure, Finished
from medseg.cohort.items import CohortItem
from medseg.dicom import left_out
from medseg.dicom.headers import look
from medseg.dicom.series import Series, Stack
from medseg.dicom.sources import read_candidates, read_series
from medseg.errors import (
    DoesNotFit,
    EmptyInput,
    GeometryRefused,
    Incomplete,
    InputError,
    Interrupted,
    MedsegError,
    Unforeseen,
    UnreadableInstance,
    boundary,
)
from medseg.inference.settings import Settings
from medseg.job import exits
from medseg.job.channels import volumes_of
from medseg.job.exits import as_ours
from medseg.job.folder import Format
from medseg.job.plan import Job, Refused, StudyPlan, plan, plan_nifti
from medseg.job.prefer import with_preferred
from medseg.job.run import run
from medseg.job.together import refused as refused_of
from medseg.job.together import together
from medseg.progress import Cancelled, never
from medseg.texts import shown

_find = cache(find_bundle)


@dataclass(frozen=True)
class Task:
    """What is asked of every item.

    choices: folders of bundles to choose from, once for each result of a volume. explicit: they were named one by one,
    by a person. formats: None for what is usual (SEG and SR, NIfTI for NIfTI). secret: of the output, see `_patient`.
    """

    choices: tuple[tuple[str, ...], ...]
    settings: Settings
    formats: frozenset[Format] | None
    out: Path
    explicit: bool = False
    overwrite: bool = False
    strict: bool = False
    assume_registered: bool = False
    trust: bool = False
    secret: bytes = b""

    def choices_for(self, item: CohortItem) -> tuple[list[tuple[Bundle, ...]], bool]:
        """The bundles to choose from, and whether they were named. Raises NoSuchBundle, InvalidBundle."""
        if item.bundle is not None:
            return [(_find(item.bundle, trust=False),)], True
        return [tuple(_find(name, trust=self.trust) for name in names) for names in self.choices], self.explicit


def plan_item(task: Task, item: CohortItem, cancelled: Cancelled = never) -> list[StudyPlan]:
    """What is to be done with an item, for each choice of bundles. Raises MedsegError where nothing of it can be."""
    choices, explicit = task.choices_for(item)
    if item.nifti is not None:
        files = {name: (item.folder or Path()) / what for name, what in item.channels}
        return [plan_nifti(item.nifti, bundles, explicit=explicit, channels=files) for bundles in choices]
    candidates = item.candidates()
    found = read_candidates(candidates, item.absent, cancelled=cancelled)
    if not found.instances:
        if found.skipped:
            raise UnreadableInstance(found.skipped[0].name, found.skipped[0].why)
        raise EmptyInput(Path(item.name), len(candidates))
    series = [one for one in left_out.series_of(found) if one.study_uid == item.study_uid]
    named = _channels(task, item, series)
    planned = (
        plan(
            series,
            bundles,
            explicit=explicit,
            assume_frame_of_reference=task.settings.assume_frame_of_reference,
            channels=named,
            assume_registered=task.assume_registered,
        )
        for bundles in choices
    )
    plans = [with_preferred(one) for one in planned]
    return [*plans, _lost(item, series, plans)] if task.strict else plans


def _lost(item: CohortItem, series: Sequence[Series], plans: Sequence[StudyPlan]) -> StudyPlan:
    """What was lost of a study that no series with a job answers for."""
    answered = {left_out.key(one) for plan in plans for job in plan.jobs for one in job.series}
    unanswered = (one for one in series if left_out.key(one) not in answered)
    lost = sorted({file.sentence for one in unanswered for file in one.left_out if file.lost})
    refused = (Refused(None, None, Incomplete(called(item), lost), study_uid=item.study_uid),) if lost else ()
    return StudyPlan((), refused)


def _channels(task: Task, item: CohortItem, series: Sequence[Series]) -> Mapping[str, Sequence[Stack]] | None:
    """The volumes of the series that a table names for channels. Raises InputError."""
    named: dict[str, Sequence[Stack]] = {}
    for name, what in item.channels:
        path = (item.folder or Path()) / what
        found = read_series(path) if path.exists() else [one for one in series if one.series_uid == what]
        if len(found) != 1:
            raise InputError(f"channel {name}: {what}: {len(found) or 'no'} series, expected one: name its UID or path")
        named[name], _ = volumes_of(found[0], assume_frame_of_reference=task.settings.assume_frame_of_reference)
    return named or None


def try_plan(task: Task, item: CohortItem, cancelled: Cancelled = never) -> list[StudyPlan] | MedsegError:
    """As `plan_item`, its error given back. Raises Interrupted."""
    try:
        with boundary(called(item)):
            return plan_item(task, item, cancelled)
    except Interrupted:
        raise
    except (MedsegError, MemoryError, OSError) as error:
        return as_ours(called(item), error)


def do_item(
    task: Task, item: CohortItem, planned: list[StudyPlan] | MedsegError, settings: str, cancelled: Cancelled = never
) -> Finished:
    """Everything of an item. planned: what `try_plan` gave. settings: see `Finished`. Raises Interrupted."""
    begin = time.perf_counter()
    results: list[dict[str, Any]] = []
    failed: list[Failure] = []
    refused: list[Failure] = []
    if isinstance(planned, MedsegError):
        failed.append(failure_of(planned, item.study_uid, "", item.bundle))
    else:
        for one in refused_of(planned):
            failure = _refusal(item, one, strict=task.strict)
            (failed if failure.kind == "failed" else refused).append(failure)
        for job in together(planned):
            outcome = _outcome(task, item, job, cancelled)
            if isinstance(outcome, MedsegError):
                series, by_its_voxels = job.stack.series, isinstance(outcome, DoesNotFit)
                failure = failure_of(
                    outcome, series.study_uid, series.series_uid, job.bundle.name, refused=by_its_voxels
                )
                (refused if by_its_voxels else failed).append(failure)
            else:
                results.append(outcome)
    patient, day = ("", None) if isinstance(planned, MedsegError) else _patient(planned, task.secret)
    return Finished(
        name=item.name,
        source=shown(item.nifti) if item.nifti else item.study_uid,
        stamp=item.stamp(),
        settings=settings,
        results=tuple(results),
        failures=(*failed, *(() if results else refused)),
        passed_over=tuple(refused) if results else (),
        patient=patient,
        day=day,
        seconds=round(time.perf_counter() - begin, 3),
        lasting=all(one.exit_code in (exits.USAGE, exits.INPUT, exits.BUNDLE) for one in failed),
    )


def _outcome(task: Task, item: CohortItem, job: Job, cancelled: Cancelled) -> dict[str, Any] | MedsegError:
    """The record of a result, with its folder within the output, or what went wrong. Raises Interrupted."""
    what = f"series {job.stack.series.series_uid}" if job.stack.series.series_uid else called(item)
    formats = task.formats or frozenset({Format.NIFTI} if item.nifti else {Format.SEG, Format.SR})
    lost = [one.sentence for one in job.stack.left_out if one.lost]
    try:
        if task.strict and lost:
            raise Incomplete(what, lost)
        with boundary(what):
            made = run(
                job,
                task.out / item.name,
                formats,
                settings=task.settings,
                overwrite=task.overwrite,
                cancelled=cancelled,
            )
    except Interrupted:
        raise
    except (MedsegError, MemoryError, OSError) as error:
        return as_ours(what, error)
    return dict(made.record) | {"folder": made.folder.relative_to(task.out).as_posix()}


def called(item: CohortItem) -> str:
    """For messages."""
    return f"study {item.study_uid}" if item.study_uid else shown(item.nifti or PurePath(item.name))


def _is_failure(error: MedsegError, *, strict: bool) -> bool:
    """Whether a refusal is one: an error of ours, and where nothing may be missing what may have been a volume."""
    lost = isinstance(error, Incomplete) or (isinstance(error, GeometryRefused) and left_out.is_volume(error.reason))
    return isinstance(error, Unforeseen) or (strict and lost)


def _refusal(item: CohortItem, refused: Refused, *, strict: bool) -> Failure:
    study_uid = refused.study_uid or (refused.series.study_uid if refused.series else item.study_uid)
    series_uid = refused.series.series_uid if refused.series else ""
    is_refused = not _is_failure(refused.error, strict=strict)
    return failure_of(refused.error, study_uid, series_uid, refused.bundle, refused=is_refused)


def failure_of(
    error: MedsegError, study_uid: str, series_uid: str, bundle: str | None, *, refused: bool = False
) -> Failure:
    """An error as a row. refused: by what the study or series is."""
    kind = "refused" if refused else "failed"
    return Failure(study_uid, series_uid, bundle or "", kind, error.code, str(error), exits.exit_code(error))


def _patient(planned: Sequence[StudyPlan], secret: bytes) -> tuple[str, int | None]:
    """Whose study it is and of which day, so that studies of one patient can be put in their order and nobody is named.

    The mark is of this output alone; days are moved by as much for all studies of a patient (PS3.15 E.3.6).
    """
    series = next((job.stack.series for one in planned for job in one.jobs), None)
    if series is None or not series.instances:
        return "", None
    view = look(series.instances[0].header)
    patient, date = view.text("PatientID"), view.text("StudyDate")
    if not patient:
        return "", None
    mark = hmac.digest(secret, patient.encode("utf-8", "backslashreplace"), "sha256")
    with suppress(ValueError):
        return mark.hex()[:12], datetime.strptime(date, "%Y%m%d").toordinal() + int.from_bytes(mark[:2])
    return mark.hex()[:12], None
