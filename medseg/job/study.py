"""One study, or one NIfTI volume: planned for each choice of bundles, its jobs done one after the other.

`medseg infer` and the workers of a cohort are shells around this: they read what is there, say where results go, and
tell what comes. Whatever goes wrong with a job is that job's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from medseg.bundle.bundle import Bundle
from medseg.deidentify.burned_in import BurnedIn
from medseg.deidentify.request import Deidentify
from medseg.dicom import left_out
from medseg.dicom.series import Series
from medseg.errors import DoesNotFit, GeometryRefused, Incomplete, Interrupted, MedsegError, Unforeseen, boundary
from medseg.inference.settings import Settings
from medseg.job.channels import Named
from medseg.job.deidentified import unnamed_refusal
from medseg.job.exits import as_ours
from medseg.job.folder import USUAL, Format
from medseg.job.plan import Job, Refused, StudyPlan, plan, plan_nifti
from medseg.job.prefer import with_preferred
from medseg.job.run import Outcome, run
from medseg.job.together import refused, together
from medseg.progress import Cancelled, Report, never, silent
from medseg.texts import shown

Watch: TypeAlias = Callable[[Job], AbstractContextManager[Report]]
"""Told of a job that begins; what is reported of it goes into what this gives."""


@dataclass(frozen=True, eq=False)
class StudyTask:
    """What is asked of a study.

    choices: bundles to choose from, once for each result of a volume. explicit: they were named one by one, by a
    person. overwrite: replace other results. strict: fail where something is missing of a result. thumbnails: a small
    picture in each result's folder. deidentify: leave out who results are of, in what is told, too.
    """

    choices: Sequence[Sequence[Bundle]]
    settings: Settings
    explicit: bool = False
    overwrite: bool = False
    strict: bool = False
    assume_registered: bool = False
    thumbnails: bool = False
    deidentify: Deidentify | None = None


@dataclass(frozen=True, eq=False)
class WithoutResult:
    """A series, or what else there is of a study, that gave no result. failed: though it should have; else it is
    refused, by what it is."""

    refused: Refused
    failed: bool


def plan_study(
    task: StudyTask, series: Sequence[Series], channels: Named | None = None, only: frozenset[str] = frozenset()
) -> list[StudyPlan]:
    """What is to be done with the series of one study, for each choice of bundles.

    channels: named for a bundle of several series. only: the series that are asked for, where it is not all of them.
    """
    planned = (
        plan(
            series,
            bundles,
            explicit=task.explicit,
            assume_frame_of_reference=task.settings.assume_frame_of_reference,
            channels=channels,
            assume_registered=task.assume_registered,
        )
        for bundles in task.choices
    )
    return [_only(one, only) if only else with_preferred(one) for one in planned]


def plan_volume(task: StudyTask, path: Path, channels: Mapping[str, Path]) -> list[StudyPlan]:
    """The same of a NIfTI volume. channels: see `plan_nifti`, which says what this raises."""
    return [plan_nifti(path, bundles, explicit=task.explicit, channels=channels) for bundles in task.choices]


def lost_of(series: Sequence[Series], plans: Sequence[StudyPlan]) -> list[str]:
    """What was lost of series that no job of these plans answers for."""
    answered = {left_out.key(one) for planned in plans for job in planned.jobs for one in job.series}
    unanswered = (one for one in series if left_out.key(one) not in answered)
    return sorted({file.sentence for one in unanswered for file in one.left_out if file.lost})


def do_study(
    task: StudyTask,
    plans: Sequence[StudyPlan],
    folder: Path,
    formats: frozenset[Format] | None = None,
    *,
    watch: Watch = lambda _: nullcontext(silent),
    cancelled: Cancelled = never,
) -> Iterator[Outcome | WithoutResult]:
    """Do all that is planned: what is refused first, then each job, with a folder of its own in `folder`.

    formats: None for what is usual (SEG and SR, NIfTI for NIfTI). Raises Interrupted.
    """
    for one in refused(plans):
        failed = _is_failure(one.error, strict=task.strict)
        yield WithoutResult(unnamed_refusal(one, task.deidentify), failed)
    for job in together(plans):
        yield _done(task, job, folder, formats, watch, cancelled)


def _done(
    task: StudyTask, job: Job, folder: Path, formats: frozenset[Format] | None, watch: Watch, cancelled: Cancelled
) -> Outcome | WithoutResult:
    series = job.stack.series
    file = shown(job.nifti or folder) if task.deidentify is None else "a volume"
    what = f"series {series.series_uid}" if series.series_uid else file
    lost = [one.sentence for one in job.stack.left_out if one.lost]
    try:
        if task.strict and lost:
            raise Incomplete(what, lost)
        with boundary(what), watch(job) as report:
            return run(
                job,
                folder,
                formats or (USUAL if job.nifti is None else {Format.NIFTI}),
                settings=task.settings,
                overwrite=task.overwrite,
                thumbnail=task.thumbnails,
                deidentify=task.deidentify,
                on_progress=report,
                cancelled=cancelled,
            )
    except Interrupted:
        raise
    except (MedsegError, MemoryError, OSError) as error:
        failed = not isinstance(error, DoesNotFit | BurnedIn)  # which its voxels show, and may
        one = Refused(series, job.bundle.name, as_ours(what, error), job.stack.left_out)
        return WithoutResult(unnamed_refusal(one, task.deidentify), failed)


def _is_failure(error: MedsegError, *, strict: bool) -> bool:
    """Whether a refusal is one: an error of ours, and where nothing may be missing what may have been a volume."""
    lost = isinstance(error, Incomplete) or (isinstance(error, GeometryRefused) and left_out.is_volume(error.reason))
    return isinstance(error, Unforeseen) or (strict and lost)


def _only(planned: StudyPlan, series_uids: frozenset[str]) -> StudyPlan:
    """The part of a plan that is about these series; folders keep the names they have in the whole."""
    return replace(
        planned,
        jobs=tuple(job for job in planned.jobs if job.stack.series.series_uid in series_uids),
        refused=tuple(one for one in planned.refused if one.series and one.series.series_uid in series_uids),
    )
