"""Which paths this process creates or opens to write, by the interpreter's own audit events, and hostile values."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watching: list[list[str]] = []
_hooked: list[bool] = []

NASTY = (
    "", ".", "..", "/", "\\", "../../field", "/tmp/absolute", "a/../../b", "..\\..\\b", "C:\\x", "\0", "1.2\0/../x",
    "~", "~root", "$HOME", "con", "NUL.txt", "a" * 5000, "1." * 40, "1.2.3", "1.2.3/", " 1.2.3", "1.2.3\n", "-rf",
    "\udce9", "\ud800", "étude", "e\u0301tude", "\u202e", "a:b", "*", "?", "a|b", "%2e%2e%2f", "\uff0e\uff0e", "A", "a",
)  # fmt: skip
#: Values as no sender should give them, of any text: lone surrogates and controls, too.
hostile = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(), max_size=80),
    st.text("./\\\0aA1~é", max_size=30),
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map("/".join),
)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        if arguments[2] & os.O_TMPFILE == os.O_TMPFILE:  # the folder of a file that has no name
            return
        paths = arguments[:1]
    elif event in ("os.mkdir", "os.symlink", "os.link", "os.rename", "os.truncate", "tempfile.mkdtemp"):
        paths = arguments[-3:-1] if event == "os.link" else arguments[:2] if event in ("os.rename",) else arguments[:1]
        paths = arguments[1:2] if event == "os.symlink" else paths
    else:
        return
    _watching[-1].extend(os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike))


@contextmanager
def writes() -> Iterator[list[str]]:
    """The paths, as they come."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def outside(paths: list[str], folder: Path) -> list[str]:
    """Those that do not lie below a folder, links followed."""
    real = os.path.realpath(folder)
    return [path for path in paths if path != os.devnull and not Path(os.path.realpath(path)).is_relative_to(real)]
