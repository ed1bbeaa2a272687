"""How a result file comes to be: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg.errors import OutputNotWritable


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; takes its place at the end, and is removed on any failure.

    The name ends as `path` does, since some writers choose their format by it.

    Raises OutputNotWritable for whatever the operating system refuses.
    """
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputNotWritable(path, error.strerror or str(error)) from error
    finally:
        with suppress(OSError):  # there may be no such folder; the first error is the one to tell
            temporary.unlink()
