"""TOML whose values know their lines: tomllib gives the values, a small scan of the source text where they stand."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

#: Names of tables and keys, numbers of the items of an array of tables: ("rule", 0, "when", "modality").
Key: TypeAlias = tuple[str | int, ...]

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # multi-line strings may end in quotes of their own
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[^\"'#\[\]{}=\n]+"
    r"|.",
    re.DOTALL,
)
_PLACE_IN_ERROR = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class NotToml(ValueError):
    """The text is not TOML. line: 1-based, None at the end of the text."""

    def __init__(self, why: str, line: int | None) -> None:
        super().__init__(why)
        self.why, self.line = why, line


def parse(text: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """The values of a TOML text, and the line (1-based) of each of its tables and keys.

    Keys inside an inline table have no line of their own: `line_of` answers with that of the key they belong to.

    Raises NotToml.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE_IN_ERROR.search(str(error))
        line = place and place[1]
        raise NotToml(_PLACE_IN_ERROR.sub("", str(error)), int(line) if line else None) from error
    except RecursionError as error:
        raise NotToml("tables or lists lie too deep inside each other", None) from error
    lines: dict[Key, int] = {}
    for key, number in _lines(text.replace("\r\n", "\n")):
        lines.setdefault(key, number)
    return values, lines


def line_of(lines: Mapping[Key, int], key: Key) -> int | None:
    """The line of a key, or of the nearest table around it; None where even that stands nowhere."""
    return next((lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in lines), None)


def _lines(text: str) -> Iterator[tuple[Key, int]]:
    table: Key = ()
    items: dict[Key, int] = {}
    for line, head in _statements(text):
        if head.startswith("[["):
            name = _numbered(_path(head[1:-1]), items, last=False)
            items[name] = items.get(name, -1) + 1
            table = (*name, items[name])
            yield table, line
        elif head.startswith("["):
            table = _numbered(_path(head), items, last=True)
            yield table, line
        else:
            path = _path(f"{head} = 0")
            for length in range(1, len(path) + 1):  # a dotted key opens the tables before its dots
                yield (*table, *path[:length]), line


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The line on which each header or key starts, and its text without the value."""
    line, started, depth, head, in_head = 1, 1, 0, "", True
    for token in (*_TOKEN.findall(text), "\n"):
        if token == "\n" and depth == 0:
            if head.strip():
                yield started, head.strip()
            head, in_head, started = "", True, line + 1
        elif token == "=" and depth == 0:
            in_head = False
        elif in_head and not token.startswith("#"):
            head += token
        depth += (token in "[{") - (token in "]}")
        line += token.count("\n")


def _path(statement: str) -> Key:
    """The names in a header or a dotted key, as tomllib reads them (quoted, escaped, spaced)."""
    path: list[str] = []
    inner: Any = tomllib.loads(statement)
    while isinstance(inner, dict) and inner:
        ((name, inner),) = inner.items()
        path.append(name)
    return tuple(path)


def _numbered(path: Key, items: Mapping[Key, int], *, last: bool) -> Key:
    """A header's path with the number of the current item behind each array of tables it passes through."""
    name: Key = ()
    for place, part in enumerate(path, 1):
        name = (*name, part)
        if name in items and (last or place < len(path)):
            name = (*name, items[name])
    return name
