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
from typing import Any, Final

from medseg.bundle.catalog import find_bundle
from medseg.cohort.finished import Failure, Finished
from medseg.cohort.items import CohortItem
from medseg.deidentify.request import Deidentify
from medseg.deidentify.words import unnamed
from medseg.dicom import left_out
from medseg.dicom.headers import look
from medseg.dicom.series import Series, Stack
from medseg.dicom.sources import read_candidates, read_series
from medseg.errors import (
    EmptyInput,
    Incomplete,
    InputError,
    Interrupted,
    MedsegError,
    UnreadableInstance,
    boundary,
)
from medseg.inference.settings import Settings
from medseg.job import exits
from medseg.job.channels import volumes_of
from medseg.job.exits import as_ours
from medseg.job.folder import USUAL, Format
from medseg.job.plan import Refused, StudyPlan
from medseg.job.run import Outcome
from medseg.job.study import StudyTask, WithoutResult, do_study, lost_of, plan_study, plan_volume
from medseg.progress import Cancelled, never
from medseg.texts import shown

_find = cache(find_bundle)

#: The folder of results where the output is a BIDS dataset, which has no other place for them.
RESULTS: Final = "results"
#: Exit codes of failures that the same run would meet again.
LASTING: Final = frozenset({exits.USAGE, exits.INPUT, exits.BUNDLE})


@dataclass(frozen=True)
class Task:
    """What is asked of every item.

    choices: folders of bundles to choose from, once for each result of a volume. explicit: they were named one by one,
    by a person. formats: None for what is usual (SEG and SR, NIfTI for NIfTI). secret: of the output, see `_patient`.
    bids: a BIDS dataset is made of the results, too.
    deidentify: leave out who results are of, in all that is kept and told of them.
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
    deidentify: Deidentify | None = None
    secret: bytes = b""
    bids: bool = False

    def folder_of(self, item: CohortItem) -> Path:
        """The folder of an item's results."""
        return self.out / RESULTS / item.name if self.bids else self.out / item.name

    def formats_for(self, item: CohortItem) -> frozenset[Format]:
        """What a result of an item is written as."""
        usual = frozenset({Format.NIFTI}) if item.nifti else USUAL
        return (self.formats or usual) | ({Format.NIFTI} if self.bids else frozenset())

    def of(self, item: CohortItem) -> StudyTask:
        """What is asked of an item. Raises NoSuchBundle, InvalidBundle."""
        choices = [tuple(_find(name, trust=self.trust) for name in names) for names in self.choices]
        explicit = self.explicit
        if item.bundle is not None:
            choices, explicit = [(_find(item.bundle, trust=False),)], True
        return StudyTask(
            choices,
            self.settings,
            explicit,
            self.overwrite,
            self.strict,
            self.assume_registered,
            thumbnails=True,
            deidentify=self.deidentify,
        )

    def stamp(self, item: CohortItem) -> str:
        """That of an item, which is made of names of files."""
        return item.stamp() if self.deidentify is None else self.deidentify.pseudonyms.mark(item.stamp())

    def uid(self, item: CohortItem) -> str:
        """Of an item's study, as it may be told."""
        return item.study_uid if self.deidentify is None else self.deidentify.pseudonyms.uid(item.study_uid)

    def source(self, item: CohortItem) -> str:
        """What an item is of, as it may be told."""
        return shown(item.nifti) if item.nifti and self.deidentify is None else self.uid(item) or item.name

    def told(self, error: MedsegError) -> MedsegError:
        """An error as it may be told."""
        return error if self.deidentify is None else unnamed(error, self.deidentify.pseudonyms)


def plan_item(task: Task, item: CohortItem, cancelled: Cancelled = never) -> list[StudyPlan]:
    """What is to be done with an item, for each choice of bundles. Raises MedsegError where nothing of it can be."""
    asked = task.of(item)
    if item.nifti is not None:
        files = {name: (item.folder or Path()) / what for name, what in item.channels}
        return plan_volume(asked, item.nifti, files)
    candidates = item.candidates()
    found = read_candidates(candidates, item.absent, cancelled=cancelled)
    if not found.instances:
        if found.skipped:
            raise UnreadableInstance(found.skipped[0].name, found.skipped[0].why)
        raise EmptyInput(Path(item.name), len(candidates))
    series = [one for one in left_out.series_of(found) if one.study_uid == item.study_uid]
    plans = plan_study(asked, series, _channels(task, item, series))
    if task.strict and (lost := lost_of(series, plans)):
        refused = Refused(None, None, Incomplete(called(item), lost), study_uid=item.study_uid)
        plans.append(StudyPlan((), (refused,)))
    return plans


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
        failed.append(failure_of(task.told(planned), task.uid(item), "", item.bundle))
    else:
        folder, formats = task.folder_of(item), task.formats_for(item)
        for made in do_study(task.of(item), planned, folder, formats, cancelled=cancelled):
            if isinstance(made, Outcome):
                results.append(dict(made.record) | {"folder": made.folder.relative_to(task.out).as_posix()})
            else:
                (failed if made.failed else refused).append(_failure(task.uid(item), made))
    patient, day = ("", None) if isinstance(planned, MedsegError) else _patient(planned, task)
    return Finished(
        name=item.name,
        source=task.source(item),
        stamp=task.stamp(item),
        settings=settings,
        results=tuple(results),
        failures=(*failed, *(() if results else refused)),
        passed_over=tuple(refused) if results else (),
        patient=patient,
        day=day,
        seconds=round(time.perf_counter() - begin, 3),
        lasting=all(one.exit_code in LASTING for one in failed),
    )


def called(item: CohortItem) -> str:
    """For messages."""
    return f"study {item.study_uid}" if item.study_uid else shown(item.nifti or PurePath(item.name))


def _failure(study_uid: str, made: WithoutResult) -> Failure:
    one = made.refused
    study_uid = one.study_uid or (one.series.study_uid if one.series else study_uid)
    series_uid = one.series.series_uid if one.series else ""
    return failure_of(one.error, study_uid, series_uid, one.bundle, refused=not made.failed)


def failure_of(
    error: MedsegError, study_uid: str, series_uid: str, bundle: str | None, *, refused: bool = False
) -> Failure:
    """An error as a row. refused: by what the study or series is."""
    kind = "refused" if refused else "failed"
    return Failure(study_uid, series_uid, bundle or "", kind, error.code, str(error), exits.exit_code(error))


def _patient(planned: Sequence[StudyPlan], task: Task) -> tuple[str, int | None]:
    """Whose study it is and of which day, so that studies of one patient can be put in their order and nobody is named.

    The mark is of this output alone; days are moved by as much for all studies of a patient (PS3.15 E.3.6). Without
    identity both are those of the results themselves.
    """
    series = next((job.stack.series for one in planned for job in one.jobs), None)
    if series is None or not series.instances:
        return "", None
    header = series.instances[0].header
    patient, date = look(header).text("PatientID"), look(header).text("StudyDate")
    if task.deidentify is not None:
        person = task.deidentify.pseudonyms.person(header)
        return person.pseudonym, _ordinal(person.date(date))
    if not patient:
        return "", None
    mark = hmac.digest(task.secret, patient.encode("utf-8", "backslashreplace"), "sha256")
    day = _ordinal(date)
    return mark.hex()[:12], None if day is None else day + int.from_bytes(mark[:2])


def _ordinal(date: str) -> int | None:
    with suppress(ValueError):
        return datetime.strptime(date, "%Y%m%d").toordinal()
    return None
