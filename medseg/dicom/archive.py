"""A zip archive, read in place: nothing is unpacked to disk, so nothing can land outside a folder."""

from __future__ import annotations

import io
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, cast
from zipfile import BadZipFile, ZipFile, ZipInfo

from medseg.errors import UnsafeArchive

_ENCRYPTED = 0x1


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may unpack to. The ratio counts only above `small_bytes`: masks shrink 1000-fold honestly."""

    entries: int = 200_000
    total_bytes: int = 64 * 2**30
    entry_bytes: int = 8 * 2**30
    ratio: float = 100.0
    small_bytes: int = 2**30


def open_archive(
    path: Path, limits: ArchiveLimits = ArchiveLimits()
) -> list[tuple[str, Callable[[], BinaryIO], Callable[[], BinaryIO]]]:
    """The files of an archive, sorted by name: (name, open for a look at its beginning, open whole and seekable).

    Raises:
        UnsafeArchive: not a zip archive, encrypted, names that leave their folder, links, or it unpacks without end.
    """
    try:
        archive = ZipFile(path)
    except (BadZipFile, EOFError, LookupError, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise UnsafeArchive(path, f"not a readable zip archive ({error})") from error
    entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
    danger = _danger(entries, limits)
    if danger:
        archive.close()
        raise UnsafeArchive(path, danger)
    last = _LastEntry(archive)
    return [
        (entry.filename, partial(_stream, archive, entry), partial(last.open, entry))
        for entry in sorted(entries, key=lambda entry: entry.filename)
    ]


def _stream(archive: ZipFile, entry: ZipInfo) -> BinaryIO:
    """Unpacks only as far as it is read."""
    return io.BufferedReader(cast(io.RawIOBase, archive.open(entry)))  # ZipExtFile is one in all but name


class _LastEntry:
    """Entries unpacked into memory; the last one is kept, for the frames of a multi-frame object."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._kept: tuple[ZipInfo, bytes] | None = None

    def open(self, entry: ZipInfo) -> BinaryIO:
        with self._lock:
            kept = self._kept
        if kept is None or kept[0] is not entry:
            kept = entry, self._archive.read(entry)
            with self._lock:
                self._kept = kept
        return io.BytesIO(kept[1])


def _danger(entries: list[ZipInfo], limits: ArchiveLimits) -> str | None:
    """Why an archive is refused, judged by its directory alone. zipfile never reads past a size stated there."""
    if len(entries) > limits.entries:
        return f"{len(entries)} entries, more than {limits.entries}"
    for entry in entries:
        name = entry.filename
        if leaves_folder(name):
            return f"entry {name!r} leaves its folder"
        if stat.S_ISLNK(entry.external_attr >> 16):
            return f"entry {name!r} is a symbolic link"
        if entry.flag_bits & _ENCRYPTED:
            return f"entry {name!r} is encrypted"
        if entry.file_size > limits.entry_bytes:
            return f"entry {name!r} unpacks to {entry.file_size} bytes, more than {limits.entry_bytes}"
    total = sum(entry.file_size for entry in entries)
    packed = max(sum(entry.compress_size for entry in entries), 1)
    if total > limits.total_bytes:
        return f"unpacks to {total} bytes, more than {limits.total_bytes}"
    if total > limits.small_bytes and total / packed > limits.ratio:
        return f"unpacks to {total} bytes, {total / packed:.0f} times its size"
    return None


def leaves_folder(name: str) -> bool:
    """Whether a relative name, of POSIX or Windows, points outside the folder it is used in."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return posix.is_absolute() or bool(windows.anchor) or ".." in windows.parts or ".." in posix.parts
