"""What an operator does to a gateway: `medseg outbox`, `rules`, `purge` and `backup`, beside `medseg jobs`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import Config, Json, open_ledger, read_settings, settings_file
from medseg.cli import console
from medseg.errors import EmptyInput, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.decide.trial import StudyTrial, Trial
    from gateway.ledger.records import DeliveryRow
    from gateway.settings.model import Rule
    from medseg.conditions.findings import ConditionFinding

SHOWN = 100

outbox_app = typer.Typer(help="Results on their way to their destinations.", invoke_without_command=True)
rules_app = typer.Typer(help="Rules: what is done with a series.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(outbox_app, name="outbox", epilog=OUTBOX)
    app.add_typer(rules_app, name="rules")
    app.command("purge", epilog="[bold]Example[/bold]  medseg purge 1.2.840.113619.2.55.3 --yes")(purge)
    app.command("backup", epilog="[bold]Example[/bold]  medseg backup /backup/medseg-monday")(backup)


OUTBOX = """
[bold]Examples[/bold]

  medseg outbox

  medseg outbox --state dead --json

  medseg outbox retry 17

  medseg outbox retry --peer pacs
"""


@outbox_app.callback()
def outbox(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="Only deliveries in this state (may be repeated); default: all not confirmed."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Deliveries by destination and state, and what to do about those that failed."""
    from gateway.ledger import deliveries
    from gateway.ledger.states import UNDELIVERED, DeliveryState
    from gateway.show import next_steps, totals

    if context.invoked_subcommand is not None:
        return
    unknown = set(state or ()) - set(totals.STATES["delivery"])
    if unknown:
        raise UsageError(f"expected --state {', '.join(totals.STATES['delivery'])}; found {', '.join(sorted(unknown))}")
    with open_ledger(read_settings(config)) as ledger, ledger.read() as db:
        counts = totals.by_destination(db)
        found = deliveries.deliveries(db, *(map(DeliveryState, state) if state else (*UNDELIVERED, DeliveryState.DEAD)))
    if as_json:
        for row in found:
            console.show_json({key: getattr(row, key) for key in COLUMNS} | {"next_step": next_steps.for_delivery(row)})
        return
    for name in sorted({name for name, _ in counts}):
        numbers = [f"{number} {state}" for (to, state), number in counts.items() if to == name]
        console.show(f"{name}: {', '.join(numbers)}")
    told = [row for row in found if state or row.error_code]
    for row in told[:SHOWN]:
        console.show(_told(row))
        if step := next_steps.for_delivery(row):
            console.show(f"    {step}")
    if len(told) > SHOWN:
        console.say(f"{len(told) - SHOWN} more: --json shows all")


COLUMNS = (
    "id", "destination", "state", "study_uid", "series_uid", "kind", "sop_instance_uid", "failures", "created_at",
    "ready_at", "stored_at", "confirmed_at", "status", "error_code", "error",
)  # fmt: skip


def _told(row: DeliveryRow) -> str:
    from gateway.ledger.states import DeliveryState
    from gateway.show.text import moment

    again = f", again at {moment(row.ready_at)} UTC" if row.state == DeliveryState.QUEUED else ""
    failed = f", failed {row.failures} times{again}" if row.failures else ""
    why = f": {row.error}" if row.error else ""
    of = f"study {row.study_uid}" if row.series_uid is None else f"series {row.series_uid}"
    return f"{row.id} {row.state} {row.kind} of {of} to {row.destination}{failed}{why}"


