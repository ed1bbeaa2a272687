"""Backup: a copy of ledger and spool that belong together, taken while the service runs.

    DIR/ledger.db     the ledger at one moment (SQLite's online backup)
    DIR/spool/        every file that it names: a hard link where DIR is on the same file system, else a copy
    DIR/medseg.toml   the settings

Files never change once they have their names, so a link is as good as a copy against everything but the loss of the
disk. What retention or a purge takes away between the ledger's moment and its file's turn makes it start again.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gateway.files import sync
from gateway.ledger.ledger import Ledger
from gateway.ledger.states import InstanceState
from medseg.errors import ResourceError, UsageError

LEDGER, SPOOL, SETTINGS = "ledger.db", "spool", "medseg.toml"
TRIES = 5


@dataclass(frozen=True)
class Backup:
    """What was saved. linked: of the files, those that are hard links. size_bytes: of all files."""

    files: int
    linked: int
    size_bytes: int


class BackupFailed(ResourceError):
    """A backup is not what it should be."""

    code = "backup_failed"


def backup(ledger: Ledger, spool: Path, to: Path, settings: Path | None = None) -> Backup:
    """Save a gateway in a new folder, and look at what was saved.

    Raises UsageError where there is something already, or the ledger is not SQLite; BackupFailed, OSError.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is there already: name a new folder")
    if spool.resolve() in (to.resolve(), *to.resolve().parents):
        raise UsageError(f"{to} lies in the spool: name a folder elsewhere")
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(TRIES):
        ledger.backup(to / LEDGER)
        try:
            linked = [_save(spool / path, to / SPOOL / path) for path in _files(to / LEDGER, spool)]
            break
        except FileNotFoundError:
            shutil.rmtree(to / SPOOL, ignore_errors=True)
    else:
        raise BackupFailed(f"files of the spool went away {TRIES} times while they were saved")
    if settings is not None:
        shutil.copyfile(settings, to / SETTINGS)
    for folder in (*(one for one in to.rglob("*") if one.is_dir()), to, to.absolute().parent):
        sync(folder)
    return Backup(len(linked), sum(linked), verify(to))


def verify(saved: Path) -> int:
    """Open a backup, and compare its files with what its ledger says of them. Returns their bytes.

    Raises BackupFailed.
    """
    with closing(sqlite3.connect(f"file:{saved / LEDGER}?mode=ro", uri=True)) as db:
        problems = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        problems += [f"{row[0]} row {row[1]} names no {row[2]}" for row in db.execute("PRAGMA foreign_key_check")]
        lengths = dict(db.execute(_LENGTHS).fetchall())
    total = 0
    for path, length in lengths.items():
        file = saved / SPOOL / path
        size_bytes = file.stat().st_size if file.is_file() else None
        total += size_bytes or 0
        if size_bytes != length:
            problems.append(f"{path}: expected {length} bytes, found {size_bytes}")
    if problems:
        raise BackupFailed(f"{saved} cannot be used: {'; '.join(problems[:3])}")
    return total


_INSTANCES = f"FROM instance WHERE state <> '{InstanceState.MISSING}' AND deleted_at IS NULL"
_LENGTHS = f"SELECT path, offset_bytes + size_bytes {_INSTANCES} UNION ALL SELECT path, size_bytes FROM result_object"


def _files(saved_ledger: Path, spool: Path) -> Iterator[str]:
    """The files that a saved ledger names, relative to the spool, and what lies beside the objects of a result.

    Raises FileNotFoundError where a result's folder has gone.
    """
    with closing(sqlite3.connect(f"file:{saved_ledger}?mode=ro", uri=True)) as db:
        yield from (path for (path,) in db.execute(f"SELECT path {_INSTANCES}"))
        folders = {Path(path).parent for (path,) in db.execute("SELECT path FROM result_object")}
    for folder in sorted(folders):
        yield from ((folder / one.name).as_posix() for one in (spool / folder).iterdir() if one.is_file())


def _save(source: Path, target: Path) -> bool:
    """Link a file, or copy it where that cannot be. Returns whether it is a link. Raises FileNotFoundError, OSError."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())
        return False
    return True
