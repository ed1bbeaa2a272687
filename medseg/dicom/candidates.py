"""Which files of an input may be DICOM: those of a folder, of a zip archive, or that a DICOMDIR refers to."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO, cast
from zipfile import is_zipfile

from medseg.dicom.archive import open_archive
from medseg.dicom.dicomdir import Reference, references, resolve
from medseg.dicom.headers import MALFORMED, is_directory, read_instance
from medseg.dicom.instance import Instance
from medseg.errors import UnreadableInstance


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


@dataclass(frozen=True)
class CandidateFile:
    """A file that may be DICOM. peek: opens it for a look at its header; open: for everything."""

    name: str
    peek: Callable[[], BinaryIO]
    open: Callable[[], BinaryIO]


def candidates_of(path: Path) -> tuple[list[CandidateFile], list[Skipped]]:
    """The files of an input, and what cannot be looked at.

    Raises UnsafeArchive, UnreadableInstance for a DICOMDIR whose records are malformed.
    """
    if path.is_dir():
        unread: list[Skipped] = []
        return [candidate_of(file) for file in _files_below(path, unread)], unread
    if is_zipfile(path):
        return entries_of(path), []
    try:
        instance = read_instance(_opener(path), str(path))
    except UnreadableInstance:
        return [candidate_of(path)], []
    return _referenced(path, instance) if is_directory(instance.header) else ([candidate_of(path)], [])


def candidate_of(path: Path) -> CandidateFile:
    """A file."""
    return CandidateFile(str(path), _opener(path), _opener(path))


def entries_of(archive: Path) -> list[CandidateFile]:
    """The files of a zip archive. Raises UnsafeArchive."""
    return [CandidateFile(f"{archive.name}/{name}", peek, whole) for name, peek, whole in open_archive(archive)]


def _referenced(path: Path, directory: Instance) -> tuple[list[CandidateFile], list[Skipped]]:
    candidates, missing = [], []
    for reference in directory_references(path, directory):
        file = resolve(path.parent, reference.name)
        if file is None:
            missing.append(not_there(directory, reference))
        else:
            candidates.append(candidate_of(file))
    return candidates, missing


def directory_references(path: PurePath, directory: Instance) -> list[Reference]:
    """What a DICOMDIR refers to. Raises UnreadableInstance where its records are malformed."""
    try:
        return references(directory.header)
    except (*MALFORMED, OSError) as error:  # what pydicom raises inside a sequence is one
        raise UnreadableInstance(str(path), "a DICOMDIR whose records are malformed") from error


def not_there(directory: Instance, reference: Reference) -> Skipped:
    """A file that a DICOMDIR refers to, and that is not there."""
    where = PurePath(directory.name)
    name = str(where.parent / reference.name) if reference.name else f"a record of {where}"
    if not reference.image:
        why = f"{where.name} refers to it and it is not there; no image, by its record"
        return Skipped(name, SkipReason.NOT_AN_IMAGE, why, reference.series_uid)
    why = f"{where.name} refers to it and it is not there"
    return Skipped(name, SkipReason.MISSING, why, reference.series_uid)


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
