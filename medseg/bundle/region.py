"""Where a bundle looks: a first pass over the image says it, roughly; the bundle's network runs there alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class LookMode(StrEnum):
    """What of an image the network sees. BOX: boxes cut out of it. WINDOWS: those of its windows that meet a box."""

    BOX = "box"
    WINDOWS = "windows"


class Statistics(StrEnum):
    """Of what percentiles, extremes, means and deviations are taken that the recipe asks for."""

    BOX = "box"
    IMAGE = "image"


class NotFound(StrEnum):
    """What follows where the first pass finds nothing. FLAG: a result without labels that says so."""

    REFUSE = "refuse"
    FLAG = "flag"


class Mirror(StrEnum):
    """An axis of the patient along which a box is turned round for the network."""

    LEFT_RIGHT = "LR"
    FRONT_BACK = "AP"
    HEAD_FOOT = "HF"

    @property
    def axis(self) -> int:
        """x, y or z of the patient."""
        return tuple(Mirror).index(self)


@dataclass(frozen=True)
class ByThreshold:
    """What lies from `least` to `most` (None: no end), in modality values, on a grid of `spacing_mm`."""

    least: float | None
    most: float | None
    spacing_mm: float

    @property
    def words(self) -> str:
        ends = (("from", self.least), ("up to", self.most))
        return f"values {' '.join(f'{word} {end:g}' for word, end in ends if end is not None)}"


@dataclass(frozen=True)
class ByBody:
    """The largest thing that is not air, on a grid of `spacing_mm`."""

    spacing_mm: float

    @property
    def words(self) -> str:
        return "body"


@dataclass(frozen=True)
class ByBundle:
    """What another bundle finds. name: a folder within the bundle, or a bundle that can be named.

    labels: those that count, by number; empty for all.
    """

    name: str
    labels: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        return f"bundle {self.name}"


FirstPass: TypeAlias = ByThreshold | ByBody | ByBundle


@dataclass(frozen=True)
class View:
    """How the network sees what has one label of the first pass.

    mirror: axes along which its boxes are turned round. labels: of the network -> in the result; the same where empty.
    """

    label: int
    mirror: tuple[Mirror, ...]
    labels: Mapping[int, int]


@dataclass(frozen=True)
class Region:
    """A first pass, and how what it finds is looked at.

    margin_mm: around each piece, along the patient's axes (left-right, front-back, head-foot).
    size_mm: of every box, about the middle of its piece, where it is given; then there is no margin.
    min_volume_ml: of a piece that counts. most: how many pieces of each label, the largest first; None for all.
    views: of the labels of the first pass; without any, all are seen as they lie.
    """

    first_pass: FirstPass
    mode: LookMode
    margin_mm: tuple[float, float, float]
    min_volume_ml: float = 0.0
    most: int | None = None
    statistics: Statistics = Statistics.BOX
    not_found: NotFound = NotFound.REFUSE
    views: tuple[View, ...] = ()
    size_mm: tuple[float, float, float] | None = None

    def view(self, label: int) -> View | None:
        """That of a label of the first pass."""
        return next((view for view in self.views if view.label == label), None)
