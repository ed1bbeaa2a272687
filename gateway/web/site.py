"""What every page and every answer is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.ledger.ledger import Ledger
from gateway.settings.current import Live


@dataclass(frozen=True)
class Site:
    """The gateway that is shown."""

    ledger: Ledger
    live: Live

    @property
    def spool(self) -> Path:
        return self.live.now.gateway.spool
