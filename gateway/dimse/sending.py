"""DICOM files to a peer by C-STORE, at somebody's word: what `medseg send` does, and a program that has results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.dimse import scu
from gateway.dimse.scu import Answer, StoredFile
from gateway.retry import store_fault
from gateway.settings import values
from gateway.settings.model import Destination
from medseg.allowed import ae_title
from medseg.errors import EmptyInput, NoSuchInput, UnreadableInstance, UsageError


@dataclass(frozen=True, slots=True)
class Sent:
    """A file, and what the peer answered."""

    file: StoredFile
    answer: Answer

    @property
    def stored(self) -> bool:
        """Whether the peer says that it has the object now, if with a warning."""
        return self.answer.accepted and store_fault(self.answer.status) is None


@dataclass(frozen=True)
class Sending:
    """What came of `send`. left_out: the files that are not DICOM objects, each with the reason."""

    sent: tuple[Sent, ...]
    left_out: tuple[UnreadableInstance, ...]

    @property
    def not_stored(self) -> tuple[Sent, ...]:
        """What the peer does not have; empty where all is well."""
        return tuple(each for each in self.sent if not each.stored)


def send(path: Path | str, to: str, *, calling: str = "MEDSEG") -> Sending:
    """Send a DICOM file, or all in and below a folder, over one association.

    to: whom to send to, "AE@HOST:PORT". calling: the AE title to call by. A file that the peer does not store raises
    nothing: look at `Sending.not_stored`.

    Raises:
        UsageError: `to` or `calling` is none.
        NoSuchInput, UnreadableInstance: the path does not exist, or is one file and not a DICOM object.
        EmptyInput: a folder without a DICOM object.
        NoAssociation: the peer cannot be reached, or rejects us.
    """
    destination = read_address(to, calling)
    files, left_out = files_below(Path(path))
    return Sending(tuple(send_files(files, destination)), tuple(left_out))


def send_files(files: Sequence[StoredFile], destination: Destination) -> Iterator[Sent]:
    """Send files over one association, and say of each what was answered as soon as it was. Raises NoAssociation."""
    with scu.associate(destination, [file.proposal() for file in files]) as link:
        for file in files:
            yield Sent(file, link.store(file))


def files_below(path: Path) -> tuple[list[StoredFile], list[UnreadableInstance]]:
    """The DICOM objects at or below a path, and why what else lies there is none.

    Raises NoSuchInput, EmptyInput, and UnreadableInstance where the path is one file that is none.
    """
    if not path.exists():
        raise NoSuchInput(path)
    if path.is_file():
        return [scu.read_file(path)], []
    files: list[StoredFile] = []
    left_out: list[UnreadableInstance] = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        try:
            files.append(scu.read_file(file))
        except UnreadableInstance as error:
            left_out.append(error)
    if not files:
        raise EmptyInput(path, len(left_out))
    return files, left_out


def read_address(address: str, calling: str) -> Destination:
    """Whom "AE@HOST:PORT" is, called under that AE title. Raises UsageError."""
    title, _, place = address.rpartition("@")
    host, _, port = place.rpartition(":")
    try:
        return Destination(
            ae_title(title), values.host(host.strip("[]")), values.PORT.read(int(port)), ae_title(calling)
        )
    except ValueError as error:
        raise UsageError(f"expected AE@HOST:PORT, found {address!r}: {error}") from error
