"""One study, from its series to its results: what the command line, a cohort and the gateway's worker call.

series --plan----> jobs (a stack and the bundle that fits it), and refusals with their reasons
job    --run-----> a folder of verified results: all of them, or none
source --follow--> the same jobs of a series that is still arriving, and what its slices were segmented to meanwhile
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import across, choose, fits
from medseg.dicom import left_out as left
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Instance, Slice
from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import LeftOut, Level, Series, SliceSource, Stack
from medseg.dicom.sources import instance_digest
from medseg.errors import (
    DoesNotFit,
    GeometryRefused,
    InputError,
    MedsegError,
    NoStudy,
    OutOfMemory,
    OutputExists,
    OutputNotWritable,
    Unforeseen,
)
from medseg.inference.device import choose_device, choose_precision
from medseg.inference.labels import Flag, SegmentationResult
from medseg.inference.segment import Settings, StackSource, segment
from medseg.inference.spool import LabelSpool
from medseg.names import file_name
from medseg.progress import Cancelled, Report, Stage, check, never, silent
from medseg.results.identity import ResultKey, stack_key
from medseg.results.modules import Predecessor, Provenance
from medseg.results.nifti import write_nifti
from medseg.results.picture import write_picture
from medseg.results.record import refusal_record, result_record, write_record
from medseg.results.report import write_report
from medseg.results.seg import SegWriter
from medseg.results.verify import verify_seg

RECORD = "result.json"
_AGAIN = 1.25  # more slices than at the last look at the first of them
_PARALLEL = 0.9999


class Format(StrEnum):
    """What a result can be written as."""

    SEG = "seg"
    SR = "sr"
    NIFTI = "nifti"
    PNG = "png"


FILES = {Format.SEG: "seg.dcm", Format.SR: "sr.dcm", Format.NIFTI: "labels.nii.gz", Format.PNG: "overlay.png"}
DICOM = frozenset({Format.SEG, Format.SR})


@dataclass(frozen=True, eq=False)
class Job:
    """A stack and the bundle that is to segment it. folder: name of its result folder. nifti: the file it came from."""

    stack: Stack
    bundle: Bundle
    folder: str
    nifti: Path | None = None


@dataclass(frozen=True, eq=False)
class Refused:
    """A series, or a part of one, that is not segmented; the error says why. left_out: what else is not."""

    series: Series
    bundle: str | None
    error: MedsegError
    left_out: tuple[LeftOut, ...] = ()

    def record(self) -> dict[str, Any]:
        """As a line of JSON (docs/json.md)."""
        return refusal_record(self.series.study_uid, self.series.series_uid, self.bundle, self.error, self.left_out)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done with a study."""

    jobs: tuple[Job, ...]
    refused: tuple[Refused, ...]


