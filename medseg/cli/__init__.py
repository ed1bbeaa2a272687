"""The command line: a thin shell over `medseg.job`."""

from __future__ import annotations


def main() -> None:
    """The `medseg` command. The application is made when it is called: packages that add commands import this one."""
    from medseg.cli.app import main as run

    run()
