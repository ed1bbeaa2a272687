"""`medseg errors`, `medseg jobs run` and `medseg jobs dismiss`: what went wrong, and what is done about it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.options import Config, Json, open_ledger, read_settings
from medseg.cli import console
from medseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from gateway.ledger.ledger import Ledger
    from gateway.settings.model import GatewaySettings, Rule
    from medseg.conditions.clock import Moments

ERRORS = """
[bold]Examples[/bold]

  medseg errors

  medseg errors --code no_such_bundle --json

  medseg errors --accession A1234 --date 20260101-20260131
"""

RUN = """
[bold]Examples[/bold]

  medseg jobs run 1.2.840.113619.2.55.3              the rules of now are asked

  medseg jobs run 1.2.840.113619.2.55.3 --rule liver

  medseg jobs run 1.2.840.113619.2.55.3 --series 1.2.840.113619.2.55.3.1 --bundle spleen_ct
"""


RELEASE = """
[bold]Examples[/bold]

  medseg jobs release 17

  medseg jobs release 17 --channel T1c=1.2.840.113619.2.55.3.1

  medseg jobs release 17 --channel "DWI=1.2.840.113619.2.55.3.4#2" --assume-registered
"""


def register(app: typer.Typer, jobs_app: typer.Typer) -> None:
    """Add the commands."""
    app.command("errors", epilog=ERRORS)(errors)
    jobs_app.command("run", epilog=RUN)(run_jobs)
    jobs_app.command("release", epilog=RELEASE)(release_job)
    jobs_app.command("dismiss", epilog="[bold]Example[/bold]  medseg jobs dismiss 17")(dismiss_job)


def errors(
    code: Annotated[
        list[str] | None, typer.Option("--code", help="Only errors of this code (may be repeated).")
    ] = None,
    accession: Annotated[str | None, typer.Option(help="Only of studies with this accession number.")] = None,
    patient: Annotated[
        str | None, typer.Option(help="Only of this patient: a Patient ID, or the digest that --json shows.")
    ] = None,
    date: Annotated[
        str | None, typer.Option(help='Only of studies of this date: 20260131, ">=20260101", 20260101-20260131.')
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What went wrong and waits for a person: failed jobs, dead letters, held series. Each with what to do."""
    from gateway.show import text, troubles

    settings = read_settings(config)
    of_date = None if date is None else _moments(date)
    with open_ledger(settings) as ledger, ledger.read() as db:
        spool = settings.gateway.spool
        found = [one for one in troubles.troubles(db) if not code or one.code in code]
        shown = troubles.of_whom(db, spool, found, accession=accession, patient=patient, date=of_date)
        for trouble in shown:
            if as_json:
                whose = troubles.identity(db, spool, trouble.study_uid).patient
                console.show_json(asdict(trouble) | {"patient": whose})
                continue
            which = trouble.kind if trouble.id is None else f"{trouble.kind} {trouble.id}"
            where = f"study {trouble.study_uid}" + (f" series {trouble.series_uid}" if trouble.series_uid else "")
            console.show(f"{which} {trouble.code}, {text.moment(trouble.at)} UTC, {where}: {trouble.message}")
            if trouble.next_step:
                console.show(f"    {trouble.next_step}")
    if not shown and not as_json:
        console.show("nothing waits for a person" if not found else "none of what waits for a person is of that")


def _moments(date: str) -> Moments:
    from medseg.conditions.clock import ClockKind, Moments

    try:
        return Moments.reading(ClockKind.DATE)(date)
    except ValueError as error:
        raise UsageError(
            f'--date: expected a date such as 20260131, ">=20260101" or a range; found {date!r}'
        ) from error


def release_job(
    job_id: Annotated[int, typer.Argument(metavar="ID")],
    channel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=UID", help="A series of the study is that channel; #2 for its second volume. Repeatable."
        ),
    ] = None,
    assume_registered: Annotated[
        bool, typer.Option("--assume-registered", help="Take channels of other frames of reference as they lie.")
    ] = False,
    config: Config = None,
) -> None:
    """Let a held job run.

    One that lacks channels is looked at once more, with what is said of them: it runs where that suffices.
    """
    from gateway.decide import gathered
    from gateway.ledger import jobs
    from gateway.ledger.states import JobState

    with open_ledger(read_settings(config)) as ledger:
        with ledger.read() as db:
            job = jobs.find_job(db, job_id)
        if job is None or job.state != JobState.HELD:
            raise UsageError(f"job {job_id} is not held: `medseg jobs` shows those that are")
        if job.lacks_something:
            ledger.write(gathered.release, job, _channels(job.bundle, channel or ()), assume_registered, time.time())
            console.say(f"job {job_id} is looked at: it is queued where nothing is missing, else it says what is")
            return
        if channel or assume_registered:
            raise UsageError(f"job {job_id} lacks no channel: `medseg jobs release {job_id}` lets it run")
        ledger.write(jobs.release_held, job_id, time.time())
    console.say(f"job {job_id} is queued")


