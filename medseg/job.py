"""One study, from its series to its results: what the command line, a cohort and the gateway's worker call.

series --plan--> jobs (a stack and the bundle that fits it), and refusals with their reasons
job    --run---> a folder of verified results: all of them, or none
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import choose, fits
from medseg.dicom.geometry import classify
from medseg.dicom.nifti import read_nifti
from medseg.dicom.series import Series, Stack
from medseg.errors import (
    DoesNotFit,
    GeometryRefused,
    InputError,
    MedsegError,
    OutOfMemory,
    OutputExists,
    OutputNotWritable,
)
from medseg.inference.device import choose_device, choose_precision
from medseg.inference.segment import Settings, StackSource, segment
from medseg.progress import Cancelled, Report, Stage, check, never, silent
from medseg.results.identity import ResultKey, stack_key
from medseg.results.modules import Provenance
from medseg.results.nifti import write_nifti
from medseg.results.picture import write_picture
from medseg.results.planes import Fork, LabelSpool
from medseg.results.record import refusal_record, result_record, write_record
from medseg.results.report import write_report
from medseg.results.seg import SegWriter
from medseg.results.verify import verify_seg

RECORD = "result.json"


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
    """A series, or a part of one, that is not segmented; the error says why."""

    series: Series
    bundle: str | None
    error: MedsegError

    def record(self) -> dict[str, Any]:
        """As a line of JSON (docs/json.md)."""
        return refusal_record(self.series.study_uid, self.series.series_uid, self.bundle, self.error)


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
    """Sort out the geometry of each series of one study, and match what it holds with bundles."""
    verdicts = [
        classify(one, assume_frame_of_reference=assume_frame_of_reference)
        for one in sorted(series, key=lambda s: (s.number if s.number is not None else -1, s.series_uid))
    ]
    refused = [
        Refused(verdict.series, None, GeometryRefused(verdict.series.series_uid, refusal.reason, refusal.detail))
        for verdict in verdicts
        for refusal in verdict.refusals
    ]
    matched = match([stack for verdict in verdicts for stack in verdict.stacks], bundles, explicit=explicit)
    return Plan(matched.jobs, (*refused, *matched.refused))


def plan_nifti(path: Path, bundles: Sequence[Bundle], *, explicit: bool = False) -> Plan:
    """Match a NIfTI volume with a bundle."""
    matched = match([read_nifti(path)], bundles, explicit=explicit)
    return replace(matched, jobs=tuple(replace(job, nifti=path) for job in matched.jobs))


def match(stacks: Iterable[Stack], bundles: Sequence[Bundle], *, explicit: bool = False) -> Plan:
    """The bundle for each stack.

    explicit: the one bundle was named by the user, so its hints about descriptions do not bind; what it needs to
    be right (modality, field of view) does.
    """
    jobs: list[Job] = []
    refused: list[Refused] = []
    for stack in stacks:
        try:
            bundle = _named(stack, bundles[0]) if explicit else choose(stack, bundles)
        except MedsegError as error:
            refused.append(Refused(stack.series, bundles[0].name if explicit else None, error))
        else:
            jobs.append(Job(stack, bundle, _folder(stack, bundle, {job.folder for job in jobs})))
    return Plan(tuple(jobs), tuple(refused))


def _named(stack: Stack, bundle: Bundle) -> Bundle:
    reasons = fits(stack, bundle, hints=False)
    if reasons:
        raise DoesNotFit(stack.series.series_uid, bundle.name, reasons)
    return bundle


def _folder(stack: Stack, bundle: Bundle, taken: set[str]) -> str:
    """SERIESNUMBER_BUNDLE, with -2, -3, ... where a study repeats a number or a series splits into stacks."""
    number = stack.series.number if stack.series.number is not None else 0
    names = [f"{number}{suffix}_{bundle.name}" for suffix in ("", *(f"-{n}" for n in range(2, len(taken) + 2)))]
    return next(name for name in names if name not in taken)


def default_out(path: Path) -> Path:
    """`study-medseg` beside `study/`, `study.zip` or `study.nii.gz`."""
    whole = path.resolve()
    if whole.name.upper() == "DICOMDIR":
        whole = whole.parent
    name = whole.name if whole.is_dir() else whole.name.removesuffix(".gz").rsplit(".", 1)[0]
    return whole.with_name(f"{name or whole.name}-medseg")


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
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> Outcome:
    """Segment one stack and write its results into `out / job.folder`: all verified, or nothing at all.

    A folder that already holds the same result is left as it is. Raises InputError where DICOM is asked of a NIfTI
    volume, OutputExists, OutputNotWritable, OutOfMemory, VerificationFailed, and whatever the pipeline raises.
    """
    stack = job.stack
    if formats & DICOM and job.nifti is not None:
        raise InputError("a NIfTI volume has no study to write DICOM for: ask for --format nifti or png")
    folder = out / job.folder
    key = stack_key(stack, job.bundle.digest, deciding(job.bundle, settings))
    kept = _kept(folder, key)
    if kept is not None and _holds(kept, formats):
        return Outcome(folder, kept, up_to_date=True)
    if kept is None and folder.exists() and not overwrite:
        raise OutputExists(folder)
    try:
        with _staged(folder) as staging:
            record = _produce(job, staging, folder, formats, key, settings, on_progress, cancelled)
    except MemoryError as error:
        raise OutOfMemory(
            f"series {stack.series.series_uid}: not enough memory for {' x '.join(map(str, stack.shape))} voxels: "
            "close other programs, or use a machine with more memory"
        ) from error
    return Outcome(folder, record)


def deciding(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """The settings that a result depends on, and so does its key; device and batch are not among them."""
    precision = choose_precision(settings.precision, bundle, choose_device(settings.device))
    return {"precision": str(precision), "overlap": list(settings.applied_to(bundle.recipe).window.overlap)}


def _produce(
    job: Job,
    staging: Path,
    folder: Path,
    formats: frozenset[Format],
    key: ResultKey,
    settings: Settings,
    on_progress: Report,
    cancelled: Cancelled,
) -> dict[str, Any]:
    made = Provenance.of(job.bundle, key, datetime.now())
    labels, seg = LabelSpool(), SegWriter(staging / FILES[Format.SEG], made)
    sink = Fork(labels, seg) if Format.SEG in formats else labels
    result = segment(
        StackSource(job.stack), job.bundle, sink, settings=settings, on_progress=on_progress, cancelled=cancelled
    )
    begin = time.perf_counter()
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
        same = record["result_key"] == key.digest and all(Path(p).is_file() for p in record["outputs"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if same else None


def _holds(record: Mapping[str, Any], formats: frozenset[Format]) -> bool:
    """Whether a kept result has every format that is asked for; where nothing was found there is no SEG to have."""
    found = any(one["voxels"] for one in record["segments"])
    asked = formats if found else formats - {Format.SEG}
    return asked <= set(record["outputs"])
