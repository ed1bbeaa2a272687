"""`medseg send` and `medseg echo`: the SCU for people.

`medseg.cli` is imported where it is used: it loads this module itself (entry point `medseg.commands`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.errors import UsageError

if TYPE_CHECKING:
    from gateway.dimse.scu import Destination, StoredFile

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
    from gateway.dimse import scu
    from gateway.retry import store_fault
    from medseg.cli import console

    destination = _destination(to, calling)
    files = _files(path)
    failed = 0
    with scu.associate(destination, [file.proposal() for file in files]) as link:
        for file in files:
            answer = link.store(file)
            stored = answer.accepted and store_fault(answer.status) is None
            failed += not stored
            said = "not accepted" if not answer.accepted else _hex(answer.status)
            if as_json:
                record = {"path": str(file.path), "sop_instance_uid": file.sop_instance_uid, "stored": stored}
                console.show_json(record | {"status": answer.status, "answer": said})
            else:
                console.show(f"{file.path}: {'stored' if stored else 'not stored'} ({said})")
    if failed:
        console.say(f"{failed} of {len(files)} not stored by {destination}")
        raise typer.Exit(1)


def echo(
    address: Annotated[str, typer.Argument(metavar=ADDRESS, help="Whom to call.")],
    calling: Calling = "MEDSEG",
) -> None:
    """Call a peer with C-ECHO. Exit code 1 where it does not answer with success."""
    from gateway.dimse import scu
    from medseg.cli import console

    destination = _destination(address, calling)
    status = scu.echo(destination)
    console.show(f"{destination}: {_hex(status)}")
    if status != 0x0000:
        raise typer.Exit(1)


def _files(path: Path) -> list[StoredFile]:
    """The DICOM files at or below a path; what is not one is told of and left out."""
    from gateway.dimse import scu
    from medseg.cli import console
    from medseg.errors import EmptyInput, NoSuchInput, UnreadableInstance

    if not path.exists():
        raise NoSuchInput(path)
    if path.is_file():
        return [scu.read_file(path)]
    found, looked_at = [], 0
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        looked_at += 1
        try:
            found.append(scu.read_file(file))
        except UnreadableInstance as error:
            console.warn(f"left out: {error}")
    if not found:
        raise EmptyInput(path, looked_at)
    return found


def _destination(address: str, calling: str) -> Destination:
    from gateway.dimse.scu import Destination
    from gateway.settings import values

    title, _, place = address.rpartition("@")
    host, _, port = place.rpartition(":")
    try:
        return Destination(
            values.ae_title(title), values.host(host.strip("[]")), values.PORT.read(int(port)), values.ae_title(calling)
        )
    except ValueError as error:
        raise UsageError(f"expected {ADDRESS}, found {address!r}: {error}") from error


def _hex(status: int | None) -> str:
    return "no answer" if status is None else f"{status:04X}H"
