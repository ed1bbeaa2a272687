"""Deleting files whose rows are gone, so that no moment of a crash brings one back or leaves one behind.

    one commit: the rows go, their files are doomed ── files deleted, folders synced ── one commit: no longer doomed

A crash before the first commit changes nothing; one after it is made up for by the next `sweep`, which the service does
before anything else when it starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from sqlalchemy import Connection, delete, insert, select

from gateway.files import sync
from gateway.ledger.ledger import Ledger
from gateway.ledger.tables import doomed, result_object

RESULTS = "results"
MOST = 500  # files between two commits


def doom(db: Connection, paths: Iterable[str], at: float) -> int:
    """Have files deleted, or folders (with a last slash), that no row names from this commit on. Returns how many."""
    known = set(db.execute(select(doomed.c.path)).scalars())
    rows = [{"path": path, "at": at} for path in dict.fromkeys(paths) if path not in known]
    if rows:
        db.execute(insert(doomed), rows)
    return len(rows)


def folder_of(path: str) -> str:
    """The folder of a file of the spool, as it is doomed."""
    return f"{PurePosixPath(path).parent}/"


def sweep(ledger: Ledger, spool: Path) -> int:
    """Delete what is doomed. Returns how many files and folders. Raises OSError, and LedgerUnavailable."""
    swept = 0
    while True:
        with ledger.read() as db:
            found = db.execute(select(doomed).limit(MOST)).all()
        if not found:
            return swept
        for row in found:
            _delete(spool, row.path, row.at)
        for folder in {(spool / row.path).parent for row in found}:
            _tidy(spool, folder)
        paths = [row.path for row in found]
        ledger.write(lambda db, paths=paths: db.execute(delete(doomed).where(doomed.c.path.in_(paths))).rowcount)  # type: ignore[misc]
        swept += len(found)


def sweep_results(ledger: Ledger, spool: Path) -> int:
    """Delete result folders that never got into the ledger. Only for when no worker runs. Returns how many."""
    with ledger.read() as db:
        filed = {PurePosixPath(path).parent.name for path in db.execute(select(result_object.c.path)).scalars()}
    folder = spool / RESULTS
    left = [one for one in folder.iterdir() if one.name not in filed] if folder.is_dir() else []
    for one in left:
        shutil.rmtree(one)
    return len(left)


def _delete(spool: Path, name: str, at: float) -> None:
    """at: since when it is doomed."""
    path = spool / name
    if not name.endswith("/"):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        if path.stat().st_mtime <= at:  # else it was made anew meanwhile, for the same result
            shutil.rmtree(path)


def _tidy(spool: Path, folder: Path) -> None:
    """Make the deletions in a folder last; it goes with them where it is empty, and so does the one above."""
    for one in (folder, *folder.parents):
        with suppress(FileNotFoundError):
            sync(one)
        if len(one.relative_to(spool).parts) < 2:  # the spool's own folders stay
            return
        with suppress(OSError):
            one.rmdir()
