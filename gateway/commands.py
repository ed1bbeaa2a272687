"""What the gateway adds to the `medseg` command: `serve`, `status`, `jobs`; and what is in `client_commands`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway import client_commands
from medseg.cli import console
from medseg.errors import UsageError

if TYPE_CHECKING:
    from gateway.ledger import Ledger
    from gateway.settings import GatewaySettings

DEFAULT = Path("medseg.toml")
SHOWN = 100

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings; default: medseg.toml where it is here.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]

jobs_app = typer.Typer(help="Jobs of the gateway: what was and is to be segmented.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands of the gateway (entry point `medseg.commands`)."""
    app.command("serve")(serve)
    app.command("status")(status)
    app.add_typer(jobs_app, name="jobs")
    client_commands.register(app)


def serve(
    config: Config = None,
    allow_any_caller: Annotated[
        bool, typer.Option("--allow-any-caller", help="Let anybody send, whatever the settings say.")
    ] = False,
) -> None:
    """Receive DICOM studies, segment them, and send the results back.

    With no settings at all: AE title MEDSEG on port 11112 of this machine, every series that a default bundle fits.
    """
    from dataclasses import replace

    from gateway.service import serve as run

    settings = _settings(config)
    if allow_any_caller:
        settings = replace(settings, gateway=replace(settings.gateway, allow_any_caller=True, allow_callers=()))
    run(settings)


def status(config: Config = None, as_json: Json = False) -> None:
    """How many series, jobs and deliveries are in which state."""
    from gateway import moves

    with _ledger(config) as ledger, ledger.read() as db:
        counts = moves.counts(db)
    if as_json:
        console.show_json(counts)
        return
    for what, states in counts.items():
        console.show(f"{what}: {', '.join(f'{number} {state}' for state, number in states.items()) or 'none'}")


@jobs_app.callback()
def jobs(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """The latest jobs, newest first."""
    from gateway import moves

    if context.invoked_subcommand is not None:
        return
    with _ledger(config) as ledger, ledger.read() as db:
        found = moves.latest_jobs(db, SHOWN)
    for job in found:
        if as_json:
            console.show_json(job)
        else:
            bundle = job["bundle"] or "the bundle that fits"
            why = f": {job['error']}" if job["error"] else ""
            console.show(f"{job['id']} {job['state']} series {job['series_uid']} by {bundle}, rule {job['rule']}{why}")


@jobs_app.command("release")
def release(job_id: Annotated[int, typer.Argument(metavar="ID")], config: Config = None) -> None:
    """Let a held job run."""
    import time

    from gateway import moves

    with _ledger(config) as ledger:
        if not ledger.write(lambda db: moves.release_job(db, job_id, time.time())):
            raise UsageError(f"job {job_id} is not held: `medseg jobs` shows those that are")
    console.say(f"job {job_id} is queued")


def _settings(config: Path | None) -> GatewaySettings:
    from gateway.settings import load_settings

    return load_settings(config or (DEFAULT if DEFAULT.is_file() else None))


def _ledger(config: Path | None) -> Ledger:
    """The ledger of a gateway that has run. Raises UsageError where there is none."""
    from gateway.ledger import Ledger

    url = _settings(config).gateway.database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise UsageError(f"{url}: no such ledger: name the settings of `medseg serve` with --config")
    return Ledger(url)
