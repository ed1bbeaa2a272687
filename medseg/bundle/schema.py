"""Reading a JSON object field by field: each with its type, what is left over refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from medseg.errors import InvalidBundle

ABSENT: Final = object()


class Reader:
    """One object of a bundle's metadata. Every method raises InvalidBundle naming the key; call `done` at the end."""

    def __init__(self, bundle: str, key: str, content: Any) -> None:
        self.bundle, self.key = bundle, key
        if not isinstance(content, Mapping):
            raise InvalidBundle(bundle, key, f"expected an object of keys, found {_kind(content)}")
        self.content: Mapping[str, Any] = content
        self._left = dict(content)
        self._known: list[str] = []

    def wrong(self, name: str, why: str) -> InvalidBundle:
        return InvalidBundle(self.bundle, f"{self.key}::{name}", why)

    def _take(self, name: str, default: Any) -> Any:
        self._known.append(name)
        value = self._left.pop(name, default)
        if value is ABSENT:
            raise self.wrong(name, "missing")
        return value

    def text(self, name: str, default: Any = ABSENT) -> str:
        value = self._take(name, default)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(name, f"expected text, found {_kind(value)}")
        return value.strip()

    def maybe_text(self, name: str) -> str | None:
        value = self._take(name, None)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise self.wrong(name, f"expected text or null, found {_kind(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._take(name, ()) or ()
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, f"expected a list of texts, found {_kind(value)}")
        return tuple(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"expected true or false, found {_kind(value)}")
        return value

    def integer(self, name: str, default: Any = ABSENT) -> int:
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, f"expected a whole number, found {_kind(value)}")
        return value

    def number(self, name: str, default: Any = ABSENT) -> float:
        value = self._take(name, default)
        if not _is_number(value):
            raise self.wrong(name, f"expected a number, found {_kind(value)}")
        return float(value)

    def integers(self, name: str, count: int | None, default: Any = ABSENT) -> tuple[int, ...]:
        value = self._take(name, default)
        whole = isinstance(value, list | tuple) and all(_is_number(item) and item == int(item) for item in value)
        if not whole or (count is not None and len(value) != count):
            many = "a list of" if count is None else str(count)
            raise self.wrong(name, f"expected {many} whole numbers, found {value!r}")
        return tuple(int(item) for item in value)

    def range(self, name: str) -> tuple[float, float] | None:
        """(least, most), or None."""
        value = self._take(name, None)
        return None if value is None else self._pair(name, value)

    def ranges(self, name: str, count: int) -> tuple[tuple[float, float], ...] | None:
        value = self._take(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(name, f"expected {count} pairs [least, most], found {value!r}")
        return tuple(self._pair(name, pair) for pair in value)

    def _pair(self, name: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, list) or len(value) != 2 or not all(_is_number(item) for item in value):
            raise self.wrong(name, f"expected [least, most], found {value!r}")
        least, most = float(value[0]), float(value[1])
        if least > most:
            raise self.wrong(name, f"the least, {least}, is above the most, {most}")
        return least, most

    def reader(self, name: str) -> Reader:
        """The object under `name`, empty where there is none."""
        value = self._take(name, None)
        return Reader(self.bundle, f"{self.key}::{name}", {} if value is None else value)

    def readers(self, name: str) -> Iterator[Reader]:
        value = self._take(name, ABSENT)
        if not isinstance(value, list):
            raise self.wrong(name, f"expected a list, found {_kind(value)}")
        for i, item in enumerate(value):
            yield Reader(self.bundle, f"{self.key}::{name}::{i}", item)

    def ignore(self, *names: str) -> None:
        for name in names:
            self._take(name, None)

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def done(self) -> None:
        """Refuse what nobody asked for."""
        for name in self._left:
            raise self.wrong(name, f"unknown key; known are {', '.join(self._known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]
