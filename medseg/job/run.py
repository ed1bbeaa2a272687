"""A job -> a folder of verified results: all of them, or none."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.deidentify.request import Deidentify
from medseg.dicom.series import StackSource
from medseg.dicom.sources import instance_digest
from medseg.errors import MayOverlap, NoStudy, OutOfMemory, OutputExists
from medseg.inference.engines.device import choose_device, choose_precision
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.job.deidentified import SOURCES, Unnamed, copy_sources, refuse_burned_in
from medseg.job.folder import DICOM, FILES, OF_FOUND, RECORD, THUMBNAIL, USUAL, Format, kept_record, staged
from medseg.job.follow import Digest, Segmented
from medseg.job.forms import write_planes
from medseg.job.plan import Job
from medseg.progress import Cancelled, Report, Stage, check, never, silent
from medseg.results.findings import findings_of
from medseg.results.identity import stack_key
from medseg.results.key_object import write_key_object
from medseg.results.nifti import write_nifti
from medseg.results.picture import write_picture, write_thumbnail
from medseg.results.provenance import Predecessor, Provenance
from medseg.results.record import result_record, write_record
from medseg.results.report import write_report


@dataclass(frozen=True, eq=False)
class Outcome:
    """A result on disk. record: what `result.json` holds and `--json` prints (docs/json.md)."""

    folder: Path
    record: Mapping[str, Any]
    up_to_date: bool = False


def run(
    job: Job,
    out: Path | str,
    formats: Set[Format] = USUAL,
    *,
    settings: Settings = Settings(),
    overwrite: bool = False,
    predecessors: tuple[Predecessor, ...] = (),
    deidentify: Deidentify | None = None,
    found: Segmented | None = None,
    digest: Digest = instance_digest,
    thumbnail: bool = False,
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> Outcome:
    """Segment one stack and write its results into `out / job.folder`: all verified, or nothing at all.

    formats: SEG and SR unless given; a NIfTI volume has NIFTI and PNG alone. overwrite: replace another result there.
    predecessors: the results that this one takes the place of. deidentify: leave out who it is of. found: what the
    stack was segmented to already (`follow`). digest: of an instance of the stack. thumbnail: a small picture, too.

    A folder that already holds the same result is left as it is. Raises InputError where DICOM is asked of a NIfTI
    volume, OutputExists, OutputNotWritable, OutOfMemory, VerificationFailed, and whatever the pipeline raises.
    """
    stack = job.stack
    if formats & DICOM and job.nifti is not None:
        raise NoStudy
    if Format.LABELMAP in formats and not job.bundle.recipe.exclusive:
        raise MayOverlap(job.bundle.name)
    if deidentify is not None:
        refuse_burned_in(job, deidentify)
    folder = Path(out) / job.folder
    key = stack_key(stack, job.bundle.digest, key_settings(job.bundle, settings, deidentify), digest)
    kept = kept_record(folder, key)
    if kept is not None and _holds(kept, formats) and (deidentify is None or _has_copies(kept, folder, deidentify)):
        return Outcome(folder, kept, up_to_date=True)
    if kept is None and folder.exists() and not overwrite:
        raise OutputExists(folder)
    try:
        with staged(folder) as staging:
            if found is None:
                found = _segmented(job, settings, on_progress, cancelled)
            made = Provenance.of(job.bundle, key, datetime.now(), predecessors=predecessors)
            said, place = None, folder
            if deidentify is not None:
                said = {"key": deidentify.pseudonyms.fingerprint, "sources": copy_sources(stack, deidentify, staging)}
                unnamed = Unnamed.of(job, found, deidentify)
                job, found, made = unnamed.job, unnamed.found, unnamed.provenance(made)
                place = Path()  # where results lie may be called by whose they are
            record = _written(job, found, staging, place, formats, made, cancelled, said)
            if thumbnail:
                write_thumbnail(staging / THUMBNAIL, found.labels)
    except MemoryError as error:
        raise OutOfMemory(
            f"series {stack.series.series_uid}: not enough memory for {' x '.join(map(str, stack.shape))} voxels: "
            "close other programs, or use a machine with more memory"
        ) from error
    return Outcome(folder, record)


def key_settings(bundle: Bundle, settings: Settings, deidentify: Deidentify | None = None) -> dict[str, Any]:
    """The settings that a result depends on, and so does its key; device and batch are not among them."""
    precision = choose_precision(settings.precision, bundle, choose_device(settings.device))
    overlap = list(settings.applied_to(bundle.recipe).window.overlap)
    unnamed = {} if deidentify is None else {"deidentified": deidentify.pseudonyms.salt}
    return {"precision": str(precision), "overlap": overlap} | ({"exact": True} if settings.exact else {}) | unnamed


def _segmented(job: Job, settings: Settings, on_progress: Report, cancelled: Cancelled) -> Segmented:
    labels = LabelSpool()
    source = StackSource(job.stack)
    result = segment(source, job.bundle, labels, settings=settings, on_progress=on_progress, cancelled=cancelled)
    return Segmented(result, labels)


def _written(
    job: Job,
    found: Segmented,
    staging: Path,
    folder: Path,
    formats: Set[Format],
    made: Provenance,
    cancelled: Cancelled,
    deidentified: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write what was found into `staging`, which will be `folder`; the record of it."""
    begin = time.perf_counter()
    result, labels = found.result, found.labels
    planes = write_planes(staging, formats, job.stack, found, made, cancelled)
    written = planes | (formats & {Format.SR, Format.NIFTI, Format.PNG})
    findings = findings_of(labels, job.bundle.lesions)
    check(cancelled)
    if Format.SR in formats:
        write_report(staging / FILES[Format.SR], result, findings, made, with_seg=Format.SEG in planes)
    if Format.KO in formats and not result.empty:
        write_key_object(staging / FILES[Format.KO], result, findings, made, captured=Format.SC in planes)
        written |= {Format.KO}
    if Format.NIFTI in formats:
        write_nifti(staging / FILES[Format.NIFTI], labels, made, like=job.nifti)
    if Format.PNG in formats:
        write_picture(staging / FILES[Format.PNG], labels, result, made)
    check(cancelled)
    spent = time.perf_counter() - begin
    timings = result.timings_s | {name: round(result.timings_s[name] + spent, 4) for name in (Stage.ENCODE, "total")}
    outputs = {str(kind): folder / FILES[kind] for kind in sorted(written)}
    record = result_record(replace(result, timings_s=timings), findings, made, outputs, peak_rss_mb=_peak_rss_mb())
    record["decoded"] = None if job.share is None else job.share.decoded
    record["deidentified"] = deidentified
    write_record(staging / RECORD, record)
    return record


def _peak_rss_mb() -> float:
    """Resident memory of this process at its highest."""
    with suppress(OSError, StopIteration):  # what getrusage tells counts the program that started this one too
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _holds(record: Mapping[str, Any], formats: Set[Format]) -> bool:
    """Whether a kept result has every format that is asked for, and that there is where nothing was found."""
    found = any(one["voxels"] for one in record["segments"])
    asked = formats if found else formats - OF_FOUND
    return asked <= set(record["outputs"])


def _has_copies(record: Mapping[str, Any], folder: Path, deidentify: Deidentify) -> bool:
    """Whether a kept result has the copies of its sources, where they are asked for, and there are instances."""
    if not deidentify.copy_sources or not record["series_uid"]:
        return True
    copies = record["deidentified"]["sources"]
    return bool(copies) and len(list((folder / SOURCES).glob("*.dcm"))) == copies
