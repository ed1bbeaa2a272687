"""The director as the tests drive it: each step goes by the settings that it has then."""

from __future__ import annotations

from pathlib import Path

from gateway.ledger.ledger import Ledger
from gateway.serve import director
from gateway.settings.model import GatewaySettings


class Director(director.Director):
    """settings: handed to each step; may be replaced between two."""

    def __init__(self, ledger: Ledger, spool: Path, settings: GatewaySettings) -> None:
        super().__init__(ledger, spool)
        self.settings = settings

    def step(self, now_s: float, wall_s: float) -> None:  # type: ignore[override]
        super().step(self.settings, now_s, wall_s)
