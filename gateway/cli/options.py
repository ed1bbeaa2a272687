"""What the commands of the gateway share: how they are told of the settings, and how they open the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.errors import UsageError

if TYPE_CHECKING:
    from gateway.ledger.ledger import Ledger
    from gateway.settings.model import GatewaySettings

DEFAULT = Path("medseg.toml")

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings; default: medseg.toml where it is here.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def settings_file(config: Path | None) -> Path | None:
    """The file of the settings; None where there is none, and the defaults hold."""
    return config or (DEFAULT if DEFAULT.is_file() else None)


def read_settings(config: Path | None) -> GatewaySettings:
    """The settings. Raises InvalidSettings."""
    from gateway.settings.read import load_settings

    return load_settings(settings_file(config))


def open_ledger(settings: GatewaySettings) -> Ledger:
    """The ledger of a gateway that has run. Raises UsageError where there is none."""
    from gateway.ledger.ledger import Ledger

    url = settings.gateway.database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise UsageError(f"{url}: no such ledger: name the settings of `medseg serve` with --config")
    return Ledger(url)
