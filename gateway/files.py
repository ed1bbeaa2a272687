"""What lasts: bytes of a file, and what a rename or a deletion did to a folder, are on the disk once that is synced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: Where results lie, in the spool.
RESULTS: Final = "results"


def sync(path: str | Path) -> None:
    """Make a file's bytes, or the names in a folder, last. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def is_whole(file: Path, length: int) -> bool:
    """Whether a file is there with so many bytes."""
    try:
        return file.stat().st_size == length
    except OSError:
        return False
