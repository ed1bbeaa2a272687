"""Several series as one input: which series is which channel of a bundle.

Conditions are data: globs, numbers from ... to, "present" or "absent". `channel_rules` reads them, `matching` holds
volumes against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

COVERAGE: Final = 0.95
LEAST_COVERAGE: Final = 0.5


@dataclass(frozen=True)
class Globs:
    """One of the attribute's values is like one of these, case ignored. words: whole words of it are."""

    any: tuple[str, ...]
    words: bool = False

    def __str__(self) -> str:
        return " or ".join(self.any)


@dataclass(frozen=True)
class Between:
    """One of the attribute's values is a number from `least` to `most`; None: no limit."""

    least: float | None
    most: float | None

    def __str__(self) -> str:
        if self.least is None:
            return f"to {self.most:g}"
        return f"from {self.least:g}" + ("" if self.most is None else f" to {self.most:g}")


class Presence(StrEnum):
    """Whether the attribute says that there is something."""

    PRESENT = "present"
    ABSENT = "absent"


Condition: TypeAlias = Globs | Between | Presence
Conditions: TypeAlias = tuple[tuple[str, Condition], ...]
"""By the attribute's keyword."""


@dataclass(frozen=True)
class Alternative:
    """All of `conditions` hold, and none of `barred`."""

    conditions: Conditions = ()
    barred: Conditions = ()

    def __str__(self) -> str:
        told = [f"{keyword} {condition}" for keyword, condition in self.conditions]
        told += [f"no {keyword} {condition}" for keyword, condition in self.barred]
        return " and ".join(told)


class Pick(StrEnum):
    """Which volume of a series with several is meant."""

    MAX = "max"
    MIN = "min"
    FIRST = "first"
    LAST = "last"


@dataclass(frozen=True)
class PhaseRule:
    """One of the volumes of a series: by its place among them, or by an attribute's number.

    pick: or the place, from 1 on; or with a keyword the number itself.
    """

    pick: Pick | float
    keyword: str | None = None

    def __str__(self) -> str:
        pick = self.pick if isinstance(self.pick, Pick) else f"{self.pick:g}"
        return f"{self.keyword}={pick}" if self.keyword else str(pick)


@dataclass(frozen=True)
class Channel:
    """An input channel of a network. any: tried in their order; none: whatever has the modality.

    prefer: among several that fit, "most_slices", "thinnest", "latest", or KEYWORD:VALUE. optional: where no series
    fits, the network is given zeros.
    """

    name: str
    modality: tuple[str, ...] = ()
    any: tuple[Alternative, ...] = ()
    prefer: tuple[str, ...] = ()
    phase: PhaseRule | None = None
    optional: bool = False

    @property
    def wanted(self) -> str:
        """What fits, for a person."""
        fits = "; or ".join(str(one) for one in self.any)
        return ", ".join(text for text in (" or ".join(self.modality), fits) if text) or "any that is named"


class Registration(StrEnum):
    """What is known of how channels lie to each other. DONE: they were registered, whatever frame they name."""

    SAME_FRAME = "same_frame"
    DONE = "done"


@dataclass(frozen=True)
class Channels:
    """All channels, in the network's order. reference: the one whose grid and slices the result has.

    coverage: the share of that grid that each must cover.
    """

    each: tuple[Channel, ...]
    reference: str
    registration: Registration = Registration.SAME_FRAME
    coverage: float = COVERAGE

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.each)


#: What a channel is often called -> DICOM Modality. Others say nothing of it.
MODALITIES: Final[Mapping[str, str]] = {
    "ct": "CT",
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair", "adc", "dwi"), "MR"),
    **dict.fromkeys(("pet", "pt", "suv"), "PT"),
    "us": "US",
    "ultrasound": "US",
}
_ITSELF: Final = frozenset({"ct", "mr", "mri", "pet", "pt", "suv", "us", "ultrasound"})  # say no more than a modality


def by_names(names: list[str]) -> Channels:
    """Channels of which nothing is known but what they are called."""
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    return Channels(tuple(_by_name(name) for name in names), names[0])


def _by_name(name: str) -> Channel:
    word = name.strip().casefold()
    modality = MODALITIES.get(word)
    named = () if word in _ITSELF else (Alternative((("SeriesDescription", Globs((name,), words=True)),)),)
    return Channel(name, (modality,) if modality else (), named)
