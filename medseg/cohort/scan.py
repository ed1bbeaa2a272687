"""Folders, zips, DICOMDIRs and NIfTI files -> the studies and volumes in them, in whatever layout.

Headers are read once, and of each file only its study and series are kept: memory is that of the names. A study's files
may lie in several folders and archives. A zip archive inside a folder is looked into, as is the one that is named.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from typing import Final

from medseg.cohort.items import CohortItem, Files
from medseg.dicom.candidates import CandidateFile, Skipped, SkipReason, candidates_of, directory_references, not_there
from medseg.dicom.dicomdir import resolve
from medseg.dicom.headers import is_directory, look
from medseg.dicom.instance import Instance
from medseg.dicom.left_out import may_be_an_image
from medseg.dicom.nifti import is_nifti
from medseg.dicom.sources import look_at
from medseg.errors import Interrupted, MedsegError, NoSuchInput
from medseg.job.exits import as_ours
from medseg.job.places import named
from medseg.progress import Cancelled, Progress, Report, Stage, never, silent
from medseg.texts import shown

_READERS: Final = 4
_AHEAD: Final = 256  # files that are looked at before the first of them is asked for
_CHANNEL = re.compile(r"(.*)_(\d{4})(\.nii(?:\.gz)?)", re.IGNORECASE)
_SAMPLE: Final = 24


@dataclass(frozen=True)
class Scan:
    """What a cohort holds.

    passed_over: how many files are neither. unreadable: inputs that could not be looked at, with the reason.
    """

    items: tuple[CohortItem, ...]
    passed_over: int = 0
    unreadable: tuple[tuple[str, MedsegError], ...] = ()


def is_cohort(path: Path) -> bool:
    """Whether a path holds several studies, or NIfTI volumes: by a few of its files, since all would take long."""
    volumes, studies = (set(), set()) if is_nifti(path) else _sample(path)
    return bool(volumes) or len(studies) > 1


def hold_several(paths: Iterable[Path]) -> bool:
    """Whether paths hold several studies or volumes together: by a few files of each, as far as need be."""
    found: set[str] = set()
    for path in paths:
        volumes, studies = _sample(path)
        found |= volumes | studies
        if len(found) > 1:
            return True
    return False


def _sample(path: Path) -> tuple[set[str], set[str]]:
    """NIfTI files of a path, and studies of some of its images."""
    if is_nifti(path):
        return {str(named(path))}, set()
    try:
        candidates = candidates_of(path)[0] if path.exists() else []
    except (MedsegError, OSError):  # which whoever reads it will say
        return set(), set()
    volumes = {one.name for one in candidates if is_nifti(Path(one.name))}
    looked = (look_at(one) for one in candidates[:: max(len(candidates) // _SAMPLE, 1)]) if not volumes else ()
    return volumes, {look(one.header).text("StudyInstanceUID") for one in looked if isinstance(one, Instance)} - {""}


def scan(
    paths: Iterable[Path],
    *,
    channels: int = 1,
    leave: Path | None = None,
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> Scan:
    """The studies and volumes under all paths; names are not yet each their own.

    channels: where more than one, `x_0000.nii.gz` and `x_0001.nii.gz` beside it are one volume. leave: a folder that is
    not looked into, the output's. What lies in two of the paths counts once. Raises Interrupted.
    """
    found = _Studies()
    unreadable: list[tuple[str, MedsegError]] = []
    volumes: list[CohortItem] = []
    looked_into: set[Path] = set() if leave is None else {_place(leave)}
    for path in paths:
        try:
            if not path.exists():
                raise NoSuchInput(path)
            if _is_in(path, looked_into):
                continue
            candidates, skipped = _listed(path, looked_into)
            looked_into.add(_place(path))
            found.skip(skipped)
            volumes += _volumes([one for one in candidates if is_nifti(Path(one[1].name))], path, channels)
            images = [one for one in candidates if not is_nifti(Path(one[1].name))]
            for done, (archive, candidate, outcome) in enumerate(_looked_at(images), 1):
                if cancelled():
                    raise Interrupted
                found.add(archive, candidate, outcome)
                on_progress(Progress(Stage.READ, done, len(images)))
        except Interrupted:
            raise
        except (MedsegError, OSError) as error:
            unreadable.append((shown(path), as_ours(shown(path), error)))
    return Scan((*found.items(), *volumes), found.passed_over, tuple(unreadable))


_Listed = tuple[Path | None, CandidateFile]


def _is_in(path: Path, places: AbstractSet[Path]) -> bool:
    """Whether a path is one of these, or lies in one. places: see `_place`."""
    whole = _place(path)
    return not places.isdisjoint((whole, *whole.parents))


def _place(path: Path) -> Path:
    """A path as an absolute one that leads over no `..`, which is not the way back where there are links."""
    return path.resolve() if ".." in path.parts else path.absolute()


def _listed(path: Path, leave: AbstractSet[Path]) -> tuple[list[_Listed], list[Skipped]]:
    """The files of an input, each with the archive it is in; without those in places to leave."""
    candidates, skipped = candidates_of(path)
    if not path.is_dir():
        inside = path if candidates and candidates[0].name.startswith(f"{path.name}/") else None
        return [(inside, one) for one in candidates], skipped
    listed: list[_Listed] = []
    for one in candidates:
        file = Path(one.name)
        if _is_in(file, leave):
            continue
        if file.suffix.lower() == ".zip":
            try:
                listed += [(file, entry) for entry in candidates_of(file)[0]]
            except MedsegError as error:
                skipped.append(Skipped(one.name, SkipReason.UNREADABLE, str(error)))
        else:
            listed.append((None, one))
    return listed, skipped


def _looked_at(listed: Sequence[_Listed]) -> Iterator[tuple[Path | None, CandidateFile, Instance | Skipped]]:
    """Each file with its header, in order; a few are read ahead, so that not all headers are held."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="scan") as pool:
        waiting = iter(listed)
        begun = [(one, pool.submit(look_at, one[1])) for one in islice(waiting, _AHEAD)]
        while begun:
            (archive, candidate), future = begun.pop(0)
            begun += [(one, pool.submit(look_at, one[1])) for one in islice(waiting, 1)]
            yield archive, candidate, future.result()


