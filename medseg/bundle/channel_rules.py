"""Channels of a bundle, from the metadata's "medseg" key.

"channels": [{"name": "FLAIR", "modality": "MR", "any": [{"SeriesDescription": ["*flair*"]}, ...], ...}, ...]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pydicom.datadict import tag_for_keyword

from medseg.bundle.channels import (
    COVERAGE,
    LEAST_COVERAGE,
    Alternative,
    Channel,
    Channels,
    PhaseRule,
    Pick,
    Registration,
    by_names,
)
from medseg.bundle.expects import read_preference, read_terms
from medseg.bundle.schema import Reader
from medseg.conditions.subjects import is_personal
from medseg.conditions.terms import Language

_PATIENT: Final = 0x0010


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


def _channel(entry: Reader) -> Channel:
    name = entry.text("name")
    if not name or re.search(r"[=#,]", name):
        raise entry.wrong("name", f"expected a name without =, # and commas, found {name!r}")
    channel = Channel(
        name=name,
        modality=tuple(text.upper() for text in entry.texts("modality")),
        any=tuple(_alternative(one) for one in entry.readers("any")) if "any" in entry else (),
        prefer=tuple(read_preference(entry, text) for text in entry.texts("prefer")),
        phase=_phase(entry),
        optional=entry.flag("optional", False),
    )
    entry.ignore("any")
    entry.done()
    if not channel.any and not channel.modality:
        raise entry.wrong("any", "expected conditions, or a modality")
    return channel


def _alternative(entry: Reader) -> Alternative:
    """Of a channel each condition under `not` bars by itself."""
    terms = {name: value for name, value in entry.content.items() if name != "not"}
    return Alternative(read_terms(entry, terms, LANGUAGE), read_terms(entry, entry.value("not", {}), LANGUAGE))


def _bars(subject: str) -> str:
    """What is told of a channel names nobody."""
    tag = tag_for_keyword(subject)
    names = tag is not None and (tag >> 16 == _PATIENT or is_personal(subject))
    return "expected what says how an image was made, not who is on it or when" if names else ""


LANGUAGE: Final = Language(of_bundles=True, bars=_bars)


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
