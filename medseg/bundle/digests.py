"""SHA-256 of files, each computed once as long as it stays as it is: weights have gigabytes, and are loaded often."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Final, NamedTuple

MOST_KEPT: Final = 1024
# A file that changed just now may change again in the same tick of its file system's clock (2 s in FAT), unseen.
SETTLED_NS: Final = 3_000_000_000


class _State(NamedTuple):
    """What tells that a file is another, or was written to; ctime is the system's, and no program sets it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


_known: Final[dict[_State, str]] = {}
_lock: Final = Lock()


def file_digest(path: Path) -> str:
    """In hex."""
    with path.open("rb") as stream:
        before = _state(stream)
        with _lock:
            known = _known.get(before)
        if known is not None:
            return known
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if _state(stream) == before and time.time_ns() - max(before.mtime_ns, before.ctime_ns) > SETTLED_NS:
            _keep(before, digest)
    return digest


def _keep(state: _State, digest: str) -> None:
    with _lock:
        if len(_known) >= MOST_KEPT:
            _known.clear()
        _known[state] = digest


def _state(stream: BinaryIO) -> _State:
    about = os.fstat(stream.fileno())
    return _State(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
