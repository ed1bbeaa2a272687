"""Options of `medseg infer` for results without who they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import MedsegError, UsageError
from medseg.texts import shown

if TYPE_CHECKING:
    from medseg.deidentify.request import Deidentify

KEY = "Results without who they are of (PS3.15 Annex E), by the key in this file."
NEW_KEY = "Make the file of the key where there is none, for your eyes alone."
COPIES = "De-identified copies of the source images, too."
BURNED_IN = "Take images whose pixels may show whose they are: you have looked."


def read_request(
    key: Path | None, *, new_key: bool, copies: bool, burned_in: bool, out: Path | None
) -> Deidentify | None:
    """What is asked for. Raises UsageError, BadKey."""
    if key is None:
        if new_key or copies or burned_in:
            raise UsageError("--new-key, --copy-sources and --allow-burned-in go with --deidentify KEYFILE")
        return None
    if out is None:
        raise UsageError("--deidentify goes with -o: the usual folder is called by its input")
    from medseg.deidentify.key import read_key
    from medseg.deidentify.pseudonyms import Pseudonyms
    from medseg.deidentify.request import Deidentify

    return Deidentify(Pseudonyms(read_key(key, make=new_key, out=out)), copies, burned_in)


def folders_as_told(folders: Sequence[Path], out: Path | None, request: Deidentify | None) -> list[Path]:
    """Folders of results, by pseudonyms where they are called by their inputs."""
    if request is None:
        return list(folders)
    return [one if one == out else one.with_name(request.pseudonyms.name(one.name)) for one in folders]


def input_as_told(path: Path, request: Deidentify | None) -> str:
    """What an input is called in messages."""
    return name_as_told(shown(path), request)


def name_as_told(name: str, request: Deidentify | None) -> str:
    return name if request is None else request.pseudonyms.name(name)


def uid_as_told(uid: str, request: Deidentify | None) -> str:
    return uid if request is None else request.pseudonyms.uid(uid)


def error_as_told(error: MedsegError, path: Path, request: Deidentify | None) -> MedsegError:
    """An error about an input."""
    if request is None:
        return error
    from medseg.deidentify.words import unnamed

    told = unnamed(error, request.pseudonyms)
    told.args = (str(told).replace(shown(path), input_as_told(path, request)),)
    return told
