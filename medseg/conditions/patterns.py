"""Patterns: what the value of a condition may be. Each admits some texts, and is read from what stands in the settings.

    text     "*T1*"         * stands for anything, upper and lower case are the same
    exact    "CT01"         AE titles and UIDs
    number   ">=20"         "<3", "1..1.5", 5
    moment   ">=20260101"   "20260101-20261231", "-20251231", "2026"      dates; times and both in one alike
    age      ">=18"         "2..17", "<6M"                                 completed years, months, weeks, days
    plane    "axial"      "axial 10", "oblique 10"                         turned by less, or by no less, degrees
    contrast "given"      "none", "not known"
    body part "HEAD"      "SCT:69536005"                                   a text or a code

In bundles also, or in place of texts:

    wildcard "*t1?"       * and ?, as file names have them
    word     "T1"         a whole word of the value
    presence "present"    "absent": the value says that there is nothing, such as NONE
    number   [20, null]   from ... to

An absent value is an empty text, which texts compare as it is. With all others nothing can be compared that is absent
or malformed: it is neither admitted nor not.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any, ClassVar, Final, TypeAlias

from medseg.allowed import Allowed, ae_title, is_number, string, text
from medseg.conditions.body_parts import canonical
from medseg.conditions.clock import Ages, ClockKind, Moments
from medseg.dicom.planes import OBLIQUE_DEG, PLANES

#: Whether a value is admitted; None where it cannot be compared.
Admitted: TypeAlias = bool | None


@dataclass(frozen=True)
class Glob:
    """A text in which * stands for anything; upper and lower case are the same."""

    text: str
    kind: ClassVar[str] = "text"

    def admits(self, value: str) -> Admitted:
        pattern = ".*".join(re.escape(part) for part in self.text.casefold().split("*"))
        return re.fullmatch(pattern, value.casefold(), re.DOTALL) is not None

    def covers(self, other: Pattern) -> bool:
        """Whether all that another pattern admits is admitted, as far as can be told: its * only passes for a *."""
        return isinstance(other, Glob) and self.admits(other.text) is True

    def __str__(self) -> str:
        return json.dumps(self.text, ensure_ascii=False)


@dataclass(frozen=True)
class Exactly:
    """The very text, but for padding: as AE titles and UIDs are compared."""

    text: str
    kind: ClassVar[str] = "exact text"

    def admits(self, value: str) -> Admitted:
        return value.strip() == self.text

    def covers(self, other: Pattern) -> bool:
        return self == other

    def __str__(self) -> str:
        return json.dumps(self.text, ensure_ascii=False)


_DECIMAL = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without these two where it is `open`. text: as in the file."""

    text: str
    kind: ClassVar[str] = "number"
    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    @classmethod
    def read(cls, value: Any) -> Range:
        """From 5, "5", ">=5", "<5" or "1..1.5". Raises ValueError."""
        text = str(value).replace(" ", "")
        between = re.fullmatch(rf"({_DECIMAL})\.\.({_DECIMAL})", text)
        if between and float(between[1]) <= float(between[2]):
            return cls(text, float(between[1]), float(between[2]))
        compared = re.fullmatch(rf"(<=|>=|<|>|)({_DECIMAL})", text)
        if isinstance(value, bool) or not compared:
            raise ValueError(value)
        sign, number = compared[1], float(compared[2])
        low = -math.inf if "<" in sign else number
        high = math.inf if ">" in sign else number
        return cls(text, low, high, open=sign in ("<", ">"))

    def admits(self, value: str) -> Admitted:
        try:
            number = float(value)
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        return self.low < number < self.high if self.open else self.low <= number <= self.high

    def covers(self, other: Pattern) -> bool:
        if not isinstance(other, Range):
            return False
        wide = self.low <= other.low and other.high <= self.high
        touching = (self.low == other.low and math.isfinite(self.low)) or (
            self.high == other.high and math.isfinite(self.high)
        )
        return wide and not (self.open and not other.open and touching)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class PlanePattern:
    """The plane in which images lie: turned out of it by less than `deg`; of "oblique": out of each by no less.

    A value is the nearest plane and by how many degrees images are turned out of that: "axial 3.5".
    """

    text: str
    name: str
    deg: float = OBLIQUE_DEG
    kind: ClassVar[str] = "plane"

    @classmethod
    def read(cls, value: Any) -> PlanePattern:
        """From "axial" or "axial 10". Raises ValueError."""
        name, _, deg = string(value).partition(" ")
        if name not in PLANES or not re.fullmatch(r"(\d{1,2}(\.\d+)?)?", deg) or (deg and not 0 < float(deg) <= 54):
            raise ValueError(value)
        return cls(value, name, float(deg) if deg else OBLIQUE_DEG)

    def admits(self, value: str) -> Admitted:
        if not value:
            return None
        nearest, _, deg = value.partition(" ")
        return float(deg) >= self.deg if self.is_oblique else nearest == self.name and float(deg) < self.deg

    @property
    def is_oblique(self) -> bool:
        return self.name == PLANES[-1]

    def covers(self, other: Pattern) -> bool:
        if not isinstance(other, PlanePattern) or other.name != self.name:
            return False
        return self.deg <= other.deg if self.is_oblique else self.deg >= other.deg

    def excludes(self, other: PlanePattern) -> bool:
        """Whether no image lies in both."""
        if self.is_oblique == other.is_oblique:
            return self.name != other.name
        oblique, straight = (self, other) if self.is_oblique else (other, self)
        return oblique.deg >= straight.deg

    def __str__(self) -> str:
        return json.dumps(self.text)


