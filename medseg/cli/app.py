"""The `medseg` command: its own subcommands, and those that other packages bring.

What is light is imported at the top of a command module; what loads torch, NumPy or a DICOM library, where it is used:
`medseg --help` stays under half a second.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from importlib.metadata import entry_points

import typer

from medseg import __version__
from medseg.cli import bench, bundles, demo, doctor, infer, inspect, train
from medseg.cli.console import fail
from medseg.errors import MedsegError
from medseg.job.exits import exit_code

EXTENSIONS = "medseg.commands"  # entry points: functions that take the application and add commands to it


def make_app() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        name="medseg",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Segment DICOM studies with MONAI bundles; results are DICOM-SEG and structured reports.",
        epilog="Start with: [bold]medseg infer study/[/bold]    Research use only.",
    )
    app.callback()(_options)
    app.command("infer", epilog=infer.EXAMPLES)(infer.infer)
    app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
    app.add_typer(bundles.app, name="bundles")
    app.command("train", epilog=train.TRAIN_EXAMPLES)(train.train)
    app.command("evaluate", epilog=train.EVALUATE_EXAMPLES)(train.evaluate)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)
    app.add_typer(bench.app, name="bench")
    for extension in entry_points(group=EXTENSIONS):
        extension.load()(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medseg {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before any command."""


def main() -> None:
    """Run the command line; errors become one sentence and an exit code."""
    # pydicom quotes the values it doubts, which may be a patient's; what matters here we say in our own words.
    warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):  # a name that the locale cannot write is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        make_app()()
    except (MedsegError, KeyboardInterrupt, MemoryError, OSError) as error:
        fail(error)
        sys.exit(exit_code(error))
