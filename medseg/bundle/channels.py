"""Several series as one input: which series is which channel of a bundle, from the metadata's "medseg" key.

    "channels": [{"name": "FLAIR", "modality": "MR", "any": [{"SeriesDescription": ["*flair*"]}, ...], ...}, ...]

Conditions are data: globs, numbers from ... to, "present" or "absent". What they are held against is in `matching`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from pydicom.datadict import dictionary_VR, tag_for_keyword

from medseg.allowed import is_number
from medseg.bundle.schema import Reader

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


PREFERENCES: Final = ("most_slices", "thinnest", "latest")
#: What a channel is often called -> DICOM Modality. Others say nothing of it.
MODALITIES: Final[Mapping[str, str]] = {
    "ct": "CT",
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair", "adc", "dwi"), "MR"),
    **dict.fromkeys(("pet", "pt", "suv"), "PT"),
    "us": "US",
    "ultrasound": "US",
}
_PATIENT: Final = 0x0010
_PERSONAL: Final = frozenset({"PN", "DA", "TM", "DT"})
_ITSELF: Final = frozenset({"ct", "mr", "mri", "pet", "pt", "suv", "us", "ultrasound"})  # say no more than a modality


def read_channels(own: Reader, count: int, names: Mapping[int, str]) -> Channels | None:
    """The channels of a network of `count` of them; None for a network of one, where the metadata names none.

    names: what the channels are called elsewhere. Where the metadata says no more of them, a series fits whose
    description has that name as a word. Raises InvalidBundle.
    """
    if "channels" not in own:
        own.ignore("channels", "reference", "registration", "coverage")
        return by_names([names.get(number, f"channel {number}") for number in range(count)]) if count > 1 else None
    channels = tuple(_channel(entry) for entry in own.readers("channels"))
    called = [channel.name for channel in channels]
    if len(channels) != count:
        raise own.wrong("channels", f"the network has {count} input channels, found {len(channels)}")
    if len({name.casefold() for name in called}) < count:
        raise own.wrong("channels", f"expected different names, found {', '.join(called)}")
    first = next((channel.name for channel in channels if not channel.optional), called[0])
    reference = own.text("reference", first)
    chosen = next((channel for channel in channels if channel.name == reference), None)
    if chosen is None or chosen.optional:
        raise own.wrong("reference", f"expected one of {', '.join(called)} that is not optional, found {reference!r}")
    registration = own.text("registration", Registration.SAME_FRAME.value)
    if registration not in tuple(Registration):
        raise own.wrong("registration", f"expected {' or '.join(Registration)}, found {registration!r}")
    coverage = own.number("coverage", COVERAGE)
    if not LEAST_COVERAGE <= coverage <= 1.0:
        raise own.wrong("coverage", f"expected a share from {LEAST_COVERAGE:g} to 1, found {coverage:g}")
    return Channels(channels, reference, Registration(registration), coverage)


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


def _channel(entry: Reader) -> Channel:
    name = entry.text("name")
    if not name or re.search(r"[=#,]", name):
        raise entry.wrong("name", f"expected a name without =, # and commas, found {name!r}")
    channel = Channel(
        name=name,
        modality=tuple(text.upper() for text in entry.texts("modality")),
        any=tuple(_alternative(one) for one in entry.readers("any")) if "any" in entry else (),
        prefer=tuple(_preference(entry, text) for text in entry.texts("prefer")),
        phase=_phase(entry),
        optional=entry.flag("optional", False),
    )
    entry.ignore("any")
    entry.done()
    if not channel.any and not channel.modality:
        raise entry.wrong("any", "expected conditions, or a modality")
    return channel


def _alternative(entry: Reader) -> Alternative:
    barred = _conditions(entry.reader("not"))
    return Alternative(_conditions(entry, "not"), barred)


def _conditions(entry: Reader, *others: str) -> Conditions:
    keywords = [keyword for keyword in entry.content if keyword not in others]
    return tuple((keyword, _condition(entry, keyword)) for keyword in keywords)


def _condition(entry: Reader, keyword: str) -> Condition:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise entry.wrong(keyword, "no such attribute: expected the keyword of a DICOM attribute")
    if tag >> 16 == _PATIENT or dictionary_VR(tag) in _PERSONAL:  # what is told of a choice names nobody
        raise entry.wrong(keyword, "expected what says how an image was made, not who is on it or when")
    value: Any = entry.value(keyword)
    if value in tuple(Presence):
        return Presence(value)
    globs = [value] if isinstance(value, str) else value
    if isinstance(globs, list) and globs and all(isinstance(one, str) and one.strip() for one in globs):
        return Globs(tuple(globs))
    ends = value if isinstance(value, list) and len(value) == 2 else (None, None)
    known = [end for end in ends if end is not None]
    if known and all(is_number(end) for end in known) and known == sorted(known):
        least, most = (None if end is None else float(end) for end in ends)
        return Between(least, most)
    raise entry.wrong(keyword, f'expected texts with *, [least, most], "present" or "absent", found {value!r:.80}')


def _preference(entry: Reader, text: str) -> str:
    keyword, _, value = text.partition(":")
    if text not in PREFERENCES and not (value and tag_for_keyword(keyword) is not None):
        raise entry.wrong("prefer", f"expected {', '.join(PREFERENCES)} or KEYWORD:VALUE, found {text!r}")
    return text


def _phase(entry: Reader) -> PhaseRule | None:
    text = entry.maybe_text("phase")
    if text is None:
        return None
    keyword, _, pick = text.rpartition("=")
    number = _number(pick)
    known = pick in ((Pick.MAX, Pick.MIN) if keyword else (Pick.FIRST, Pick.LAST))
    place = number is not None and (bool(keyword) or (number >= 1 and number.is_integer()))
    if not (known or place) or (keyword and tag_for_keyword(keyword) is None):
        why = f"expected first, last, the volume's number, or KEYWORD=max, min or a number, found {text!r}"
        raise entry.wrong("phase", why)
    return PhaseRule(Pick(pick) if number is None else number, keyword or None)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
