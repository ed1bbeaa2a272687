"""Labelled cases on disk: pairs of image and label, and which of them are set aside.

    DATA/
      images/ID.nii.gz        one volume a case
      labels/ID.nii.gz        the same grid, a whole number a voxel, 0 for background

An id names a patient: what is set aside is set aside by id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medseg.allowed import INTEGER
from medseg.errors import InputError

SUFFIXES = (".nii.gz", ".nii")


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
        super().__init__(f"{folder}: no cases {which}: expected NIfTI pairs of one name in images/ and labels/")
        self.folder, self.which = folder, which


@dataclass(frozen=True)
class LabelledCase:
    """One patient's image and its reference label."""

    id: str
    image: Path
    label: Path


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


def find_cases(folder: Path) -> list[LabelledCase]:
    """Pairs under ``images/`` and ``labels/``, ordered by id."""
    images, labels = ({case_id(p): p for p in _volumes(folder / part)} for part in ("images", "labels"))
    return [LabelledCase(name, images[name], labels[name]) for name in sorted(images.keys() & labels.keys())]


def split(cases: Iterable[LabelledCase], held_out: HeldOut) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """(for training, set aside)."""
    training: list[LabelledCase] = []
    aside: list[LabelledCase] = []
    for case in cases:
        (aside if held_out(case.id) else training).append(case)
    return training, aside


def digest(cases: Sequence[LabelledCase]) -> str:
    """SHA-256 over ids and bytes of images and labels: what a model was trained on."""
    total = hashlib.sha256()
    for case in cases:
        for path in (case.image, case.label):
            total.update(case.id.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _volumes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
