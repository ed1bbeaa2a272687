"""Jobs of results without who they are of: which are refused, and what their writers are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pydicom import Dataset

from medseg.deidentify.burned_in import BurnedIn
from medseg.deidentify.copies import write_copy
from medseg.deidentify.dataset import deidentified
from medseg.deidentify.pseudonyms import Person
from medseg.deidentify.request import Deidentify
from medseg.deidentify.source import (
    burned_in_of,
    instances_of,
    person_of,
    series_without_identity,
    without_identity,
    words_about,
)
from medseg.deidentify.words import Words, unnamed
from medseg.dicom.headers import look
from medseg.dicom.series import Stack
from medseg.inference.labels import SegmentationResult
from medseg.job.follow import Segmented
from medseg.job.plan import Job, Refused
from medseg.names import named_uid
from medseg.results.provenance import Provenance

SOURCES = "source"  # the folder of copies in a result's
_NO_DATE = datetime(1900, 1, 1)


def refuse_burned_in(job: Job, request: Deidentify) -> None:
    """Raises BurnedIn where pixels may show whose they are, and nobody has said that they do not."""
    why = None if request.allow_burned_in else burned_in_of(job.stack)
    if why is not None:
        raise BurnedIn(job.stack.series.series_uid, why)


def unnamed_refusal(refused: Refused, request: Deidentify | None) -> Refused:
    """A refusal as it may be told."""
    if request is None:
        return refused
    names = request.pseudonyms
    words = Words(names) if refused.series is None else words_about(refused.series, names)
    return replace(
        refused,
        series=refused.series and series_without_identity(refused.series, names),
        error=unnamed(refused.error, names),
        left_out=tuple(replace(one, why=words.told(one.why)) for one in refused.left_out),
        study_uid=refused.study_uid and names.uid(refused.study_uid),
    )


@dataclass(frozen=True, eq=False)
class Unnamed:
    """A job and what it was segmented to, for those who write results. person: None for NIfTI, which names nobody."""

    job: Job
    found: Segmented
    person: Person | None

    @classmethod
    def of(cls, job: Job, found: Segmented, request: Deidentify) -> Unnamed:
        names = request.pseudonyms
        stack = without_identity(job.stack, names)
        found.labels.stack = stack  # which was that of the job
        result = _told(found.result, stack, Words(names) if job.nifti else words_about(job.stack.series, names))
        return cls(replace(job, stack=stack), Segmented(result, found.labels), person_of(job.stack, names))

    def provenance(self, made: Provenance) -> Provenance:
        """Made at the time of the study, since the true one would tell by how much its dates were moved."""
        if self.person is None:
            return replace(made, made_at=_NO_DATE)
        return replace(made, made_at=_day_of(self.job.stack), finish=_Finish(self.person, made.bundle_digest))


def copy_sources(stack: Stack, request: Deidentify, folder: Path) -> int:
    """Write copies of the images of a stack as it was into `folder / SOURCES`, where they are asked for; how many."""
    person = person_of(stack, request.pseudonyms) if request.copy_sources else None
    if person is None:
        return 0
    (folder / SOURCES).mkdir()
    instances = instances_of(stack)
    for instance in instances:
        write_copy(instance, person, folder / SOURCES)
    return len(instances)


@dataclass(frozen=True)
class _Finish:
    """What is left to be done with an object of ours: its UIDs and dates are those of a source without identity."""

    person: Person
    bundle_digest: str

    def __call__(self, dataset: Dataset) -> None:
        changed = deidentified(dataset, Person(self.person.pseudonym, 0, self._uid), ours=True)
        for tag in list(dataset.keys()):
            del dataset[tag]
        for tag in changed.keys():  # noqa: SIM118 - iterating converts values
            dataset[tag] = changed.get_item(tag)

    def _uid(self, uid: str) -> str:
        """That of the bundle as a device is everybody's."""
        return self.person.uid(uid) if uid == named_uid(f"bundle {self.bundle_digest}") else uid


def _told(result: SegmentationResult, stack: Stack, words: Words) -> SegmentationResult:
    reason = result.streamed_reason
    return replace(
        result,
        stack=stack,
        flags=tuple(replace(flag, message=words.told(flag.message)) for flag in result.flags),
        warnings=words.all_told(result.warnings),
        streamed_reason=reason and words.told(reason),
    )


def _day_of(stack: Stack) -> datetime:
    """Date and time of a study, of a stack whose dates were moved."""
    instance = stack.slices[0].instance
    if instance is not None:
        view = look(instance.header)
        for form in ("%Y%m%d%H%M%S", "%Y%m%d"):
            text = view.text("StudyDate") + (view.text("StudyTime")[:6] if "%H" in form else "")
            try:
                return datetime.strptime(text, form)
            except ValueError:
                continue
    return _NO_DATE
