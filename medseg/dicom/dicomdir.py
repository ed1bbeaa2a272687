"""DICOMDIR: the files that a medium's directory refers to (PS3.3 F.5)."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset

from medseg.dicom.archive import leaves_folder
from medseg.dicom.headers import look


def referenced_names(directory: Dataset) -> list[str]:
    """Names of all referenced files relative to the DICOMDIR, "/" between parts, in record order, each once.

    Records are taken from the flat sequence, not by offsets, which media often have wrong; records out of use
    (0004,1410) are left out.
    """
    names: dict[str, None] = {}
    for record in directory.get("DirectoryRecordSequence") or []:
        attributes = look(record)
        parts = attributes.texts("ReferencedFileID")
        if parts and attributes.number("RecordInUseFlag") != 0:
            names["/".join(parts)] = None
    return list(names)


def resolve(folder: Path, name: str) -> Path | None:
    """The file of a referenced name, in any case of its letters; None where it is missing or outside the folder."""
    if leaves_folder(name):
        return None
    path = folder
    for part in name.split("/"):
        exact = path / part
        path = exact if exact.exists() else _any_case(path, part)
    return path if path.is_file() else None


def _any_case(folder: Path, part: str) -> Path:
    """ISO 9660 media are mounted with names in either case."""
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.name.upper() == part.upper():
                return entry
    return folder / part
