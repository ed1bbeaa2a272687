"""The command line: a thin shell over `medseg.job`."""

from __future__ import annotations


def main() -> None:
    """The `medseg` command."""
    from medseg.cli.app import main as run

    run()