@dataclass(eq=False)
class _Study:
    files: dict[Path | None, list[str]] = field(default_factory=lambda: defaultdict(list))
    series: set[str] = field(default_factory=set)
    absent: list[Skipped] = field(default_factory=list)


class _Studies:
    """Files by their study; what is of none lies with those of its folder, or is an item that will say so."""

    def __init__(self) -> None:
        self.passed_over = 0
        self._studies: dict[str, _Study] = defaultdict(_Study)
        self._in: dict[tuple[Path | None, PurePath], set[str]] = defaultdict(set)
        self._others: list[tuple[Path | None, Skipped]] = []
        self._absent: list[Skipped] = []

    def skip(self, skipped: Iterable[Skipped]) -> None:
        """What could not be looked at."""
        self._absent += [one for one in skipped if one.series_uid]
        self._others += [(None, one) for one in skipped if not one.series_uid]

    def add(self, archive: Path | None, candidate: CandidateFile, outcome: Instance | Skipped) -> None:
        if isinstance(outcome, Skipped):
            self._others.append((archive, outcome))
            return
        if is_directory(outcome.header):
            self._directory(archive, outcome)
            return
        view = look(outcome.header)
        uid = view.text("StudyInstanceUID")
        study = self._studies[uid]
        study.files[archive].append(candidate.name)
        study.series.add(view.text("SeriesInstanceUID"))
        self._in[archive, PurePath(candidate.name).parent].add(uid)

    def _directory(self, archive: Path | None, directory: Instance) -> None:
        self.passed_over += 1
        path = PurePath(directory.name)
        if archive is None:
            listed = directory_references(path, directory)
            absent = (one for one in listed if not one.name or resolve(Path(path.parent), one.name) is None)
            self._absent += [not_there(directory, one) for one in absent]

    def items(self) -> Iterator[CohortItem]:
        loose: dict[tuple[Path | None, PurePath], list[str]] = defaultdict(list)
        for archive, skipped in self._others:
            folder = archive, PurePath(skipped.name).parent
            if folder in self._in:
                for uid in self._in[folder]:
                    self._studies[uid].files[archive].append(skipped.name)
            elif may_be_an_image(skipped, frozenset()):
                loose[folder].append(skipped.name)
            else:
                self.passed_over += 1
        for absent in self._absent:
            for study in self._studies.values():
                if absent.series_uid in study.series:
                    study.absent.append(absent)
        for uid, study in sorted(self._studies.items()):
            files = (
                Files(tuple(sorted(set(names))), archive) for archive, names in sorted(study.files.items(), key=str)
            )
            yield CohortItem(uid, uid, tuple(files), absent=tuple(study.absent))
        for (archive, around), names in sorted(loose.items(), key=str):
            yield CohortItem(around.name or "unreadable", files=(Files(tuple(sorted(names)), archive),))


def _volumes(listed: Sequence[_Listed], root: Path, channels: int) -> Iterator[CohortItem]:
    """NIfTI volumes, named by their files; of several that are the channels of one, the first."""
    files = {Path(one.name) for archive, one in listed if archive is None}
    for file in sorted(files):
        matched = _CHANNEL.fullmatch(file.name) if channels > 1 else None
        if matched and int(matched[2]) and file.with_name(f"{matched[1]}_0000{matched[3]}") in files:
            continue
        relative = file.relative_to(root) if file.is_relative_to(root) and root.is_dir() else Path(file.name)
        name = "_".join(relative.parts)
        stem = name[: name.lower().rindex(".nii")]
        whole = stem.removesuffix("_0000") if matched and stem.endswith("_0000") else stem
        yield CohortItem(whole, nifti=file)
