"""What all tests of the gateway share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.ledger import ledger


@pytest.fixture(autouse=True, scope="session")
def _short_logs() -> Iterator[None]:
    """A ledger's log is not grown at each start in this process: its length saves time in long lives alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "WAL_BYTES", 1 << 16)
        yield