def _channels(bundle: str, given: Sequence[str]) -> dict[str, str]:
    """The series that were named, by channel. Raises UsageError."""
    from medseg.bundle.catalog import find_bundle
    from medseg.cli.channels import read_given

    numbered = read_given(given, find_bundle(bundle)) if given else {}
    return {one.name: one.what + (f"#{one.volume}" if one.volume is not None else "") for one in numbered.values()}


def run_jobs(
    study_uid: Annotated[str, typer.Argument(metavar="STUDY_UID")],
    series_uid: Annotated[str | None, typer.Option("--series", metavar="UID", help="Only this series.")] = None,
    bundle: Annotated[str | None, typer.Option(metavar="NAME|DIR", help="By this bundle.")] = None,
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="By this rule, whatever its conditions.")] = None,
    config: Config = None,
) -> None:
    """Segment a study that is here once more: as the rules of now say, or by a rule or a bundle that is named.

    A result that comes out the same stays as it is; another one replaces it, and names it. Exit code 2 where no series
    can be run.
    """
    from gateway.decide.gathered import BY_HAND
    from gateway.decide.several import SeveralChannels
    from gateway.settings.model import Rule
    from medseg.bundle.catalog import find_bundle

    if bundle is not None and rule is not None:
        raise UsageError("expected --bundle or --rule, not both: a rule names its bundle itself")
    settings = read_settings(config)
    named = None if rule is None else _rule(settings, rule)
    if bundle is not None:
        find_bundle(bundle)
    by = named or (Rule(BY_HAND, bundle=bundle) if bundle is not None else None)
    with open_ledger(settings) as ledger:
        alone, together = SeveralChannels().parted(by)
        for one in together:
            _run_study(ledger, study_uid, series_uid, one)
        if together and not alone:
            return
        named = named and replace(named, bundle=alone[0].bundle, beside=tuple(one.bundle or "" for one in alone[1:]))
        said = ledger.write(_run, study_uid, series_uid, bundle, named, time.time())
    done = "the rules are asked" if bundle is None and rule is None else "queued"
    for series, why in said.items():
        console.show(f"series {series}: {why or done}")
    if not said:
        raise UsageError(_unknown(study_uid, series_uid))
    if all(said.values()):
        raise UsageError(f"study {study_uid}: none of its series can be run")


def _run_study(ledger: Ledger, study_uid: str, series_uid: str | None, rule: Rule) -> None:
    """A study is looked at for a bundle of several channels, whatever the conditions of rules."""
    from gateway.decide import gathered

    if series_uid is not None:
        raise UsageError(f"bundle {rule.bundle} is of several series of a study: leave --series out")
    if not ledger.write(gathered.ask_by_hand, study_uid, rule, time.time()):
        raise UsageError(_unknown(study_uid, None))
    console.show(f"study {study_uid}: looked at for the channels of bundle {rule.bundle}")


def _unknown(study_uid: str, series_uid: str | None) -> str:
    what = f"study {study_uid}" if series_uid is None else f"series {series_uid} of study {study_uid}"
    return f"nothing of {what} is here: never received, or removed by retention or a purge"


def _run(
    db: Connection, study_uid: str, series_uid: str | None, bundle: str | None, rule: Rule | None, now: float
) -> dict[str, str]:
    """Why each series of the study cannot be run; empty where it can, and is."""
    from gateway.decide.gathered import BY_HAND
    from gateway.decide.jobs import job_for, rule_of
    from gateway.ledger import jobs, replays, series
    from gateway.settings.model import Rule

    reasons: dict[str, str] = {}
    for row in series.series_of(db, study_uid):
        if series_uid not in (None, row.series_uid):
            continue
        if bundle is None and rule is None:
            anew = replays.reopen(db, study_uid, row.series_uid)
            reasons[row.series_uid] = "" if anew else "images of it may still come, or were deleted by retention"
            continue
        before = jobs.latest_job(db, study_uid, row.series_uid)
        by = rule or replace(Rule(BY_HAND) if before is None else rule_of(before), bundle=bundle)
        new = [job_for(one, study_uid, row.series_uid, row.revision, now) for one in by.each]
        reasons[row.series_uid] = replays.run_by_hand(db, new, now)
    return reasons


def _rule(settings: GatewaySettings, name: str) -> Rule:
    for rule in settings.rules:
        if rule.name == name:
            return rule
    raise UsageError(f"no rule {name!r}: the rules are {', '.join(rule.name for rule in settings.rules)}")


def dismiss_job(job_id: Annotated[int, typer.Argument(metavar="ID")], config: Config = None) -> None:
    """Nothing more is to be done about a job that failed or lacks channels: its images go as others do."""
    from gateway.ledger import replays

    with open_ledger(read_settings(config)) as ledger:
        if not ledger.write(replays.dismiss, job_id, time.time()):
            raise UsageError(f"job {job_id} has not failed, and lacks nothing: `medseg errors` shows those that have")
    console.say(f"job {job_id} is dismissed")
