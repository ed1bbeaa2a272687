"""The command line: a thin shell over `medseg.job`."""

from __future__ import annotations

from medseg.cli.app import main

__all__ = ["main"]