GIVEN, NO_CONTRAST, NOT_KNOWN = "given", "none", "not known"


@dataclass(frozen=True)
class ContrastPattern:
    """What is known of a contrast agent. A value is GIVEN, NO_CONTRAST, or empty where nothing is known."""

    text: str
    kind: ClassVar[str] = "contrast"

    @classmethod
    def read(cls, value: Any) -> ContrastPattern:
        if value not in (GIVEN, NO_CONTRAST, NOT_KNOWN):
            raise ValueError(value)
        return cls(value)

    def admits(self, value: str) -> Admitted:
        if self.text == NOT_KNOWN:
            return not value
        return value == self.text if value else None

    def covers(self, other: Pattern) -> bool:
        return self == other

    def __str__(self) -> str:
        return json.dumps(self.text)


@dataclass(frozen=True)
class BodyCode:
    """A body part by its code; codes of the same body part are the same."""

    text: str
    kind: ClassVar[str] = "code"

    FORM: ClassVar = r"[A-Za-z0-9_]{1,16}:[A-Za-z0-9.-]{1,16}"

    def admits(self, value: str) -> Admitted:
        return canonical(value) == canonical(self.text) if re.fullmatch(self.FORM, value) else None

    def covers(self, other: Pattern) -> bool:
        return isinstance(other, BodyCode) and canonical(other.text) == canonical(self.text)

    def __str__(self) -> str:
        return json.dumps(self.text)


@dataclass(frozen=True)
class Wildcard:
    """A text with * and ?, upper and lower case the same. words: whole words of the value, without these."""

    text: str
    words: bool = False
    kind: ClassVar[str] = "text"

    def admits(self, value: str) -> Admitted:
        return _like(self.text, self.words).search(value) is not None

    def covers(self, other: Pattern) -> bool:
        return self == other

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=512)
def _like(pattern: str, words: bool) -> re.Pattern[str]:
    if words:
        return re.compile(rf"(?<![^\W_]){re.escape(pattern.strip())}(?![^\W_])", re.IGNORECASE)
    return re.compile(r"\A" + translate(pattern.strip()), re.IGNORECASE)


