"""Several series as one input: which series is which channel of a bundle.

Conditions are data (`medseg.conditions`). `channel_rules` reads them, `matching` holds volumes against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from medseg.conditions.patterns import Wildcard
from medseg.conditions.terms import Condition, Term, wanted

COVERAGE: Final = 0.95
LEAST_COVERAGE: Final = 0.5


@dataclass(frozen=True)
class Alternative:
    """All of `conditions` hold, and none of `barred`, each by itself."""

    conditions: tuple[Term, ...] = ()
    barred: tuple[Term, ...] = ()

    def __str__(self) -> str:
        told = [wanted(term) for term in self.conditions]
        return " and ".join(told + [f"no {wanted(term)}" for term in self.barred])


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


def with_words(channels: Channels, also: Mapping[str, tuple[str, ...]]) -> Channels:
    """Channels with a site's own words for series descriptions, by channel: they go before the bundle's conditions."""
    return replace(channels, each=tuple(_with_words(one, also.get(one.name, ())) for one in channels.each))


def _with_words(channel: Channel, words: tuple[str, ...]) -> Channel:
    if not words:
        return channel
    of_its_modality = Condition("Modality", "Modality", tuple(map(Wildcard, channel.modality)))
    return replace(channel, any=(described(*words), *(channel.any or (Alternative((of_its_modality,)),))))


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
    named = () if word in _ITSELF else (described(name, words=True),)
    return Channel(name, (modality,) if modality else (), named)


def described(*texts: str, words: bool = False) -> Alternative:
    """Series whose description is like one of these texts. words: has it as a whole word."""
    like = tuple(Wildcard(text, words) for text in texts)
    return Alternative((Condition("SeriesDescription", "SeriesDescription", like),))
