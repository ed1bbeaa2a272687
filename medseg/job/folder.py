"""A result's folder: it appears whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from medseg.errors import OutputNotWritable
from medseg.results.identity import ResultKey

RECORD = "result.json"
THUMBNAIL = "thumbnail.jpg"


class Format(StrEnum):
    """What a result can be written as: a file each, of secondary captures a folder."""

    SEG = "seg"
    LABELMAP = "labelmap"
    SR = "sr"
    SC = "sc"
    KO = "ko"
    RTSTRUCT = "rtstruct"
    NIFTI = "nifti"
    PNG = "png"


FILES = {
    Format.SEG: "seg.dcm",
    Format.LABELMAP: "labelmap.dcm",
    Format.SR: "sr.dcm",
    Format.SC: "sc",
    Format.KO: "ko.dcm",
    Format.RTSTRUCT: "rtstruct.dcm",
    Format.NIFTI: "labels.nii.gz",
    Format.PNG: "overlay.png",
}
DICOM = frozenset(Format) - {Format.NIFTI, Format.PNG}
USUAL = frozenset({Format.SEG, Format.SR})
OF_FOUND = frozenset({Format.SEG, Format.LABELMAP, Format.KO, Format.RTSTRUCT})
"""Those that there are not where nothing was found."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the final one, that takes its place at the end and vanishes on any failure, and so do the
    folders around it that were made for it."""
    above = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        _remove_empty(above)
        raise OutputNotWritable(folder.parent, error.strerror or str(error)) from error
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise OutputNotWritable(folder, error.strerror or str(error)) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(above)  # where the result is there, they are not


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that hold nothing, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def kept_record(folder: Path, key: ResultKey) -> dict[str, Any] | None:
    """The record of the same result, where the folder holds one whose files are all there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = [folder / FILES[Format(kind)] for kind in record["outputs"]]  # it may have been moved as a whole
        same = record["result_key"] == key.digest and all(file.exists() for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if same else None
