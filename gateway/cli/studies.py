"""`medseg studies`: studies whose images name two patients, and what a person makes of that."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import Config, Json, open_ledger, read_settings
from medseg.cli import console
from medseg.errors import UnreadableInstance, UsageError

if TYPE_CHECKING:
    from gateway.decide.settle import SettledPatients

studies_app = typer.Typer(help="Studies whose images name several patients.", invoke_without_command=True)
EXAMPLES = """
[bold]Examples[/bold]

  medseg studies

  medseg studies show 1.2.840.113619.2.55.3 --names

  medseg studies merge 1.2.840.113619.2.55.3 --patient B

  medseg studies split 1.2.840.113619.2.55.3
"""
Study = Annotated[str, typer.Argument(metavar="STUDY", help="Study Instance UID.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(studies_app, name="studies", epilog=EXAMPLES)


@studies_app.callback()
def studies(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """Studies with images of several patients, on which work is stopped."""
    from gateway.ledger import patients
    from gateway.show import studies as reading

    if context.invoked_subcommand is not None:
        return
    with open_ledger(read_settings(config)) as ledger, ledger.read() as db:
        found = [reading.study(db, row.study_uid) for row in patients.open_conflicts(db)]
    _show([one for one in found if one is not None], as_json)


@studies_app.command("show", epilog=EXAMPLES)
def show(
    study_uid: Study,
    names: Annotated[
        bool, typer.Option("--names", help="Print what the images say of each patient, on this terminal alone.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Whose the images of a study say they are: by letters, who sent them, and when."""
    from gateway.ledger import patients
    from gateway.show import studies as reading

    settings = read_settings(config)
    with open_ledger(settings) as ledger, ledger.read() as db:
        study = reading.study(db, study_uid)
        known = patients.described(db, study_uid)
    if study is None:
        raise UsageError(f"nothing of study {study_uid} is here: never received, or removed by retention or a purge")
    _show([study], as_json)
    for one in known if names else ():
        said = _said(settings.gateway.spool, one.path)
        if as_json:
            console.show_json({"letter": one.letter} | said)
        else:
            console.show(f"patient {one.letter}: {', '.join(f'{word} {value}' for word, value in said.items())}")


def _show(found: list[Any], as_json: bool) -> None:

    from gateway.show import text

    for study in found:
        if as_json:
            console.show_json(asdict(study))
        else:
            for line in text.lines(study):
                console.show(line)


def _said(spool: Path, path: str | None) -> dict[str, str]:
    """What an image says of its patient (PS3.3 C.7.1.1)."""
    from medseg.dicom.headers import look, read_instance

    keywords = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
    if path is None:
        return {"images": "none is here any more"}
    try:
        view = look(read_instance(lambda: (spool / path).open("rb"), path).header)
    except UnreadableInstance as error:
        return {"images": error.why}
    return {keyword: view.text(keyword) or "-" for keyword in keywords}


@studies_app.command("merge", epilog=EXAMPLES)
def merge(
    study_uid: Study,
    patient: Annotated[str, typer.Option("--patient", metavar="LETTER", help="Whose all images are.")],
    config: Config = None,
) -> None:
    """All images of a study are of one patient: its results are made under that identity."""
    from gateway.decide import settle

    with open_ledger(read_settings(config)) as ledger:
        done = ledger.write(settle.merge, study_uid, patient, time.time())
    _tell(f"merged to patient {patient.upper()}", done)


@studies_app.command("split", epilog=EXAMPLES)
def split(study_uid: Study, config: Config = None) -> None:
    """The images of a study are of several patients: each patient's part goes on by itself."""
    from gateway.decide import settle

    with open_ledger(read_settings(config)) as ledger:
        done = ledger.write(settle.split, study_uid, time.time())
    _tell("split", done)


def _tell(what: str, done: SettledPatients) -> None:

    again = f"; results are made anew by jobs {', '.join(map(str, done.jobs))}" if done.jobs else ""
    console.say(f"{what}{again}")
    for series_uid in done.gone:
        console.say(
            f"series {series_uid}: retention has deleted images of it: send it again to have its result made anew"
        )
