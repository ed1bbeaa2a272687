"""Where instances come from: a file, a folder, a zip archive, a DICOMDIR. Headers only; pixels are read later.

    read_series(path) = group(find_instances(path))

NIfTI volumes are read by `medseg.dicom.nifti`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from medseg.dicom.candidates import (
    CandidateFile,
    Skipped,
    SkipReason,
    candidates_of,
    directory_references,
    not_there,
)
from medseg.dicom.classes import class_name, why_no_image
from medseg.dicom.encoding import find_encoding
from medseg.dicom.headers import MALFORMED, is_directory, look, read_instance, transfer_syntax
from medseg.dicom.images import images_of, said_by
from medseg.dicom.instance import Instance
from medseg.dicom.series import Series
from medseg.errors import EmptyInput, Interrupted, NoSuchInput, UnreadableInstance
from medseg.progress import Cancelled, Progress, Report, Stage, never, silent

_CHUNK_BYTES = 1 << 20
_READERS = 4


@dataclass(frozen=True, eq=False)
class FoundInstances:
    """The image instances of an input, and what else lay there.

    instances: in order of their names; no two hold the same object (one that lay there twice is in `skipped`).
    looked_at: number of files.
    """

    instances: tuple[Instance, ...]
    skipped: tuple[Skipped, ...]
    looked_at: int

    def series(self) -> list[Series]:
        """The instances by series."""
        return group_series(self.instances)


def read_series(path: Path, *, on_progress: Report = silent, cancelled: Cancelled = never) -> list[Series]:
    """All image series under a path. For what was left out, see `find_instances`.

    Raises:
        NoSuchInput, UnsafeArchive: see `find_instances`.
        EmptyInput: there is no image at all.
    """
    found = find_instances(path, on_progress=on_progress, cancelled=cancelled)
    if not found.instances:
        raise EmptyInput(path, found.looked_at)
    return found.series()


def find_instances(path: Path, *, on_progress: Report = silent, cancelled: Cancelled = never) -> FoundInstances:
    """Read the headers of all DICOM images of a file, a folder (with its subfolders), a zip archive or a DICOMDIR.

    Raises:
        NoSuchInput: the path does not exist.
        UnsafeArchive: see `open_archive`.
        Interrupted: `cancelled` said so.
    """
    if not path.exists():
        raise NoSuchInput(path)
    return read_candidates(*candidates_of(path), on_progress=on_progress, cancelled=cancelled)


def read_candidates(
    candidates: Sequence[CandidateFile],
    skipped: Iterable[Skipped] = (),
    *,
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> FoundInstances:
    """As `find_instances`, of files that were listed before. skipped: what was passed over on the way."""
    skipped, instances, directories = list(skipped), [], []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="headers") as pool:
        for done, outcome in enumerate(pool.map(look_at, candidates), 1):
            if cancelled():
                pool.shutdown(cancel_futures=True)
                raise Interrupted
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            elif is_directory(outcome.header):
                directories.append(outcome)
            else:
                instances.append(outcome)
            on_progress(Progress(Stage.READ, done, len(candidates)))
    kept, repeated = _without_copies(instances)
    images, beside = _without_others(kept)
    told = _told_by(directories, candidates)
    return FoundInstances(tuple(images), (*skipped, *told, *repeated, *beside), len(candidates))


def _told_by(directories: Iterable[Instance], candidates: Iterable[CandidateFile]) -> list[Skipped]:
    """Directories among the files, and what they refer to and is not there."""
    there = {str(PurePath(candidate.name)).casefold() for candidate in candidates}
    skipped = []
    for directory in directories:
        path = PurePath(directory.name)
        try:
            listed = directory_references(path, directory)
        except UnreadableInstance as error:
            skipped.append(Skipped(directory.name, SkipReason.UNREADABLE, error.why))
            continue
        skipped.append(
            Skipped(directory.name, SkipReason.NOT_AN_IMAGE, "a DICOMDIR: the files beside it were looked at instead")
        )
        absent = (ref for ref in listed if not ref.name or str(path.parent / ref.name).casefold() not in there)
        skipped += [not_there(directory, reference) for reference in absent]
    return skipped


def look_at(candidate: CandidateFile) -> Instance | Skipped:
    """The header of an image or of a DICOMDIR, or why it is neither."""
    try:
        instance = read_instance(candidate.peek, candidate.name)
    except UnreadableInstance as error:
        nested = candidate.name.lower().endswith(".zip")
        why = "an archive inside: give it by itself" if nested else error.why
        return Skipped(candidate.name, SkipReason.NESTED_ARCHIVE if nested else SkipReason.UNREADABLE, why)
    if is_directory(instance.header):
        return instance
    kind = why_no_image(instance)
    if kind:
        return Skipped(candidate.name, SkipReason.NOT_AN_IMAGE, kind)
    if "Rows" not in instance.header:
        return Skipped(candidate.name, SkipReason.UNREADABLE, "cut short: the file ends before its image attributes")
    return replace(instance, open=candidate.open)


def _without_copies(instances: list[Instance]) -> tuple[list[Instance], list[Skipped]]:
    """Keep one of several copies of an object. Different objects under one UID all stay: geometry refuses them."""
    keys = [_identity(instance) for instance in instances]
    often = {key for key, count in Counter(keys).items() if count > 1}
    kept, repeated = [], []
    seen: dict[tuple[str, ...], Instance] = {}
    for key, instance in zip(keys, instances, strict=True):
        if key in often:
            first = seen.setdefault((*key, instance_digest(instance)), instance)
            if first is not instance:
                repeated.append(Skipped(instance.name, SkipReason.DUPLICATE, f"the same object as {first.name}"))
                continue
        kept.append(instance)
    return kept, repeated


def _without_others(instances: Sequence[Instance]) -> tuple[list[Instance], list[Skipped]]:
    """Leave out what lies in the series of images and is none that can be segmented: a screen save among CT slices."""
    others = {id(one): one for group in _groups(instances).values() for one in images_of(group)[1]}
    skipped = [
        Skipped(one.name, SkipReason.NOT_AN_IMAGE, f"{class_name(one.sop_class_uid)}: not of the images of its series")
        for one in others.values()
    ]
    return [one for one in instances if id(one) not in others], skipped


def _identity(instance: Instance) -> tuple[str, str, str]:
    view = look(instance.header)
    return view.text("StudyInstanceUID"), view.text("SeriesInstanceUID"), instance.sop_instance_uid


def group_series(instances: Iterable[Instance]) -> list[Series]:
    """Instances by SeriesInstanceUID within their study, sorted by study, series number and UID."""
    return sorted((to_series(group) for group in _groups(instances).values()), key=_series_order)


def _groups(instances: Iterable[Instance]) -> dict[tuple[str, str], list[Instance]]:
    groups: dict[tuple[str, str], list[Instance]] = {}
    for instance in instances:
        groups.setdefault(_identity(instance)[:2], []).append(instance)
    return groups


def to_series(instances: Sequence[Instance]) -> Series:
    """The instances of one series, described as most of its images that can be segmented say (`images`)."""
    view = look(instances[0].header)
    values = said_by(instances, ("Modality", "SeriesNumber", "SeriesDescription", "BodyPartExamined"))
    return Series(
        study_uid=view.text("StudyInstanceUID"),
        series_uid=view.text("SeriesInstanceUID"),
        modality=values["Modality"],
        number=_whole(values["SeriesNumber"]),
        description=values["SeriesDescription"],
        body_part=values["BodyPartExamined"],
        instances=tuple(instances),
    )


def _whole(text: str) -> int | None:
    """A number as an integer string has it (PS3.5 6.2), leniently."""
    try:
        return int(float(text.split("\\")[0]))
    except (ValueError, OverflowError):
        return None


def _series_order(series: Series) -> tuple[str, bool, int, str]:
    return series.study_uid, series.number is None, series.number or 0, series.series_uid


def instance_digest(instance: Instance) -> str:
    """SHA-256 (hex) of an object's transfer syntax UID and its data set as encoded, without preamble and file meta.

    The same object has the same digest in a file as sent, on another disk, or under another file meta.

    Raises:
        UnreadableInstance: its bytes cannot be read any more.
    """
    digest = hashlib.sha256(str(transfer_syntax(instance.header)).encode())
    try:
        with instance.open() as stream:
            stream.seek(find_encoding(stream).offset)
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (*MALFORMED, OSError) as error:
        raise UnreadableInstance(instance.name, f"cannot be read: {error}") from error
    return digest.hexdigest()
