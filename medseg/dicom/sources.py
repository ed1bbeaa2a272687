"""Where instances come from: a file, a folder, a zip archive, a DICOMDIR. Headers only; pixels are read later.

    read_series(path) = group(find_instances(path))

NIfTI volumes are read by `medseg.dicom.nifti`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO, cast
from zipfile import is_zipfile

from medseg.dicom.archive import open_archive
from medseg.dicom.classes import class_name, why_no_image
from medseg.dicom.dicomdir import Reference, references, resolve
from medseg.dicom.encoding import find_encoding
from medseg.dicom.headers import MALFORMED, is_directory, look, read_instance, transfer_syntax
from medseg.dicom.images import images_of, said_by
from medseg.dicom.instance import Instance
from medseg.dicom.series import Series
from medseg.errors import EmptyInput, Interrupted, NoSuchInput, UnreadableInstance
from medseg.progress import Cancelled, Progress, Report, Stage, never, silent

_CHUNK_BYTES = 1 << 20
_READERS = 4


class SkipReason(StrEnum):
    """Why a file gave no image."""

    UNREADABLE = "unreadable"
    NOT_AN_IMAGE = "not_an_image"
    MISSING = "missing"
    DUPLICATE = "duplicate"
    NESTED_ARCHIVE = "nested_archive"


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why in one sentence. series_uid: where a directory says of which it is."""

    name: str
    code: SkipReason
    why: str
    series_uid: str = ""


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
    candidates, skipped = _candidates(path)
    instances = []
    directories = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="headers") as pool:
        for done, outcome in enumerate(pool.map(_look, candidates), 1):
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


@dataclass(frozen=True)
class _Candidate:
    """A file that may be DICOM. peek: opens it for a look at its header; open: for everything."""

    name: str
    peek: Callable[[], BinaryIO]
    open: Callable[[], BinaryIO]


def _candidates(path: Path) -> tuple[list[_Candidate], list[Skipped]]:
    if path.is_dir():
        unread: list[Skipped] = []
        return [_file(file) for file in _files_below(path, unread)], unread
    if is_zipfile(path):
        return [_Candidate(f"{path.name}/{name}", peek, whole) for name, peek, whole in open_archive(path)], []
    try:
        instance = read_instance(_opener(path), str(path))
    except UnreadableInstance:
        return [_file(path)], []
    return _referenced(path, instance) if is_directory(instance.header) else ([_file(path)], [])


def _referenced(path: Path, directory: Instance) -> tuple[list[_Candidate], list[Skipped]]:
    candidates, missing = [], []
    for reference in _references(path, directory):
        file = resolve(path.parent, reference.name)
        if file is None:
            missing.append(_missing(directory, reference))
        else:
            candidates.append(_file(file))
    return candidates, missing


def _references(path: PurePath, directory: Instance) -> list[Reference]:
    try:
        return references(directory.header)
    except (*MALFORMED, OSError) as error:  # what pydicom raises inside a sequence is one
        raise UnreadableInstance(str(path), "a DICOMDIR whose records are malformed") from error


def _told_by(directories: Iterable[Instance], candidates: Iterable[_Candidate]) -> list[Skipped]:
    """Directories among the files, and what they refer to and is not there."""
    there = {str(PurePath(candidate.name)).casefold() for candidate in candidates}
    skipped = []
    for directory in directories:
        path = PurePath(directory.name)
        try:
            listed = _references(path, directory)
        except UnreadableInstance as error:
            skipped.append(Skipped(directory.name, SkipReason.UNREADABLE, error.why))
            continue
        skipped.append(
            Skipped(directory.name, SkipReason.NOT_AN_IMAGE, "a DICOMDIR: the files beside it were looked at instead")
        )
        absent = (ref for ref in listed if not ref.name or str(path.parent / ref.name).casefold() not in there)
        skipped += [_missing(directory, reference) for reference in absent]
    return skipped


def _missing(directory: Instance, reference: Reference) -> Skipped:
    where = PurePath(directory.name)
    name = str(where.parent / reference.name) if reference.name else f"a record of {where}"
    if not reference.image:
        why = f"{where.name} refers to it and it is not there; no image, by its record"
        return Skipped(name, SkipReason.NOT_AN_IMAGE, why, reference.series_uid)
    why = f"{where.name} refers to it and it is not there"
    return Skipped(name, SkipReason.MISSING, why, reference.series_uid)


def _file(path: Path) -> _Candidate:
    return _Candidate(str(path), _opener(path), _opener(path))


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return cast(Callable[[], BinaryIO], partial(path.open, "rb"))


def _files_below(folder: Path, unread: list[Skipped]) -> Iterator[Path]:
    """All regular files, sorted; linked folders are entered, each folder once. unread: gets what cannot be entered."""
    entered: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        why = f"a folder that cannot be read: {error.strerror or error}"
        unread.append(Skipped(str(error.filename), SkipReason.UNREADABLE, why))

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(root)  # noqa: PTH116 - one call per folder
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (path for name in sorted(names) if _may_be_read(path := Path(root, name), unread))


def _may_be_read(path: Path, unread: list[Skipped]) -> bool:
    """Whether reading a file comes to an end; a link to nothing does."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return path.is_symlink()
    if not stat.S_ISREG(mode) and path.is_symlink():
        unread.append(Skipped(str(path), SkipReason.UNREADABLE, "a link to what is no file"))
    return stat.S_ISREG(mode)


def _look(candidate: _Candidate) -> Instance | Skipped:
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
