"""What the gateway adds to the `medseg` command: `serve`, `status`, `jobs`; and what the other command modules hold."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from gateway.cli import client, operator, replay, results, studies
from gateway.cli.options import Config, Json, open_ledger, read_settings, settings_file
from medseg.cli import console
from medseg.errors import UsageError

if TYPE_CHECKING:
    from gateway.settings.model import GatewaySettings

SHOWN = 100
STUDIES = 20  # in `status`


def register(app: typer.Typer) -> None:
    """Add the commands of the gateway (entry point `medseg.commands`)."""
    example = "[bold]Example[/bold]  medseg serve --config medseg.toml"
    app.command("serve", cls=ServeCommand, epilog=example)(serve)
    app.command("status")(status)
    jobs_app = typer.Typer(help="Jobs of the gateway: what was and is to be segmented.", invoke_without_command=True)
    jobs_app.callback()(jobs)
    jobs_app.command("retry", epilog="[bold]Example[/bold]  medseg jobs retry 17")(operator.retry_job)
    app.add_typer(jobs_app, name="jobs")
    client.register(app)
    operator.register(app)
    studies.register(app)
    replay.register(app, jobs_app)
    results.register(app)


class ServeCommand(TyperCommand):
    """A command whose help ends with every key of its settings."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from gateway.cli import reference

        super().format_help(ctx, formatter)
        for line in reference.lines():
            console.show(line)


def serve(
    config: Config = None,
    allow_any_caller: Annotated[
        bool, typer.Option("--allow-any-caller", help="Let anybody send, whatever the settings say.")
    ] = False,
) -> None:
    """Receive DICOM studies, segment them, and send the results back.

    With no settings at all: AE title MEDSEG on port 11112 of this machine, every series that a default bundle fits.
    SIGTERM ends it in order; SIGHUP reads the settings again.
    """

    from gateway.serve.supervisor import serve as run
    from gateway.settings.read import Reloaded, load_settings, reload_settings

    path = settings_file(config)

    def admitting(settings: GatewaySettings) -> GatewaySettings:
        if not allow_any_caller:
            return settings
        return replace(settings, gateway=replace(settings.gateway, allow_any_caller=True, allow_callers=()))

    def reload(current: GatewaySettings) -> Reloaded:
        reloaded = reload_settings(path, current)
        return replace(reloaded, settings=admitting(reloaded.settings))

    run(admitting(load_settings(path)), reload)


def status(
    study_uid: Annotated[
        str | None, typer.Argument(metavar="[STUDY_UID]", help="One study; default: the latest.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What came, what was made of it, and where that is: counts and the latest studies, or one study."""

    from gateway import heartbeat
    from gateway.ledger import events, refusals
    from gateway.show import studies, text, totals

    settings = read_settings(config)
    with open_ledger(settings) as ledger, ledger.read() as db:
        counts, told = totals.by_state(db), events.settings_recorded(db)
        refused = list(refusals.latest(db, time.time()))
        found = studies.latest(db, STUDIES) if study_uid is None else (studies.study(db, study_uid),)
    beats = heartbeat.beats(settings.gateway.spool)
    shown = [study for study in found if study is not None]
    if study_uid is not None and not shown:
        raise UsageError(f"nothing of study {study_uid} is here: never received, or removed by retention or a purge")
    if as_json:
        processes = {beat.process: beat.alive for beat in beats}
        about = {"settings": told, "processes": processes, "refused": [asdict(one) for one in refused]}
        general = counts | about if study_uid is None else {}
        console.show_json(general | {"studies": [asdict(study) for study in shown]})
        return
    if study_uid is None:
        said = ", ".join(f"{beat.process} {'runs' if beat.alive else 'does not run'}" for beat in beats)
        console.show(f"processes: {said or 'none'}")
        for problem in told["problems"]:
            console.show(f"settings: not reloaded, those before are in force: {problem}")
        for key in told["kept"]:
            console.show(f"settings: {key} stays as it was until a restart")
        for doubt in told["doubts"]:
            console.show(f"settings: {doubt}")
        for what, states in counts.items():
            console.show(f"{what}: {', '.join(f'{number} {state}' for state, number in states.items()) or 'none'}")
        for one in refused:
            console.show(f"refused, {text.moment(one.last_at)} UTC: {one.line}")
    for study in shown:
        for line in text.lines(study):
            console.show(line)


def jobs(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """The latest jobs, newest first."""
    from dataclasses import asdict

    from gateway.ledger import jobs as jobs_rows

    if context.invoked_subcommand is not None:
        return
    with open_ledger(read_settings(config)) as ledger, ledger.read() as db:
        latest = jobs_rows.latest_jobs(db, SHOWN)
    for job in latest:
        if as_json:
            console.show_json(asdict(job))
        else:
            bundle = job.bundle or "the bundle that fits"
            why = f": {job.error}" if job.error else ""
            of = f"study {job.study_uid}" if job.series_uid is None else f"series {job.series_uid}"
            console.show(f"{job.id} {job.state} {of} by {bundle}, rule {job.rule}{why}")
