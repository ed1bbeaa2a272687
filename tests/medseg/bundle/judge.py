"""Loads hostile folders in a process of its own under an audit hook (PEP 578), and tells what became of each.

    python -m tests.medseg.bundle.judge SOUND FOLDER...

The hook records every import, exec, process, socket and file written, after the sound folder has loaded whatever
loading needs. What payloads would leave behind are canaries, files beside their folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
WATCHED = (
    "import",
    "exec",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "subprocess.Popen",
    "socket.",
    "urllib.Request",
    "pickle.find_class",
    "ctypes.dlopen",
    "shutil.",
    "code.__new__",
)


def verdicts(sound: Path, folders: Mapping[str, Path], first: Sequence[Path] = ()) -> dict[str, dict[str, Any]]:
    """Of each folder what `attempt` says, the audit events meanwhile, and whether there is a canary.

    first: folders that are tried unwatched, since Python imports what it needs to describe a bad file.
    """
    given = [f"--first={folder}" for folder in first]
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(sound), *given, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return {name: answers[folder.name] | {"canary": canary(folder).exists()} for name, folder in folders.items()}


def canary(folder: Path) -> Path:
    """The file that only a payload in the folder would make."""
    return folder.with_name(f"{folder.name}.canary")


def attempt(folder: Path) -> tuple[str, str, str] | None:
    """Load all that a run needs of a bundle: the error's type, key and sentence; None where it loads."""
    import torch

    from medseg.bundle.describe import verify
    from medseg.bundle.load import load_bundle
    from medseg.bundle.transforms import monai_transforms
    from medseg.errors import BundleError

    try:
        bundle = load_bundle(folder)
        verify(bundle)
        if bundle.nnunet is None:
            monai_transforms(bundle, torch.device("cpu"))
    except BundleError as error:
        return type(error).__name__, getattr(error, "key", ""), str(error)
    return None


def main(arguments: Sequence[str]) -> None:
    watching = False
    events: list[str] = []

    def hook(event: str, given: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(given[1], str) and bool(set(given[1]) & set("wax+"))
        if watching and (writes or event.startswith(WATCHED)):
            events.append(f"{event} {given!r}"[:200])

    sys.addaudithook(hook)
    sound = Path(arguments[0])
    assert attempt(sound) is None, attempt(sound)
    answers = {}
    for argument in arguments[1:]:
        folder = Path(argument.removeprefix("--first="))
        events.clear()
        watching = not argument.startswith("--first=")
        answer = attempt(folder)
        watching = False
        answers[folder.name] = {"answer": answer, "events": list(events)}
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1:])
