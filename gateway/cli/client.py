"""`medseg send` and `medseg echo`: the SCU for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console

ADDRESS = "AE@HOST:PORT"

Calling = Annotated[str, typer.Option("--calling", metavar="AE", help="The AE title to call by.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("send", epilog="[bold]Example[/bold]  medseg send study/ --to PACS@127.0.0.1:4242")(send)
    app.command("echo", epilog="[bold]Example[/bold]  medseg echo PACS@127.0.0.1:4242")(echo)


def send(
    path: Annotated[Path, typer.Argument(help="A DICOM file, or a folder of them.")],
    to: Annotated[str, typer.Option("--to", metavar=ADDRESS, help="Whom to send to.")],
    calling: Calling = "MEDSEG",
    as_json: Json = False,
) -> None:
    """Send DICOM files with C-STORE, over one association. Exit code 1 where the peer did not store all of them."""
    from gateway.dimse import sending

    destination = sending.read_address(to, calling)
    files, left_out = sending.files_below(path)
    for error in left_out:
        console.warn(f"left out: {error}")
    failed = 0
    for each in sending.send_files(files, destination):
        file, answer = each.file, each.answer
        failed += not each.stored
        answered = "not accepted" if not answer.accepted else _hex(answer.status)
        if as_json:
            record = {"path": str(file.path), "sop_instance_uid": file.sop_instance_uid, "stored": each.stored}
            console.show_json(record | {"status": answer.status, "answer": answered})
        else:
            console.show(f"{file.path}: {'stored' if each.stored else 'not stored'} ({answered})")
    if failed:
        console.say(f"{failed} of {len(files)} not stored by {destination}")
        raise typer.Exit(1)


def echo(
    address: Annotated[str, typer.Argument(metavar=ADDRESS, help="Whom to call.")],
    calling: Calling = "MEDSEG",
) -> None:
    """Call a peer with C-ECHO. Exit code 1 where it does not answer with success."""
    from gateway.dimse import scu
    from gateway.dimse.sending import read_address

    destination = read_address(address, calling)
    status = scu.echo(destination)
    console.show(f"{destination}: {_hex(status)}")
    if status != 0x0000:
        raise typer.Exit(1)


def _hex(status: int | None) -> str:
    return "no answer" if status is None else f"{status:04X}H"
