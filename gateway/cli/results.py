"""`medseg results`: what was made, and `withdraw`, which takes one back from where it is."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gateway.cli.options import Config, Json, open_ledger, read_settings
from medseg.cli import console

SHOWN = 100

RESULTS = """
[bold]Examples[/bold]

  medseg results

  medseg results withdraw 17

  medseg results withdraw 17 --why "left and right are exchanged" --yes
"""

results_app = typer.Typer(help="Results: what was made, and what is withdrawn.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(results_app, name="results", epilog=RESULTS)


@results_app.callback()
def results(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """The latest results, newest first."""
    from gateway.ledger import withdrawals

    if context.invoked_subcommand is not None:
        return
    with open_ledger(read_settings(config)) as ledger, ledger.read() as db:
        for row in withdrawals.latest(db, SHOWN):
            state, to = withdrawals.state_of(db, row), withdrawals.destinations_of(db, [row])
            uids = {"study_uid": row.study_uid, "series_uid": row.series_uid}
            if as_json:
                about = {"id": row.id, "state": state, "bundle": row.bundle, "bundle_version": row.bundle_version}
                console.show_json(about | uids | {"created_at": row.created_at, "destinations": to})
                continue
            of = f"study {row.study_uid}" if row.series_uid is None else f"series {row.series_uid}"
            where = f", at {', '.join(to)}" if to else ""
            console.show(f"{row.id} {state} {row.bundle} {row.bundle_version} of {of}{where}")


@results_app.command("withdraw", epilog=RESULTS)
def withdraw(
    result_id: Annotated[int, typer.Argument(metavar="ID", help="A result, as `medseg results` shows it.")],
    why: Annotated[str, typer.Option("--why", help="Why, for those who read it there; no patient's name.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
) -> None:
    """Say that a result is wrong, wherever it is: a report that takes its place, and a rejection of its objects.

    It cannot be undone. The service may run; it sends both. The same result is not made again.
    """
    from gateway.work import withdrawal

    settings = read_settings(config)
    with open_ledger(settings) as ledger:
        if not yes:
            typer.confirm(f"result {result_id}: withdraw it for good?", abort=True, err=True)
        to = withdrawal.withdraw(ledger, settings.gateway.spool, result_id, why, time.time())
    where = f"told to {', '.join(to)}" if to else "it is nowhere else, so nobody is told"
    console.show(f"result {result_id} is withdrawn: {where}")