NOTHING_TOLD: Final = frozenset({"NONE", "NO", "N"})
"""As a value, says that there is nothing."""


PRESENCES: Final = ("present", "absent")


@dataclass(frozen=True)
class Presence:
    """Whether an attribute says that there is something: one of PRESENCES."""

    text: str
    kind: ClassVar[str] = "presence"

    def admits(self, value: str) -> Admitted:
        """value: all of the attribute, its parts joined by backslashes."""
        if not value.strip("\\ "):
            return None
        nothing = all(part.strip().upper() in NOTHING_TOLD for part in value.split("\\"))
        return nothing is (self.text == PRESENCES[1])

    def covers(self, other: Pattern) -> bool:
        return self == other

    def __str__(self) -> str:
        return self.text


Pattern: TypeAlias = (
    Glob | Exactly | Range | Moments | Ages | PlanePattern | ContrastPattern | BodyCode | Wildcard | Presence
)
#: Of texts: an absent one is an empty one, where it is not to count as not known.
OF_TEXT: Final = (Glob, Exactly, Wildcard)


def body_part(value: Any, of_text: type[Glob | Wildcard] = Glob) -> Glob | Wildcard | BodyCode:
    """A text, or SCHEME:VALUE. Raises ValueError."""
    return BodyCode(value) if re.fullmatch(BodyCode.FORM, string(value)) else of_text(value)


def pair(value: Any) -> Range:
    """[least, most], null for no limit. Raises ValueError."""
    ends = value if isinstance(value, list) and len(value) == 2 else [None, None]
    known = [end for end in ends if end is not None]
    if not known or not all(is_number(end) and math.isfinite(end) for end in known) or known != sorted(known):
        raise ValueError(value)
    least, most = ends
    told = f"{least:g}..{most:g}" if len(known) == 2 else f"<={most:g}" if least is None else f">={least:g}"
    return Range(told, -math.inf if least is None else least, math.inf if most is None else most)


_OR_LIST = ", or a list of them"
GLOB = Allowed(f"a text (* stands for anything){_OR_LIST}", lambda value: Glob(string(value)))
EXACT_AE = Allowed(f"an AE title{_OR_LIST}", lambda value: Exactly(ae_title(value)))
EXACT_UID = Allowed(f"a UID{_OR_LIST}", lambda value: Exactly(text(value).strip()))
NUMBERS = Allowed(f'a number, or a text such as ">=20", "<3" or "1..1.5"{_OR_LIST}', Range.read)
DATES = Allowed(
    f'a date such as "20260131", a part of one such as "2026", or a text such as ">=20260131", "<20260131" or '
    f'"20260101-20261231"{_OR_LIST}',
    Moments.reading(ClockKind.DATE),
)
TIMES = Allowed(
    f'a time of day such as "073000", a part of one such as "07", or a text such as ">=1900" or "0700-1859" '
    f"(not over midnight){_OR_LIST}",
    Moments.reading(ClockKind.TIME),
)
DATE_TIMES = Allowed(
    f'a date and time such as "20260131073000", a part of one such as "20260131", or a text such as ">=20260131" or '
    f'"20260101-20261231"{_OR_LIST}',
    Moments.reading(ClockKind.DATE_TIME),
)
AGES = Allowed(
    f'an age in completed years, or with D, W, M or Y: 18, or a text such as ">=18", "<6M" or "2..17"{_OR_LIST}',
    Ages.read,
)
PLANE_NAMES = Allowed(
    f'{", ".join(json.dumps(plane) for plane in PLANES)}, or with degrees such as "axial 10"{_OR_LIST}',
    PlanePattern.read,
)
CONTRAST_NAMES = Allowed(f'"{GIVEN}", "{NO_CONTRAST}", "{NOT_KNOWN}"{_OR_LIST}', ContrastPattern.read)
BODY_PARTS = Allowed(f'a text (* stands for anything), or a code such as "SCT:69536005"{_OR_LIST}', body_part)
