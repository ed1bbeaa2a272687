"""The studies of an input, each as the series that `medseg.job.plan.plan` takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.dicom import left_out
from medseg.dicom.series import Series
from medseg.dicom.sources import find_instances
from medseg.errors import EmptyInput, UsageError


def read_studies(path: Path | str) -> dict[str, list[Series]]:
    """The series of each study of a DICOM file, folder, zip or DICOMDIR, by StudyInstanceUID, in order of UIDs.

    Headers only; pixels are read when a series is segmented. Each series knows which files may be lost of it
    (`Series.left_out`).

    Raises:
        NoSuchInput, UnsafeArchive: see `find_instances`.
        EmptyInput: there is no DICOM image at all; a NIfTI volume is for `plan_nifti`.
    """
    path = Path(path)
    found = find_instances(path)
    if not found.instances:
        raise EmptyInput(path, found.looked_at)
    studies: dict[str, list[Series]] = {}
    for series in left_out.series_of(found):
        studies.setdefault(series.study_uid, []).append(series)
    return studies


def read_study(path: Path | str, study_uid: str | None = None) -> list[Series]:
    """The series of one study: of the only one there is, or of the one that is named; by series number.

    Raises:
        UsageError: there are several studies and none is named, or the named one is not among them.
        NoSuchInput, UnsafeArchive, EmptyInput: see `read_studies`.
    """
    studies = read_studies(path)
    if study_uid is None:
        if len(studies) > 1:
            raise UsageError(f"{path}: expected one study, found {_listed(list(studies))}: name one of them")
        return next(iter(studies.values()))
    if study_uid not in studies:
        raise UsageError(f"{path}: no study {study_uid}, found {_listed(list(studies))}")
    return studies[study_uid]


def _listed(uids: Sequence[str]) -> str:
    """How many there are, and the first few."""
    return f"{len(uids)} ({', '.join(uids[:5])}{', ...' if len(uids) > 5 else ''})"
