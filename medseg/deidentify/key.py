"""The file of a user's key: 32 random bytes as one line of hexadecimal digits, for its owner's eyes alone.

Whoever has it can say which pseudonym is whose, so it never stands on a command line, in a log or in a result.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from medseg.errors import UsageError

_DIGITS = re.compile(r"[0-9a-f]{64}")


class BadKey(UsageError):
    """A key file that is not there, is no key, or that others may read."""

    code = "bad_key"


def read_key(path: Path, *, make: bool = False, out: Path | None = None) -> bytes:
    """The key in a file. make: make one where there is no file. out: a folder that it must not lie in, since that is
    handed on. Raises BadKey."""
    if out is not None and path.resolve().is_relative_to(out.resolve()):
        raise BadKey(f"{path} lies in the folder of the results, which is handed on: keep the key elsewhere")
    try:
        if make and not path.exists():
            _make(path)
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except FileNotFoundError as error:
        raise BadKey(f"{path}: no such key file") from error
    except OSError as error:
        raise BadKey(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    if not _DIGITS.fullmatch(text):
        raise BadKey(f"{path} is no key: expected one line of 64 hexadecimal digits")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BadKey(f"{path} may be read by others (mode {stat.S_IMODE(mode):03o}): expected 600")
    return bytes.fromhex(text)


def _make(path: Path) -> None:
    """A new key, there whole or not at all; the first of several that make one wins. Raises OSError."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".key-") as file:  # mode 600 from the start
        file.write(f"{secrets.token_hex(32)}\n")
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)
