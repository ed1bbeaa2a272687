"""What a cohort is made of: studies, and NIfTI volumes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.cohort.bids_names import BidsLabels, all_labels
from medseg.deidentify.pseudonyms import Pseudonyms
from medseg.dicom.candidates import CandidateFile, Skipped, candidate_of, entries_of
from medseg.names import file_name


@dataclass(frozen=True)
class Files:
    """Files that are looked at together. archive: the zip archive that they are entries of, None for files on disk."""

    names: tuple[str, ...]
    archive: Path | None = None


@dataclass(frozen=True)
class CohortItem:
    """A study, or a NIfTI volume, of a cohort.

    name: of its folder in the output, unlike every other's. files: of a study. nifti: the volume's file. absent: what a
    DICOMDIR says is of the study and is not there. bundle, channels: what a table says of it, of channels name and UID
    or path. folder: of the table, from which paths in it are meant. labels: what BIDS calls it, if asked for.
    """

    name: str
    study_uid: str = ""
    files: tuple[Files, ...] = ()
    nifti: Path | None = None
    absent: tuple[Skipped, ...] = ()
    bundle: str | None = None
    channels: tuple[tuple[str, str], ...] = ()
    folder: Path | None = None
    labels: BidsLabels | None = None

    def candidates(self) -> list[CandidateFile]:
        """The files of a study, to be read. Raises UnsafeArchive."""
        found = []
        for files in self.files:
            if files.archive is None:
                found += [candidate_of(Path(name)) for name in files.names]
            else:
                wanted = set(files.names)
                found += [entry for entry in entries_of(files.archive) if entry.name in wanted]
        return found

    @property
    def mark(self) -> str:
        """What tells it from another of the same name: of what it is and where it lies."""
        places = [(files.names, str(files.archive)) for files in self.files]
        said = repr((self.study_uid, str(self.nifti), places, self.bundle, self.channels))
        return hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:12]

    def within(self) -> set[Path]:
        """Each folder, archive or file that all of it lies in."""
        files = {self.nifti} if self.nifti else {files.archive for files in self.files if files.archive}
        names = [name for one in self.files if one.archive is None for name in one.names]
        files |= set(map(Path, names if len(names) == 1 else {os.path.dirname(name) for name in names}))  # noqa: PTH120
        around = [{path, *path.parents} for path in files]
        return set.intersection(*around) if around else set()

    def stamp(self) -> str:
        """SHA-256 (hex) that changes when a file of the item does, by its size and time; contents are not read."""
        digest = hashlib.sha256()
        for path in self._paths():
            try:
                told = path.stat()
                digest.update(f"{path}\0{told.st_size}\0{told.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            except OSError:
                digest.update(f"{path}\0gone\0".encode("utf-8", "surrogateescape"))
        said = (self.study_uid, self.bundle, self.channels, [files.names for files in self.files if files.archive])
        digest.update(repr(said).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def _paths(self) -> Iterable[Path]:
        if self.nifti is not None:
            yield self.nifti
        for _, what in self.channels:
            path = (self.folder or Path()) / what
            if path.is_file():
                yield path
        for files in self.files:
            yield from [files.archive] if files.archive is not None else map(Path, files.names)


def named_by_inputs(items: Sequence[CohortItem], names: Mapping[Path, str]) -> list[CohortItem]:
    """The items, those that are all that an input holds with its name. names: of what lies in a path."""
    inputs = [item.within() & names.keys() for item in items]
    often = Counter(path for some in inputs for path in some)
    alone = (next((path for path in some if often[path] == 1), None) for some in inputs)
    return [item if path is None else replace(item, name=names[path]) for item, path in zip(items, alone, strict=True)]


def with_own_names(items: Sequence[CohortItem]) -> list[CohortItem]:
    """The items in order of their names, each with a name that can be a folder's and is no other's, whatever case."""
    named = [replace(item, name=file_name(item.name)) for item in items]
    often = Counter(item.name.casefold() for item in named)
    alike = {item.name for item in named if often[item.name.casefold()] > 1}
    apart = (replace(item, name=f"{item.name[:80]}~{item.mark}") if item.name in alike else item for item in named)
    return sorted(apart, key=lambda item: item.name)


def with_labels(items: Sequence[CohortItem]) -> list[CohortItem]:
    """The items, all those of a cohort, with what BIDS calls them."""
    labels = all_labels([(item.name, item.nifti, item.mark) for item in items])
    return [replace(item, labels=of_item) for item, of_item in zip(items, labels, strict=True)]


def with_pseudonyms(items: Sequence[CohortItem], pseudonyms: Pseudonyms) -> list[CohortItem]:
    """Items that have names of their own, by pseudonyms: a study by that of its UID, others by that of their name."""
    named = []
    for item in items:
        name = pseudonyms.uid(item.name) if item.name == item.study_uid else pseudonyms.name(item.name)
        labels = item.labels and BidsLabels(name if item.nifti else "")  # of a study, marks of its patient and itself
        named.append(replace(item, name=name, labels=labels))
    return sorted(named, key=lambda item: item.name)
