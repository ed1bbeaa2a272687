"""The `medseg` command: its own subcommands, and those that other packages bring.

Nothing heavy is imported here, nor by a command module at its top: `medseg --help` stays under half a second.
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
from medseg.cli.exits import exit_code
from medseg.errors import MedsegError

EXTENSIONS = "medseg.commands"  # entry points: functions that take the application and add commands to it

app = typer.Typer(
    name="medseg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Segment DICOM studies with MONAI bundles; results are DICOM-SEG and structured reports.",
    epilog="Start with: [bold]medseg infer study/[/bold]    Research use only.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before any command."""


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


def main() -> None:
    """Run the command line; errors become one sentence and an exit code."""
    # pydicom quotes the values it doubts, which may be a patient's; what matters here we say in our own words.
    warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):  # a name that the locale cannot write is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (MedsegError, KeyboardInterrupt, MemoryError, OSError) as error:
        fail(error)
        sys.exit(exit_code(error))