@outbox_app.command("retry", epilog=OUTBOX)
def retry_deliveries(
    delivery_id: Annotated[int | None, typer.Argument(metavar="ID", help="A dead letter.")] = None,
    peer: Annotated[str | None, typer.Option("--peer", metavar="NAME", help="All dead letters to this peer.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    config: Config = None,
) -> None:
    """Send dead letters again, with patience as for new ones. Exit code 2 where there is none to send."""
    from gateway.ledger import deliveries

    if sum((delivery_id is not None, peer is not None, everything)) != 1:
        raise UsageError("expected one of ID, --peer NAME, --all: `medseg outbox` shows the dead letters")
    with open_ledger(read_settings(config)) as ledger:
        count = ledger.write(deliveries.retry_dead, time.time(), delivery_id, peer)
    if not count:
        of = f"delivery {delivery_id} is none" if delivery_id is not None else "there is none"
        raise UsageError(f"no dead letter: {of}; `medseg outbox` shows those that are")
    console.say(f"{count} queued")


def retry_job(job_id: Annotated[int, typer.Argument(metavar="ID")], config: Config = None) -> None:
    """Run a failed job again, with patience as for a new one."""
    from gateway.ledger import jobs

    with open_ledger(read_settings(config)) as ledger:
        wrong = ledger.write(jobs.retry_job, job_id, time.time())
    if wrong:
        raise UsageError(wrong)
    console.say(f"job {job_id} is queued")


RULES = """
[bold]Examples[/bold]

  medseg rules test study/

  medseg rules test study/ --calling-ae CT01 --called-ae MEDSEG --json
"""


@rules_app.command("test", epilog=RULES)
def test(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File, folder, zip or DICOMDIR.")],
    calling_ae: Annotated[str | None, typer.Option(metavar="AE", help="As if this AE had sent it.")] = None,
    called_ae: Annotated[str | None, typer.Option(metavar="AE", help="As if it was sent to this AE title.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Which rule takes each series and why no other does, which bundle segments it, and where results would go."""
    from gateway.decide.trial import try_rules, try_studies
    from medseg.dicom.sources import find_instances

    settings = read_settings(config)
    with console.progress(str(path)) as report:
        found = find_instances(path, on_progress=report)
    if not found.instances:
        raise EmptyInput(path, found.looked_at)
    trials = try_rules(found.series(), settings, calling_ae, called_ae or settings.gateway.ae_title)
    for trial in trials:
        if as_json:
            console.show_json(_record(trial))
        else:
            for line in _lines(trial, calling_ae):
                console.show(line)
    for study in try_studies(trials, settings, calling_ae):
        if as_json:
            console.show_json(_study_record(study))
        else:
            _show_study(study, calling_ae)
    console.tell_skipped(found.skipped)


def _record(trial: Trial) -> dict[str, Any]:
    return {
        "study_uid": trial.series.study_uid,
        "series_uid": trial.series.series_uid,
        "instances": len(trial.series.instances),
        "rule": trial.rule.name if trial.rule else None,
        "mode": str(trial.rule.mode) if trial.rule else None,
        "barred": trial.explanation.barred or None,
        "passed_over": trial.passed_over or None,
        "bundles": list(trial.bundles),
        "refused": list(trial.refused),
        "destinations": list(trial.destinations),
        "rules": [
            {
                "rule": one.rule.name,
                "chosen": one.chosen,
                "verdict": str(one.verdict),
                "conditions": [_condition(finding) for finding in one.findings],
            }
            for one in trial.explanation.decisions
        ],
    }


def _study_record(trial: StudyTrial) -> dict[str, Any]:
    from medseg.cli.channels import choice_record

    of_study = {"study_uid": trial.study_uid, "rule": trial.rule.name, "mode": str(trial.rule.mode)}
    found: dict[str, Any] = {"bundle": trial.rule.bundle, "channels": []}
    if trial.bundle is not None and trial.look is not None:
        found = choice_record(trial.study_uid, trial.bundle, trial.look.choices)
    return found | of_study | {"refused": trial.refused or None, "destinations": list(trial.destinations)}


def _show_study(trial: StudyTrial, calling_ae: str | None) -> None:
    from medseg.cli.channels import show_choices

    console.show(f"study {trial.study_uid}  by rule {trial.rule.name}")
    if trial.bundle is not None and trial.look is not None:
        show_choices(trial.bundle, trial.look.choices)
        console.show(f"  waits up to {trial.rule.channels_within_s:g} s for a channel that is missing")
    console.show(
        f"  not segmented: {trial.refused}" if trial.refused else f"  {_to(trial.rule, trial.destinations, calling_ae)}"
    )


def _condition(finding: ConditionFinding) -> dict[str, Any]:
    inner = {"conditions": [_condition(one) for one in finding.inner]} if finding.inner else {"found": finding.found}
    return {"key": finding.key, "verdict": str(finding.verdict)} | inner


def _lines(trial: Trial, calling_ae: str | None) -> list[str]:
    from gateway.settings.model import Mode

    head = f"series {trial.series.series_uid}  {trial.series.modality or '?'}  {len(trial.series.instances)} instances"
    lines = [head, *(f"  {line}" for line in trial.explanation.lines())]
    if trial.passed_over:
        lines.append(f"  passed over: {trial.passed_over}")
    if trial.rule is None:
        return lines
    lines += [f"  bundle: {name}" for name in trial.bundles]
    lines += [f"  not segmented: {why}" for why in trial.refused]
    if trial.of_study:
        lines.append("  with the others of its study: see below")
    elif trial.rule.mode is Mode.SHADOW or trial.bundles:
        lines.append(f"  {_to(trial.rule, trial.destinations, calling_ae)}")
    return lines


def _to(rule: Rule, destinations: Sequence[str], calling_ae: str | None) -> str:
    """Where the results would go."""
    from gateway.settings.model import Mode

    if rule.mode is Mode.SHADOW:
        return "to: nobody, since the mode is shadow"
    caller = f"{calling_ae} is no known peer" if calling_ae else "the caller, where it is a known peer (--calling-ae)"
    return f"to: {', '.join(destinations) or (caller if rule.send_to is None else 'nobody')}"


def purge(
    study_uid: Annotated[str, typer.Argument(metavar="STUDY", help="Study Instance UID.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
) -> None:
    """Take a study away from spool, results and ledger, and end all work for it. The service may run.

    What was sent to others stays there. What comes for the study later is a new study.
    """
    from gateway.keep import purge as purging

    settings = read_settings(config)
    with open_ledger(settings) as ledger:
        there = purging.content_of(ledger, study_uid)
        if not yes:
            typer.confirm(f"study {study_uid}: {_counted(asdict(there))}: take all of it away?", abort=True, err=True)
        gone = purging.purge(ledger, settings.gateway.spool, study_uid, time.time())
    console.show(f"purged study {study_uid}: {_counted(asdict(gone))}")


def _counted(there: dict[str, int]) -> str:
    size_mb = there.pop("size_bytes") / 1e6
    return f"{', '.join(f'{number} {what}' for what, number in there.items())}, {size_mb:.1f} MB"


def backup(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    config: Config = None,
) -> None:
    """Save ledger, spool and settings in a new folder while the service runs, and verify what was saved.

    On the spool's own file system files are hard links, which do not outlive the disk: name a folder on another.
    """
    from gateway.keep import backup as saving

    settings = read_settings(config)
    with open_ledger(settings) as ledger:
        made = saving.backup(ledger, settings.gateway.spool, to, settings_file(config))
    linked = f", {made.linked} of them hard links" if made.linked else ""
    console.show(f"{to}: ledger and {made.files} files{linked}, {made.size_bytes / 1e6:.1f} MB, verified")