def plan(
    series: Iterable[Series],
    bundles: Sequence[Bundle],
    *,
    explicit: bool = False,
    assume_frame_of_reference: bool = False,
) -> Plan:
    """Sort out the geometry of each series of one study, and match what it holds with bundles.

    A stack carries what was left out of its series, and findings of what may be a loss.
    """
    jobs: list[Job] = []
    refused: list[Refused] = []
    for one in sorted(series, key=lambda s: (s.number if s.number is not None else -1, s.series_uid)):
        try:
            planned = _plan_series(one, bundles, explicit, assume_frame_of_reference)
        except MedsegError as error:
            refused.append(Refused(one, None, error, one.left_out))
        except (MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - what nobody thought of is this series' error, and not the others'
            refused.append(Refused(one, None, Unforeseen(f"series {one.series_uid}", error), one.left_out))
        else:
            for job in planned.jobs:
                jobs.append(replace(job, folder=_folder(job.stack, job.bundle, {made.folder for made in jobs})))
            refused += planned.refused
    return Plan(tuple(jobs), tuple(refused))


def _plan_series(series: Series, bundles: Sequence[Bundle], explicit: bool, assume_frame: bool) -> Plan:
    """The jobs of one series: each of its stacks knows what of the series is not in any of them."""
    verdict = classify(series, assume_frame_of_reference=assume_frame)
    matched = match(verdict.stacks, bundles, explicit=explicit)
    unfit = tuple(LeftOut(one.error.code, 1, "volumes", f"of the same series, {one.error}") for one in matched.refused)
    whole = (*left.missing(series), *series.left_out)
    around = (*left.of_refusals(verdict.refusals), *(unfit if matched.jobs else ()), *whole)
    jobs = (replace(job, stack=left.told(job.stack, around)) for job in matched.jobs)
    refused = (
        Refused(series, None, GeometryRefused(series.series_uid, refusal.reason, refusal.detail), whole)
        for refusal in verdict.refusals
    )
    return Plan(tuple(jobs), (*refused, *(replace(one, left_out=whole) for one in matched.refused)))


def plan_nifti(path: Path, bundles: Sequence[Bundle], *, explicit: bool = False) -> Plan:
    """Match a NIfTI volume with a bundle."""
    matched = match([read_nifti(path)], bundles, explicit=explicit)
    return replace(matched, jobs=tuple(replace(job, nifti=path) for job in matched.jobs))


def match(stacks: Iterable[Stack], bundles: Sequence[Bundle], *, explicit: bool = False, whole: bool = True) -> Plan:
    """The bundle for each stack. whole: see `medseg.bundle.catalog.fits`.

    explicit: the one bundle was named by the user, so its hints about descriptions do not bind; what it needs to
    be right (modality, field of view) does.
    """
    jobs: list[Job] = []
    refused: list[Refused] = []
    for stack in stacks:
        try:
            bundle = _named(stack, bundles[0], whole=whole) if explicit else choose(stack, bundles, whole=whole)
        except MedsegError as error:
            refused.append(Refused(stack.series, bundles[0].name if explicit else None, error))
        else:
            jobs.append(Job(stack, bundle, _folder(stack, bundle, {job.folder for job in jobs})))
    return Plan(tuple(jobs), tuple(refused))


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


@dataclass(frozen=True, eq=False)
class Found:
    """What a stack was segmented to."""

    result: SegmentationResult
    labels: LabelSpool


Digest: TypeAlias = Callable[[Instance], str]
"""`medseg.dicom.sources.instance_digest`, or what it said before."""


@dataclass(frozen=True, eq=False)
class Followed:
    """A series that has come to its end. found: for its only job, where what was begun on its first slices holds."""

    plan: Plan
    found: Found | None
    digest: Digest


def follow(
    source: SliceSource,
    bundles: Sequence[Bundle],
    unfit: Callable[[MedsegError], None] = lambda _: None,
    *,
    explicit: bool = False,
    settings: Settings,
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> Followed:
    """Segment a series while it arrives, with the bundle that its first slices call for.

    What is to be done is planned when all have come, by `plan`; where that is something else, what was found is dropped
    and the jobs are still to be run. No window is computed once it is known that the bundle does not fit: from the
    first slices, from how far they reach, or from the plan. unfit: called with the reason where the first slices call
    for no bundle, so that the others need not be waited for; it may raise. Raises what `plan` and `segment` raise, but
    for refusals, which are in the plan.
    """
    assume = settings.assume_frame_of_reference
    planning = partial(plan, bundles=bundles, explicit=explicit, assume_frame_of_reference=assume)
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
        begun = _Begun(source, pool, planning, cancelled)
        try:
            bundle = begun.bundle(bundles, explicit=explicit, assume=assume)
            labels, result = LabelSpool(), None
            if bundle is not None:
                with suppress(InputError):  # what is wrong with the series as a whole, the plan says
                    result = segment(
                        begun, bundle, labels, settings=settings, on_progress=on_progress, cancelled=cancelled
                    )
            elif begun.unfit is not None:
                unfit(begun.unfit)
            planned = begun.plan()
            found = None
            if result is not None and bundle is not None and _is_only_job(planned, result.stack, bundle):
                found = Found(_told_of(result, planned.jobs[0].stack), labels)
            return Followed(planned, found, begun.digest)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Void(InputError):
    """What was begun on the first slices is not what is to be done with them all."""

    code = "void"


class _Begun:
    """A source whose first slices were looked at, and whose instances are digested as they come.

    planning: what is to be done with the series, once all of it has come. ended: it has. unfit: why the first slices of
    an arriving series call for no bundle.
    Iterating raises _Void as soon as the bundle that was begun with is known not to be the one.
    """

    def __init__(
        self,
        source: SliceSource,
        pool: ThreadPoolExecutor,
        planning: Callable[[Iterable[Series]], Plan],
        cancelled: Cancelled,
    ) -> None:
        self._source, self._pool, self._planning, self._cancelled = source, pool, planning, cancelled
        self._rest = iter(source)
        self._first: list[Slice] = []
        self._digests: dict[int, tuple[Instance, Future[str]]] = {}
        self._bundle: Bundle | None = None
        self._reach: _Reach | None = None
        self._plan: Plan | None = None
        self.ended = False
        self.unfit: MedsegError | None = None

    @property
    def series(self) -> Series:
        return self._source.series

    @property
    def expected(self) -> int | None:
        return self._source.expected

    def __iter__(self) -> Iterator[Slice | None]:
        while self._first:
            yield self._first.pop(0)
        while not self.ended:
            one = self._next()
            if one is not None and self._reach is not None and self._reach.exceeded_by(one):
                raise _Void("slices reach farther than the bundle was made for")
            if not self.ended:
                yield one
        if self._bundle is not None and [job.bundle for job in self.plan().jobs] != [self._bundle]:
            raise _Void("all slices together call for something else than the first of them")

    def plan(self) -> Plan:
        """What is to be done, by all slices: waits for them."""
        while not self.ended:
            check(self._cancelled)
            self._next()
        if self._plan is None:
            self._plan = self._planning([self.series])
        return self._plan

    def bundle(self, bundles: Sequence[Bundle], *, explicit: bool, assume: bool) -> Bundle | None:
        """The bundle for what the slices that are here show; None where they show none. Of an arriving series, what
        only all can show is left out."""
        enough = 3.0
        while not self.ended:
            self._take_what_is_here()
            if self.ended or len(self._first) < enough:
                continue
            enough = _AGAIN * len(self._first)
            verdict = classify(self.series, self._first, assume_frame_of_reference=assume)
            if verdict.stacks:
                stack = verdict.stacks[0]
                matched = match([stack], bundles, explicit=explicit, whole=False)
                for job in matched.jobs:
                    self._begin_with(job.bundle, stack)
                for refused in matched.refused:
                    self.unfit = refused.error
                return self._bundle
        jobs = self.plan().jobs
        if len(jobs) == 1:
            self._begin_with(jobs[0].bundle, jobs[0].stack)
        return self._bundle

    def _begin_with(self, bundle: Bundle, stack: Stack) -> None:
        self._bundle, self._reach = bundle, _Reach.of(stack, bundle)

    def _take_what_is_here(self) -> None:
        """At least one slice, or that nothing new is there."""
        while (one := self._next()) is not None:
            check(self._cancelled)
            self._first.append(one)
        check(self._cancelled)

    def _next(self) -> Slice | None:
        """None where there is nothing new, or nothing more (`ended`)."""
        try:
            return self._noted(next(self._rest))
        except StopIteration:
            self.ended = True
            return None

    def digest(self, instance: Instance) -> str:
        """What was said of these very bytes."""
        known = self._digests.get(id(instance))
        return instance_digest(instance) if known is None else known[1].result()

    def _noted(self, one: Slice | None) -> Slice | None:
        if one is not None and one.instance is not None and id(one.instance) not in self._digests:
            self._digests[id(one.instance)] = one.instance, self._pool.submit(instance_digest, one.instance)
        return one


class _Reach:
    """How far slices like those of a stack reach along their normal, and how far a bundle lets them."""

    def __init__(self, stack: Stack, most_mm: float) -> None:
        first = stack.slices[0].plane
        self._normal, self._size, self._most_mm = first.normal, (first.rows, first.columns), most_mm
        heights = [float(one.plane.position_mm @ self._normal) for one in stack.slices]
        self._low, self._high = min(heights), max(heights)

    @classmethod
    def of(cls, stack: Stack, bundle: Bundle) -> _Reach | None:
        fov_mm = bundle.expects.fov_mm
        return None if fov_mm is None else cls(stack, fov_mm[across(stack)][1])

    def exceeded_by(self, one: Slice) -> bool:
        """Whether they reach too far with this slice, too."""
        plane = one.plane
        if (plane.rows, plane.columns) == self._size and float(plane.normal @ self._normal) > _PARALLEL:
            height = float(plane.position_mm @ self._normal)
            self._low, self._high = min(self._low, height), max(self._high, height)
        return self._high - self._low > self._most_mm


def _is_only_job(planned: Plan, stack: Stack, bundle: Bundle) -> bool:
    """Whether the plan is to do with that bundle just the slices of that stack."""
    if len(planned.jobs) != 1 or planned.jobs[0].bundle is not bundle:
        return False
    mine, its = ([(one.instance, one.frame) for one in s.slices] for s in (stack, planned.jobs[0].stack))
    return len(mine) == len(its) and all(a is b and m == n for (a, m), (b, n) in zip(mine, its, strict=True))


def _told_of(result: SegmentationResult, stack: Stack) -> SegmentationResult:
    """A result as one of the stack of the plan, which knows what the whole series left out."""
    news = [one for one in stack.findings if one.level is Level.WARNING and one not in result.stack.findings]
    return replace(
        result,
        stack=stack,
        flags=(*(Flag(one.code, one.detail) for one in news), *result.flags),
        warnings=(*(one.detail for one in news), *result.warnings),
    )


@dataclass(frozen=True, eq=False)
class Outcome:
    """A result on disk. record: what `result.json` holds and `--json` prints (docs/json.md)."""

    folder: Path
    record: Mapping[str, Any]
    up_to_date: bool = False


def run(
    job: Job,
    out: Path,
    formats: frozenset[Format],
    *,
    settings: Settings,
    overwrite: bool = False,
    predecessors: tuple[Predecessor, ...] = (),
    found: Found | None = None,
    digest: Digest = instance_digest,
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> Outcome:
    """Segment one stack and write its results into `out / job.folder`: all verified, or nothing at all.

    predecessors: the results that this one takes the place of. found: what the stack was segmented to already
    (`follow`). digest: of an instance of the stack.

    A folder that already holds the same result is left as it is. Raises InputError where DICOM is asked of a NIfTI
    volume, OutputExists, OutputNotWritable, OutOfMemory, VerificationFailed, and whatever the pipeline raises.
    """
    stack = job.stack
    if formats & DICOM and job.nifti is not None:
        raise NoStudy
    folder = out / job.folder
    key = stack_key(stack, job.bundle.digest, deciding(job.bundle, settings), digest)
    kept = _kept(folder, key)
    if kept is not None and _holds(kept, formats):
        return Outcome(folder, kept, up_to_date=True)
    if kept is None and folder.exists() and not overwrite:
        raise OutputExists(folder)
    try:
        with _staged(folder) as staging:
            if found is None:
                found = _segmented(job, settings, on_progress, cancelled)
            made = Provenance.of(job.bundle, key, datetime.now(), predecessors=predecessors)
            record = _written(job, found, staging, folder, formats, made, cancelled)
    except MemoryError as error:
        raise OutOfMemory(
            f"series {stack.series.series_uid}: not enough memory for {' x '.join(map(str, stack.shape))} voxels: "
            "close other programs, or use a machine with more memory"
        ) from error
    return Outcome(folder, record)


def deciding(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """The settings that a result depends on, and so does its key; device and batch are not among them."""
    precision = choose_precision(settings.precision, bundle, choose_device(settings.device))
    overlap = list(settings.applied_to(bundle.recipe).window.overlap)
    return {"precision": str(precision), "overlap": overlap} | ({"exact": True} if settings.exact else {})


def _segmented(job: Job, settings: Settings, on_progress: Report, cancelled: Cancelled) -> Found:
    labels = LabelSpool()
    source = StackSource(job.stack)
    result = segment(source, job.bundle, labels, settings=settings, on_progress=on_progress, cancelled=cancelled)
    return Found(result, labels)


def _written(
    job: Job,
    found: Found,
    staging: Path,
    folder: Path,
    formats: frozenset[Format],
    made: Provenance,
    cancelled: Cancelled,
) -> dict[str, Any]:
    """Write what was found into `staging`, which will be `folder`; the record of it."""
    begin = time.perf_counter()
    result, labels = found.result, found.labels
    seg = SegWriter(staging / FILES[Format.SEG], made)
    if Format.SEG in formats:
        seg.begin(labels.stack, labels.segments, exclusive=labels.exclusive)
        for k, plane in enumerate(labels):
            check(cancelled)
            seg.plane(k, plane)
        seg.end()
    written = set(formats)
    if not seg.written:
        written.discard(Format.SEG)
    else:
        verify_seg(seg.path, job.stack, job.bundle.segments, labels, exclusive=labels.exclusive)
    check(cancelled)
    if Format.SR in formats:
        write_report(staging / FILES[Format.SR], result, made, with_seg=seg.written)
    if Format.NIFTI in formats:
        write_nifti(staging / FILES[Format.NIFTI], labels, made, like=job.nifti)
    if Format.PNG in formats:
        write_picture(staging / FILES[Format.PNG], labels, result, made)
    check(cancelled)
    spent = time.perf_counter() - begin
    timings = result.timings_s | {name: round(result.timings_s[name] + spent, 4) for name in (Stage.ENCODE, "total")}
    outputs = {str(kind): folder / FILES[kind] for kind in sorted(written)}
    record = result_record(replace(result, timings_s=timings), made, outputs, peak_rss_mb=_peak_rss_mb())
    write_record(staging / RECORD, record)
    return record


def _peak_rss_mb() -> float:
    """Resident memory of this process at its highest."""
    with suppress(OSError, StopIteration):  # what getrusage tells counts the program that started this one too
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the final one, that takes its place at the end and vanishes on any failure."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise OutputNotWritable(folder.parent, error.strerror or str(error)) from error
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise OutputNotWritable(folder, error.strerror or str(error)) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _kept(folder: Path, key: ResultKey) -> dict[str, Any] | None:
    """The record of the same result, where the folder holds one whose files are all there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = [folder / FILES[Format(kind)] for kind in record["outputs"]]  # it may have been moved as a whole
        same = record["result_key"] == key.digest and all(file.is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if same else None


def _holds(record: Mapping[str, Any], formats: frozenset[Format]) -> bool:
    """Whether a kept result has every format that is asked for; where nothing was found there is no SEG to have."""
    found = any(one["voxels"] for one in record["segments"])
    asked = formats if found else formats - {Format.SEG}
    return asked <= set(record["outputs"])
