"""Where results go: a folder for each input, beside what was named or inside the folder of `-o`.

    study/  ct.zip  brain.nii.gz  disc/DICOMDIR         study-medseg/  ct-medseg/  brain-medseg/  disc-medseg/
    brain.nii  brain.nii.gz                             brain.nii-medseg/  brain.nii.gz-medseg/
    one.nii.gz  two.nii.gz     -o results               results/one/  results/two/
    a/t1.nii.gz  b/t1.nii.gz   -o results               results/a_t1.nii.gz/  results/b_t1.nii.gz/

Links are not resolved: a result lies beside the name that was given. The same inputs have the same folders in every
run, whatever became of them before.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medseg.names import beside_name, file_name

ENDING = "-medseg"
#: Endings of inputs, that a result's name does without.
_INPUTS = (".nii.gz", ".nii", ".zip", ".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class _Input:
    """named: the absolute path as given. short, whole: what a folder for its results may be called."""

    named: Path
    short: str
    whole: str
    beside: Path


def result_folders(inputs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """The folder for the results of each input, in their order. out: what was asked for by `-o`.

    Different inputs have different folders, on file systems that know no case, too; one that is given twice has one.
    """
    absolute = [named(path) for path in inputs]
    if out is not None and len(set(absolute)) == 1:
        return [out for _ in inputs]
    if out is None:
        described = {path: _beside(path) for path in absolute}
        folders = {
            path: one.beside / beside_name(name, ENDING)
            for path, one, name in _apart(described, lambda one: _has_twin(one.named, one.short))
        }
    else:
        described = {path: _within(path, out, _common(absolute)) for path in absolute}
        folders = {path: out / file_name(name) for path, _, name in _apart(described, lambda _: False)}
    often = Counter(str(folder).casefold() for folder in folders.values())
    for path, folder in folders.items():
        if often[str(folder).casefold()] > 1:
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
            folders[path] = folder.with_name(beside_name(folder.name, f"~{digest}"))
    return [folders[path] for path in absolute]


def named(path: Path) -> Path:
    """A path as an absolute one whose last part is a name; links stay unless `..` leads over them."""
    if path.name == "..":
        return path.resolve()
    return _here() if path.name == "" and not path.is_absolute() else path.absolute()


def with_directory(path: Path) -> Path:
    """A path, or of a DICOMDIR the folder whose files it lists."""
    return path.parent if _is_directory_file(path) else path


def _here() -> Path:
    """The working folder by the name that it was entered by."""
    entered = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(entered) and os.path.samefile(entered, "."):  # noqa: PTH117, PTH121 - a text, not yet a path
            return Path(entered)
    return Path.cwd()


def _beside(path: Path) -> _Input:
    subject, name = path, path.name
    if _is_directory_file(path):
        subject, name = path.parent, f"{path.parent.name}_{path.name}"
    if not subject.name:  # nothing lies beside the root
        return _Input(path, "root", "root", Path.cwd())
    return _Input(path, _without_ending(subject), name, subject.parent)


def _within(path: Path, out: Path, common: Path) -> _Input:
    subject = with_directory(path)
    relative = path.relative_to(common) if path.is_relative_to(common) else Path(path.name)
    return _Input(path, _without_ending(subject), "_".join(relative.parts) or "input", out)


def _apart(described: dict[Path, _Input], always_whole: Callable[[_Input], bool]) -> Iterable[tuple[Path, _Input, str]]:
    """Each input with its short name, or the whole one where another input has the same."""
    places = [str(one.beside / one.short).casefold() for one in described.values()]
    often = Counter(places)
    for (path, one), place in zip(described.items(), places, strict=True):
        yield path, one, one.whole if often[place] > 1 or always_whole(one) else one.short


def _common(paths: Sequence[Path]) -> Path:
    """The folder that all are in."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _is_directory_file(path: Path) -> bool:
    return path.name.upper() == "DICOMDIR" and not _is_folder(path)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - False, not an error, for a name that no file can have


def _without_ending(path: Path) -> str:
    return path.name if _is_folder(path) else _stem(path.name)


def _stem(name: str) -> str:
    ending = next((one for one in _INPUTS if name.lower().endswith(one) and len(name) > len(one)), "")
    return name[: len(name) - len(ending)]


def _has_twin(path: Path, short: str) -> bool:
    """Whether a file lies beside another input whose results would have its name: `a.nii` beside `a.nii.gz`."""
    if path.name == short or _is_directory_file(path) or _is_folder(path):
        return False
    try:
        with os.scandir(path.parent) as entries:
            beside = [entry for entry in entries if entry.name != path.name]
            return any(_twin(entry, short.casefold()) for entry in beside)
    except OSError:
        return False


def _twin(entry: os.DirEntry[str], short: str) -> bool:
    name = entry.name.casefold()
    if name == short:
        return True
    return name.startswith(short) and _stem(name) == short and not entry.is_dir()
