"""Reading a JSON object field by field: each with its type, what is left over refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from medseg.allowed import (
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    Allowed,
    number,
    or_none,
    several,
    string,
    unknown_keys,
)
from medseg.errors import InvalidBundle

T = TypeVar("T")
ABSENT: Final = object()


class Reader:
    """One object of a bundle. Every method raises InvalidBundle naming the key; call `done` at the end."""

    def __init__(self, bundle: str, key: str, content: Any) -> None:
        self.bundle, self.key = bundle, key
        if not isinstance(content, Mapping):
            raise InvalidBundle(bundle, key, f"expected an object of keys, found {_kind(content)}")
        self.content: Mapping[str, Any] = content
        self._left = dict(content)
        self._known: list[str] = []

    def wrong(self, name: str, why: str) -> InvalidBundle:
        return InvalidBundle(self.bundle, f"{self.key}::{name}", why)

    def value(self, name: str, default: Any = ABSENT) -> Any:
        """Whatever is there."""
        self._known.append(name)
        value = self._left.pop(name, default)
        if value is ABSENT:
            raise self.wrong(name, "missing")
        return value

    def read(self, name: str, allowed: Allowed[T], default: Any = ABSENT) -> T:
        value = self.value(name, default)
        try:
            return allowed.read(value)
        except ValueError:
            raise self.wrong(name, f"expected {allowed.allowed}, found {_kind(value)}") from None

    def text(self, name: str, default: Any = ABSENT) -> str:
        return self.read(name, TEXT, default).strip()

    def maybe_text(self, name: str) -> str | None:
        return self.read(name, or_none(TEXT), None)

    def texts(self, name: str) -> tuple[str, ...]:
        """From one text or a list of them; none where there is nothing."""
        return self.read(name, _TEXTS, ())

    def flag(self, name: str, default: bool) -> bool:
        return self.read(name, FLAG, default)

    def integer(self, name: str, default: Any = ABSENT) -> int:
        return self.read(name, INTEGER, default)

    def number(self, name: str, default: Any = ABSENT) -> float:
        return float(self.read(name, NUMBER, default))

    def integers(self, name: str, count: int | None, default: Any = ABSENT) -> tuple[int, ...]:
        """So many whole numbers, or any number of them; 2.0 is one, too."""
        least, many = (0, "a list of") if count is None else (count, str(count))
        return self.read(name, Allowed(f"{many} whole numbers", several(as_whole, least=least, most=count)), default)

    def range(self, name: str) -> tuple[float, float] | None:
        """(least, most), or None."""
        return self.read(name, or_none(_RANGE), None)

    def ranges(self, name: str, count: int) -> tuple[tuple[float, float], ...] | None:
        pairs = Allowed(f"{count} pairs [least, most]", several(_range, least=count, most=count))
        return self.read(name, or_none(pairs), None)

    def reader(self, name: str) -> Reader:
        """The object under `name`, empty where there is none."""
        value = self.value(name, None)
        return Reader(self.bundle, f"{self.key}::{name}", {} if value is None else value)

    def readers(self, name: str) -> Iterator[Reader]:
        items = self.read(name, _LIST)
        for i, item in enumerate(items):
            yield Reader(self.bundle, f"{self.key}::{name}::{i}", item)

    def ignore(self, *names: str) -> None:
        for name in names:
            self.value(name, None)

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def done(self) -> None:
        """Refuse what nobody asked for."""
        for name, advice in unknown_keys(self._left, self._known):
            raise self.wrong(name, f"no such key: {advice}")


def as_whole(value: Any) -> int:
    """A whole number, written as 2 or as 2.0; else ValueError."""
    given = number(value)
    if isinstance(given, float) and not given.is_integer():
        raise ValueError(value)
    return int(given)


def _texts(value: Any) -> tuple[str, ...]:
    return several(string)([value] if isinstance(value, str) else value or ())


def _range(value: Any) -> tuple[float, float]:
    least, most = several(number, least=2, most=2)(value)
    if least > most:
        raise ValueError(value)
    return float(least), float(most)


def _as_it_is(value: Any) -> Any:
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]


_RANGE: Final = Allowed("[least, most]", _range)
_TEXTS: Final = Allowed("a list of texts", _texts)
_LIST: Final = Allowed("a list", several(_as_it_is))
