"""A ledger for a test, of a copy: its tables are made once in a run, and not once in a test."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from gateway.ledger.ledger import Ledger


def new_ledger(folder: Path, name: str = "ledger.db") -> Ledger:
    """Open the ledger of a folder, which is empty if there was none."""
    file = folder / name
    if not file.exists():
        file.write_bytes(_empty())
    return Ledger(f"sqlite:///{file}")


@functools.cache
def _empty() -> bytes:
    """The file of a ledger that was opened and closed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        Ledger(f"sqlite:///{file}").close()
        assert [path.name for path in Path(folder).iterdir()] == [file.name]  # its log is in it
        return file.read_bytes()
