"""One study, from its series to its results: what the command line, a cohort and the gateway's worker call.

    series --plan--> jobs (a stack and the bundle that fits it), and refusals with their reasons
    job    --run---> a folder of verified results: all of them, or none
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import choose, fits
from medseg.dicom.geometry import classify
from medseg.dicom.series import Series, Stack
from medseg.errors import (
    DoesNotFit,
    GeometryRefused,
    MedsegError,
    OutOfMemory,
    OutputExists,
    OutputNotWritable,
    UsageError,
)
from medseg.progress import Cancelled, Progress, Report, Stage, never, silent

logger = logging.getLogger(__name__)

RECORD = "result.json"


class Format(StrEnum):
    """What a result can be written as, and the file it becomes."""

    SEG = "seg"
    SR = "sr"
    NIFTI = "nifti"
    PNG = "png"

    @property
    def file(self) -> str:
        return {"seg": "seg.dcm", "sr": "sr.dcm", "nifti": "labels.nii.gz", "png": "overlay.png"}[self.value]


@dataclass(frozen=True, eq=False)
class Job:
    """A stack and the bundle that is to segment it. folder: name of its result folder."""

    stack: Stack
    bundle: Bundle
    folder: str


@dataclass(frozen=True, eq=False)
class Refused:
    """A series, or a part of one, that is not segmented; the error says why."""

    series: Series
    bundle: str | None
    error: MedsegError

    def record(self) -> dict[str, Any]:
        """As a line of JSON."""
        return {
            "study_uid": self.series.study_uid,
            "series_uid": self.series.series_uid,
            "bundle": self.bundle,
            "error": {"code": self.error.code, "message": str(self.error)},
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done with a study."""

    jobs: tuple[Job, ...]
    refused: tuple[Refused, ...]


def plan(
    series: Sequence[Series],
    bundles: Sequence[Bundle],
    *,
    explicit: bool = False,
    assume_frame_of_reference: bool = False,
) -> Plan:
    """Match each series of one study with a bundle.

    explicit: the one bundle was named by the user, so its hints about descriptions do not bind; what it needs to
    be right (modality, field of view) does.
    """
    jobs: list[Job] = []
    refused: list[Refused] = []
    for one in sorted(series, key=lambda s: (s.number if s.number is not None else -1, s.series_uid)):
        verdict = classify(one, assume_frame_of_reference=assume_frame_of_reference)
        refused += [
            Refused(one, None, GeometryRefused(one.series_uid, refusal.reason, refusal.detail))
            for refusal in verdict.refusals
        ]
        for stack in verdict.stacks:
            try:
                bundle = _named(stack, bundles[0]) if explicit else choose(stack, bundles)
            except MedsegError as error:
                refused.append(Refused(one, bundles[0].name if explicit else None, error))
            else:
                jobs.append(Job(stack, bundle, _folder(stack, bundle, {job.folder for job in jobs})))
    return Plan(tuple(jobs), tuple(refused))


def _named(stack: Stack, bundle: Bundle) -> Bundle:
    reasons = fits(stack, bundle, hints=False)
    if reasons:
        raise DoesNotFit(stack.series.series_uid, bundle.name, reasons)
    return bundle


def _folder(stack: Stack, bundle: Bundle, taken: set[str]) -> str:
    """SERIESNUMBER_BUNDLE, with -2, -3, ... where a study repeats a number or a series splits into stacks."""
    number = stack.series.number if stack.series.number is not None else 0
    names = (f"{number}{suffix}_{bundle.name}" for suffix in ("", *(f"-{n}" for n in range(2, len(taken) + 2))))
    return next(name for name in names if name not in taken)
