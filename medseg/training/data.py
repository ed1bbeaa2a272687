"""Labelled cases on disk: pairs of image and label, and which of them are set aside.

    DATA/
      images/ID.nii.gz        one volume a case; for a bundle of several channels ID_T1.nii.gz, ID_FLAIR.nii.gz ...
      labels/ID.nii.gz        the same grid, a whole number a voxel, 0 for background

To be scored, a case may also be a folder DATA/ID with the DICOM images of one study and a SEG or RTSTRUCT of them.

An id names a patient: what is set aside is set aside by id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from medseg.allowed import INTEGER
from medseg.bundle.channels import Channels
from medseg.errors import InputError

SUFFIXES = (".nii.gz", ".nii")
IMAGES, LABELS = "images", "labels"


class UnusableCase(InputError):
    """A case whose image and label do not go together."""

    code = "unusable_case"

    def __init__(self, case: str, why: str) -> None:
        super().__init__(f"case {case}: {why}")
        self.case, self.why = case, why


class NoCases(InputError):
    """A data folder without a single pair of image and label that is asked for."""

    code = "no_cases"

    def __init__(self, folder: Path, which: str) -> None:
        super().__init__(
            f"{folder}: no cases {which}: expected NIfTI pairs of one name in images/ and labels/, or, to be scored, a "
            "folder for each case with DICOM images and their SEG or RTSTRUCT"
        )
        self.folder, self.which = folder, which


@dataclass(frozen=True)
class LabelledCase:
    """One patient's image and its reference label.

    channels: of a bundle with several, the file of each that is there, by its name; `image` is the reference's.
    """

    id: str
    image: Path
    label: Path
    channels: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class DicomCase:
    """One patient's images and their reference, as DICOM in a folder."""

    id: str
    folder: Path


_Case = TypeVar("_Case", bound=LabelledCase | DicomCase)


@dataclass(frozen=True)
class HeldOut:
    """Which cases are set aside: those whose id hashes to ``remainder`` modulo ``modulus``.

    The hash looks at the id alone, so a case stays on its side when others are added or removed.
    """

    modulus: Annotated[int, INTEGER] = 5
    remainder: Annotated[int, INTEGER] = 0

    def __call__(self, case_id: str) -> bool:
        digest = hashlib.sha256(case_id.encode()).digest()
        return int.from_bytes(digest, "big") % self.modulus == self.remainder


def case_id(path: Path) -> str:
    """``hippocampus_001.nii.gz`` -> ``hippocampus_001``."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def find_cases(folder: Path, channels: Channels | None = None) -> list[LabelledCase]:
    """Pairs under ``images/`` and ``labels/``, ordered by id. channels: the bundle's; of several, those that are not
    optional must be there.
    """
    images, labels = ({case_id(p): p for p in _volumes(folder / part)} for part in (IMAGES, LABELS))
    if channels is None or len(channels.each) == 1:
        return [LabelledCase(name, images[name], labels[name]) for name in sorted(images.keys() & labels.keys())]
    wanted = {channel.name for channel in channels.each if not channel.optional} | {channels.reference}
    by_name = {name.casefold(): path for name, path in images.items()}
    cases = []
    for case in sorted(labels):
        files = {name: by_name.get(f"{case}_{name}".casefold()) for name in channels.names}
        there = {name: path for name, path in files.items() if path is not None}
        if wanted <= there.keys():
            cases.append(LabelledCase(case, there[channels.reference], labels[case], there))
    return cases


def find_dicom_cases(folder: Path) -> list[DicomCase]:
    """The folders in DATA but for images/ and labels/, ordered by id: the folder's name."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    kept = (path for path in inside if path.is_dir() and path.name not in (IMAGES, LABELS))
    return [DicomCase(path.name, path) for path in kept if not path.name.startswith(".")]


def split(cases: Iterable[_Case], held_out: HeldOut) -> tuple[list[_Case], list[_Case]]:
    """(for training, set aside)."""
    training: list[_Case] = []
    aside: list[_Case] = []
    for case in cases:
        (aside if held_out(case.id) else training).append(case)
    return training, aside


def digest(cases: Sequence[LabelledCase]) -> str:
    """SHA-256 over ids and bytes of images and labels: what a model was trained on."""
    total = hashlib.sha256()
    for case in cases:
        images = [(f"{case.id}_{name}", path) for name, path in case.channels.items()] or [(case.id, case.image)]
        for name, path in (*images, (case.id, case.label)):
            total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _volumes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
