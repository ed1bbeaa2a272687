"""Whether what is known of an object matches a search (PS3.4 C.2.2.2, PS3.18 8.3.4.1), value by value.

StudyDate=20240101-20240131      a range: also of times          PatientName=doe*      wildcards * and ?; of names
StudyInstanceUID=1.2,1.3         a list, also of codes                                  case does not matter
InstanceNumber=7                 a number, however it is written  AccessionNumber=     anything
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any, Final

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from gateway.dicomweb.dataset_json import Json, tag_of, values_of

RANGES: Final = frozenset(("DA", "TM", "DT"))
NUMBERS: Final = frozenset(("IS", "DS", "US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"))
_DIGITS: Final = {"DA": r"\d{8}", "TM": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", "DT": r"\d{4,14}(\.\d{1,6})?([+-]\d{4})?"}


@dataclass(frozen=True)
class Key:
    """An attribute, in a sequence or not, and what it is to be. path: tags, the last of which is asked for."""

    path: tuple[str, ...]
    wanted: str

    @property
    def vr(self) -> str:
        tag = int(self.path[-1], 16)
        return dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "UN"

    @property
    def listed(self) -> tuple[str, ...]:
        """The parts of a list: of UIDs, or of codes."""
        return tuple(one.strip() for one in re.split(r"[,\\]", self.wanted) if one.strip())

    def matches(self, values: Mapping[str, Json]) -> bool:
        """Whether it holds for an object's attributes."""
        if not self.wanted:
            return True
        found = list(_at(values, self.path))
        return any(self._is(value) for value in found) if found else self.wanted == "*"

    def _is(self, value: Any) -> bool:
        vr = self.vr
        if vr == "UI":
            return str(value) in self.listed
        if vr in NUMBERS:
            return _same_number(value, self.wanted)
        if vr in RANGES and "-" in self.wanted:
            return _in_range(str(value), *self.wanted.split("-", 1))
        if vr == "TM":
            return str(value).startswith(self.wanted)
        if vr == "PN":
            names = [str(name) for name in value.values()] if isinstance(value, dict) else [str(value)]
            return any(_like(self.wanted.casefold()).fullmatch(_name(name)) for name in names)
        patterns = self.listed if vr == "CS" else (self.wanted,)  # a code holds no comma
        return any(_like(one.strip()).fullmatch(str(value).strip()) for one in patterns)


def key_of(name: str, wanted: str) -> Key | None:
    """From a parameter of a search: a keyword, a tag, or several with full stops between them; None for any other."""
    tags = [tag_of(part) for part in name.split(".")]
    if None in tags:
        return None
    return Key(tuple(f"{int(tag):08X}" for tag in tags if tag is not None), wanted.strip())


def wrong_in(key: Key) -> str:
    """What is the matter with what is asked for; empty where nothing is."""
    if key.vr in RANGES and key.wanted and key.wanted != "*":
        ends = key.wanted.split("-", 1) if key.vr != "DT" else [key.wanted]
        if not any(ends) or any(end and not re.fullmatch(_DIGITS[key.vr], end) for end in ends):
            return f"expected a {key.vr} value or a range of two"
    if key.vr in NUMBERS and key.wanted and key.wanted != "*" and not _same_number(key.wanted, key.wanted):
        return "expected a number"
    return ""


def all_match(keys: Iterable[Key], values: Mapping[str, Json]) -> bool:
    return all(key.matches(values) for key in keys)


def _at(values: Mapping[str, Json], path: Sequence[str]) -> Iterable[Any]:
    first, *rest = path
    for one in values_of(values.get(first)):
        if not rest:
            yield one
        elif isinstance(one, dict):
            yield from _at(one, rest)


def _same_number(value: Any, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


def _in_range(value: str, low: str, high: str) -> bool:
    """Both ends belong to it; one that is left out is none. A time is as exact as it is written."""
    return bool(value) and (not low or value >= low) and (not high or value[: len(high)] <= high)


def _name(text: str) -> str:
    return text.rstrip("^ ").casefold()


@lru_cache(maxsize=256)
def _like(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")))  # which takes no time beyond the pattern's length
