"""What of an input is in no volume, by the series that may have lost it: for the record, the report and the page.

A file that cannot be read does not say which series it is of. It counts for those whose images lie nearest to it: in
the same folder, else below the nearest folder that has any.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Final, TypeAlias

from medseg.dicom.announced import missing
from medseg.dicom.candidates import Skipped, SkipReason
from medseg.dicom.geometry import Refusal
from medseg.dicom.headers import EMPTY, NOT_DICOM
from medseg.dicom.reason import Reason
from medseg.dicom.series import Finding, LeftOut, Series, Stack
from medseg.dicom.sources import FoundInstances

__all__ = ["CODE", "is_volume", "key", "may_be_an_image", "missing", "of_refusals", "series_of", "told"]

Key: TypeAlias = tuple[str, str]

CODE: Final = "left_out"
#: Planes that are of no volume by what they say of themselves: nothing is lost with them.
_NO_VOLUME = (Reason.LOCALIZER, Reason.COLOUR)
_ALIKE = {
    SkipReason.DUPLICATE: "the same object as another file",
    SkipReason.MISSING: "a DICOMDIR refers to them",
}


def key(series: Series) -> Key:
    """A series UID may be used in two studies."""
    return series.study_uid, series.series_uid


def series_of(found: FoundInstances) -> list[Series]:
    """The series of an input, each with the files that gave no image and may be of it."""
    series = found.series()
    files = _files(found.skipped, _Near(series))
    return [replace(one, left_out=files.get(key(one), ())) for one in series]


def _files(skipped: Sequence[Skipped], near: _Near) -> Mapping[Key, tuple[LeftOut, ...]]:
    counted: dict[Key, Counter[tuple[SkipReason, str, bool]]] = defaultdict(Counter)
    for file in skipped:
        entry = (file.code, _ALIKE.get(file.code, file.why), may_be_an_image(file, near.endings))
        for one in near.series(file):
            counted[one][entry] += 1
    return {
        one: tuple(
            LeftOut(str(code), count, "files", why, lost, here=code is not SkipReason.MISSING)
            for (code, why, lost), count in sorted(entries.items())
        )
        for one, entries in counted.items()
    }


def may_be_an_image(skipped: Skipped, endings: frozenset[str]) -> bool:
    """Whether an image may be lost with a file. One that is no DICOM at all counts where it is named as images are."""
    if skipped.code in (SkipReason.NOT_AN_IMAGE, SkipReason.DUPLICATE):
        return False
    if skipped.code is SkipReason.UNREADABLE and skipped.why in (EMPTY, NOT_DICOM):
        return _ending(skipped.name) in endings | {".dcm", ".dicom", ".ima"}
    return True


def is_volume(reason: str) -> bool:
    """Whether what was refused for a reason may have been part of a volume."""
    return reason not in _NO_VOLUME


def of_refusals(refusals: Iterable[Refusal]) -> tuple[LeftOut, ...]:
    """The slices of a series that are in none of its volumes."""
    return tuple(LeftOut(str(one.reason), one.slices, "slices", one.detail, is_volume(one.reason)) for one in refusals)


def told(stack: Stack, left_out: tuple[LeftOut, ...]) -> Stack:
    """A stack that knows what was left out beside it; its findings say what of that may be a loss."""
    findings = (Finding(CODE, one.sentence) for one in left_out if one.lost)
    return replace(stack, left_out=left_out, findings=(*stack.findings, *findings))


def _ending(name: str) -> str:
    """Of a file's name, in small letters; a number is none, as in `IM.0001` or a UID."""
    ending = PurePath(name).suffix.lower()
    return "" if ending[1:].isdigit() else ending


class _Near:
    """Series by the folders that their images are in or below."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._all = {key(one) for one in series}
        self._in: dict[PurePath, set[Key]] = defaultdict(set)
        self._below: dict[PurePath, set[Key]] = defaultdict(set)
        endings = set()
        for one in series:
            for name in {PurePath(instance.name) for instance in one.instances}:
                endings.add(_ending(name.name))
                self._in[name.parent].add(key(one))
        self.endings = frozenset(endings)
        for folder, keys in list(self._in.items()):
            for above in (folder, *folder.parents):
                self._below[above] |= keys

    def series(self, skipped: Skipped) -> set[Key]:
        """Those that a file is said to be of, else those whose images lie nearest to it."""
        stated = {one for one in self._all if one[1] == skipped.series_uid}
        if stated:
            return stated
        folder = PurePath(skipped.name).parent
        if folder in self._in:
            return self._in[folder]
        return next((self._below[above] for above in (folder, *folder.parents) if above in self._below), self._all)
