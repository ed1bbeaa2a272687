"""Deleting files whose rows are gone, so that no moment of a crash brings one back or leaves one behind.

    one commit: the rows go, their files are marked ── files deleted, folders synced ── one commit: no longer marked

A crash before the first commit changes nothing; one after it is made up for by the next `sweep`, which the service does
before anything else when it starts.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath

from gateway.files import RESULTS, sync
from gateway.ledger import deletions, results
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import DoomedRow

MOST = 500  # files between two commits


def folder_of(path: str) -> str:
    """The folder of a file of the spool, as it is marked."""
    return f"{PurePosixPath(path).parent}/"


def sweep(ledger: Ledger, spool: Path) -> int:
    """Delete what is marked. Returns how many files and folders. Raises OSError, and LedgerUnavailable."""
    swept = 0
    while True:
        with ledger.read() as db:
            files = deletions.marked(db, MOST)
        if not files:
            return swept
        for file in files:
            _delete(spool, file)
        for folder in {(spool / file.path).parent for file in files}:
            _tidy(spool, folder)
        ledger.write(deletions.unmark, [file.path for file in files])
        swept += len(files)


def sweep_results(ledger: Ledger, spool: Path) -> int:
    """Delete result folders that never got into the ledger. Only for when no worker runs. Returns how many."""
    with ledger.read() as db:
        filed = {PurePosixPath(path).parent.name for path in results.object_paths(db)}
    whole = spool / RESULTS
    left = [folder for folder in whole.iterdir() if folder.name not in filed] if whole.is_dir() else []
    for folder in left:
        shutil.rmtree(folder)
    return len(left)


def _delete(spool: Path, file: DoomedRow) -> None:
    path = spool / file.path
    if not file.path.endswith("/"):
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        if path.stat().st_mtime <= file.at:  # else it was made anew meanwhile, for the same result
            shutil.rmtree(path)


def _tidy(spool: Path, folder: Path) -> None:
    """Make the deletions in a folder last; it goes with them where it is empty, and so does the one above."""
    for each in (folder, *folder.parents):
        with suppress(FileNotFoundError):
            sync(each)
        if len(each.relative_to(spool).parts) < 2:  # the spool's own folders stay
            return
        with suppress(OSError):
            each.rmdir()
