"""Programs from outside that judge what medseg writes; `make peers` installs them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def require(program: str) -> str:
    """Path of a peer's program; the test skips where it is missing, or fails if peers are required."""
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))  # of a package
    if found is None:
        missing(program)
    assert found is not None
    return found


def missing(peer: str) -> None:
    """Skip for want of a peer, unless MEDSEG_REQUIRE_PEERS says that all must be here."""
    if os.environ.get("MEDSEG_REQUIRE_PEERS") == "1":
        pytest.fail(f"{peer} is missing: run `make peers`")
    pytest.skip(f"{peer} is missing: `make peers` installs it")
