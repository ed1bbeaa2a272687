"""DICOMDIR: the files that a medium's directory refers to (PS3.3 F.5)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from medseg.dicom.archive import leaves_folder
from medseg.dicom.headers import look

IMAGE = "IMAGE"


@dataclass(frozen=True)
class Reference:
    """A file that a directory refers to.

    name: relative to the DICOMDIR, "/" between parts; empty for an image whose record names no file. series_uid: of the
    series record above it, empty where there is none. image: whether its record is of an image, as far as it says.
    """

    name: str
    series_uid: str
    image: bool


def references(directory: Dataset) -> list[Reference]:
    """All referenced files in record order, each once.

    Records are taken from the flat sequence, not by offsets, which media often have wrong; records out of use
    (0004,1410) are left out. Raises what pydicom does where the sequence is malformed.
    """
    files: dict[str, Reference] = {}
    nameless: list[Reference] = []
    series_uid = ""
    for record in directory.get("DirectoryRecordSequence") or []:
        if not isinstance(record, Dataset):
            continue
        attributes = look(record)
        kind = attributes.text("DirectoryRecordType").upper()
        if kind in ("PATIENT", "STUDY", "SERIES"):
            series_uid = attributes.text("SeriesInstanceUID")
        if attributes.number("RecordInUseFlag") == 0:
            continue
        name = "/".join(attributes.texts("ReferencedFileID"))
        if name:
            files.setdefault(name, Reference(name, series_uid, kind in (IMAGE, "")))
        elif kind == IMAGE:
            nameless.append(Reference("", series_uid, image=True))
    return [*files.values(), *nameless]


def resolve(folder: Path, name: str) -> Path | None:
    """The file of a referenced name, in any case of its letters; None where it is missing or outside the folder.

    A link inside the folder that leads out of it is outside, too.
    """
    if not name or leaves_folder(name):
        return None
    path = folder
    try:
        for part in name.split("/"):
            exact = path / part
            path = exact if exact.exists() else _any_case(path, part)
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
        return path if inside and path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _any_case(folder: Path, part: str) -> Path:
    """ISO 9660 media are mounted with names in either case."""
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.name.upper() == part.upper():
                return entry
    return folder / part
