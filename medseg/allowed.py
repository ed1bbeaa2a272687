"""What a value of a table (JSON, TOML) may be, in words for a message and as a check that reads it.

    @dataclass
    class Count:
        wanted: Annotated[int, INTEGER] = 1        read_fields(Count, {"wanted": 3}, refuse) -> {"wanted": 3}

Bundles' metadata and arguments (`medseg.bundle.schema`), plans of trainings and the gateway's settings are read so.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, Final, Generic, TypeAlias, TypeGuard, TypeVar, get_type_hints

T = TypeVar("T")
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True)
class Allowed(Generic[T]):
    """allowed: what a value may be, after "expected". read: the value as it is kept, or ValueError."""

    allowed: str
    read: Callable[[Any], T]


class NotInThisVersion(ValueError):
    """A value that nothing carries out yet: the message says which, in words that go on with what is expected."""


#: Told of a key and what is wrong with it: raises, or writes it down.
Refuse: TypeAlias = Callable[[str, str], object]


def read_fields(kind: type[Any], table: Mapping[str, Any], refuse: Refuse) -> dict[str, Any]:
    """The fields of a dataclass that a table gives, each read by the `Allowed` of its annotation.

    What is unknown, missing or cannot be read is refused, and not among them where `refuse` does not raise.
    """
    known = forms_of(kind)
    for name, advice in unknown_keys(table, known):
        refuse(name, f"no such key: {advice}")
    for one in fields(kind):
        if one.name in known and one.name not in table and one.default is MISSING and one.default_factory is MISSING:
            refuse(one.name, f"expected {known[one.name].allowed}, found nothing")
    read = {}
    for name in (name for name in known if name in table):
        try:
            read[name] = known[name].read(table[name])
        except NotInThisVersion as error:  # what was found is not shown: an address may hold a password
            refuse(name, f"{error}: expected {known[name].allowed}")
        except ValueError:
            refuse(name, f"expected {known[name].allowed}, found {shown(table[name])}")
    return read


def forms_of(kind: type[Any]) -> dict[str, Allowed[Any]]:
    """What each field of a dataclass may be, in order; fields without an `Allowed` are left out."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def unknown_keys(table: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each key of a table that is not known, with advice."""
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            yield name, f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def shown(value: Any) -> str:
    """A value as it is shown in a message."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What reads a value raises ValueError where it may not be so.


def string(value: Any) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def text(value: Any) -> str:
    """A text that says something."""
    if not string(value).strip():
        raise ValueError(value)
    return string(value)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def number(value: Any) -> float:
    """A number as it is given, of either kind."""
    if not is_number(value):
        raise ValueError(value)
    return value


def integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(value)
    return value


def table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(value)
    return value


def several(read: Callable[[Any], T], *, least: int = 0, most: int | None = None) -> Callable[[Any], tuple[T, ...]]:
    """A list of so many values, each read by `read`."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list | tuple) or len(value) < least or (most is not None and len(value) > most):
            raise ValueError(value)
        return tuple(read(item) for item in value)

    return read_all


def ae_title(value: Any) -> str:
    """An AE title without its padding (VR AE, PS3.5 6.2): 1-16 printable ASCII characters, no backslash.

    Raises ValueError.
    """
    title = text(value).strip(" ")
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise ValueError(value)
    return title


def or_none(allowed: Allowed[T]) -> Allowed[T | None]:
    return Allowed(f"{allowed.allowed}, or null", lambda value: None if value is None else allowed.read(value))


def one_of(choices: type[_Choice]) -> Allowed[_Choice]:
    return Allowed(_listed(choices, " or "), choices)


def some_of(choices: type[_Choice]) -> Allowed[tuple[_Choice, ...]]:
    return Allowed(f"a list of {_listed(choices, ', ')}", several(choices, least=1))


def _listed(choices: type[StrEnum], between: str) -> str:
    return between.join(f'"{choice}"' for choice in choices)


TEXT: Final = Allowed("a text", text)
TEXTS: Final = Allowed("a list of texts", several(text))
FLAG: Final = Allowed("true or false", flag)
NUMBER: Final = Allowed("a number", number)
INTEGER: Final = Allowed("a whole number", integer)
INTEGERS: Final = Allowed("a list of whole numbers", several(integer))
PAIR: Final = Allowed("two numbers", several(number, least=2, most=2))
TABLE: Final = Allowed("an object of keys", table)
