"""What is to be done with a study: series -> jobs (a stack and the bundle that fits it), and refusals with reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import choose, fits
from medseg.dicom import left_out as left
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import LeftOut, Series, Stack
from medseg.errors import DoesNotFit, GeometryRefused, MedsegError, UsageError, boundary
from medseg.inference.arriving.shared import Share
from medseg.job.channel_files import of_files
from medseg.job.channels import Named, stack_of_channels, study_of
from medseg.names import file_name
from medseg.results.record import refusal_record


@dataclass(frozen=True, eq=False)
class Job:
    """A stack and the bundle that is to segment it.

    folder: name of its result folder. nifti: the file it came from. share: in planes that other bundles look at, too.
    """

    stack: Stack
    bundle: Bundle
    folder: str
    nifti: Path | None = None
    share: Share | None = None

    @property
    def series(self) -> tuple[Series, ...]:
        """All that are looked at."""
        others = (channel.stack.series for channel in self.stack.channels if channel.stack is not None)
        return (self.stack.series, *others)


@dataclass(frozen=True, eq=False)
class Refused:
    """A series, a part of one, or a study for a bundle of several series, that is not segmented; the error says why.

    series: None where it is the study. left_out: what else is not segmented.
    """

    series: Series | None
    bundle: str | None
    error: MedsegError
    left_out: tuple[LeftOut, ...] = ()
    study_uid: str | None = None

    def record(self) -> dict[str, Any]:
        """As a line of JSON (docs/json.md)."""
        if self.series is None:
            return refusal_record(self.study_uid, None, self.bundle, self.error, self.left_out)
        return refusal_record(self.series.study_uid, self.series.series_uid, self.bundle, self.error, self.left_out)


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """What is to be done with a study."""

    jobs: tuple[Job, ...]
    refused: tuple[Refused, ...]


def plan(
    series: Iterable[Series],
    bundles: Sequence[Bundle],
    *,
    explicit: bool = False,
    assume_frame_of_reference: bool = False,
    channels: Named | None = None,
    assume_registered: bool = False,
) -> StudyPlan:
    """Sort out the geometry of each series of one study, and match what it holds with bundles.

    explicit: the one bundle was named by a person: see `match`. assume_frame_of_reference: derive one where a series
    has none. channels, assume_registered: for a bundle of several series, see `medseg.job.channels`; it is taken where
    it is named, or the only one.
    Jobs and refusals are in order of series number; what is refused raises nothing, its error is in the plan.

    A stack carries what was left out of its series, and findings of what may be a loss.
    """
    ordered = sorted(series, key=lambda s: (s.number if s.number is not None else -1, s.series_uid))
    if (explicit or len(bundles) == 1) and bundles[0].channels is not None:
        return _plan_channels(ordered, bundles[0], channels, assume_registered, assume_frame_of_reference)
    jobs: list[Job] = []
    refused: list[Refused] = []
    for part in ordered:
        try:
            with boundary(f"series {part.series_uid}"):
                planned = _plan_series(part, bundles, explicit, assume_frame_of_reference)
        except MedsegError as error:
            refused.append(Refused(part, None, error, part.left_out))
        else:
            for job in planned.jobs:
                jobs.append(replace(job, folder=_folder(job.stack, job.bundle, {made.folder for made in jobs})))
            refused += planned.refused
    return StudyPlan(tuple(jobs), tuple(refused))


def _plan_channels(
    series: Sequence[Series], bundle: Bundle, given: Named | None, assume_registered: bool, assume_frame: bool
) -> StudyPlan:
    """The one job of a study whose series are channels of a bundle."""
    study_uid = series[0].study_uid if series else ""
    try:
        with boundary(f"study {study_uid}"):
            study = study_of(series, assume_frame_of_reference=assume_frame)
            stack = stack_of_channels(study, bundle, given, assume_registered=assume_registered)
    except UsageError:
        raise
    except MedsegError as error:
        return StudyPlan((), (Refused(None, bundle.name, error, study_uid=study_uid),))
    return StudyPlan((Job(stack, bundle, _folder(stack, bundle, ())),), ())


def _plan_series(series: Series, bundles: Sequence[Bundle], explicit: bool, assume_frame: bool) -> StudyPlan:
    """The jobs of one series: each of its stacks knows what of the series is not in any of them."""
    verdict = classify(series, assume_frame_of_reference=assume_frame)
    matched = match(verdict.stacks, bundles, explicit=explicit)
    unfit = tuple(
        LeftOut(refused.error.code, 1, "volumes", f"of the same series, {refused.error}") for refused in matched.refused
    )
    whole = (*left.missing(series), *series.left_out)
    around = (*left.of_refusals(verdict.refusals), *(unfit if matched.jobs else ()), *whole)
    jobs = (replace(job, stack=left.told(job.stack, around)) for job in matched.jobs)
    refused = (
        Refused(series, None, GeometryRefused(series.series_uid, refusal.reason, refusal.detail), whole)
        for refusal in verdict.refusals
    )
    return StudyPlan(tuple(jobs), (*refused, *(replace(one, left_out=whole) for one in matched.refused)))


def plan_nifti(
    path: Path | str, bundles: Sequence[Bundle], *, explicit: bool = False, channels: Mapping[str, Path] | None = None
) -> StudyPlan:
    """Match a NIfTI volume (.nii, .nii.gz) with a bundle. explicit: see `match`.

    channels: files of a bundle's channels by their names; those not named lie beside the first, or in it.
    Raises what `read_nifti` and `with_channels` raise, and for a bundle of several channels what `of_files` does.
    """
    path = Path(path)
    if (explicit or len(bundles) == 1) and bundles[0].channels is not None:
        bundle = bundles[0]
        stack, file = of_files(path, bundle, channels or {})
        return StudyPlan((Job(stack, bundle, _folder(stack, bundle, ()), nifti=file),), ())
    matched = match([read_nifti(path)], bundles, explicit=explicit)
    return replace(matched, jobs=tuple(replace(job, nifti=path) for job in matched.jobs))


def match(
    stacks: Iterable[Stack], bundles: Sequence[Bundle], *, explicit: bool = False, whole: bool = True
) -> StudyPlan:
    """The bundle for each stack. whole: see `medseg.bundle.catalog.fits`.

    explicit: the one bundle was named by the user, so its hints about descriptions do not bind; what it needs to
    be right (modality, field of view) does. Bundles of several channels are for studies, and not among those chosen.
    """
    alone = [bundle for bundle in bundles if bundle.channels is None]
    jobs: list[Job] = []
    refused: list[Refused] = []
    for stack in stacks:
        try:
            bundle = _named(stack, bundles[0], whole=whole) if explicit else choose(stack, alone, whole=whole)
        except MedsegError as error:
            refused.append(Refused(stack.series, bundles[0].name if explicit else None, error))
        else:
            jobs.append(Job(stack, bundle, _folder(stack, bundle, {job.folder for job in jobs})))
    return StudyPlan(tuple(jobs), tuple(refused))


def _named(stack: Stack, bundle: Bundle, *, whole: bool) -> Bundle:
    reasons = fits(stack, bundle, hints=False, whole=whole)
    if reasons:
        raise DoesNotFit(stack.series.series_uid, bundle.name, reasons)
    return bundle


def _folder(stack: Stack, bundle: Bundle, taken: Iterable[str]) -> str:
    """SERIESNUMBER_BUNDLE, with -2, -3, ... where a study repeats a number or a series splits into stacks."""
    used = {name.casefold() for name in taken}
    number = file_name(str(stack.series.number or 0))
    bundle_name = file_name(bundle.name)
    names = (f"{number}{suffix}_{bundle_name}" for suffix in ("", *(f"-{n}" for n in range(2, len(used) + 2))))
    return next(name for name in names if name.casefold() not in used)
