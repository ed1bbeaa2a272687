"""Which file of weights a bundle's network gets: the one that its configuration loads (`loads`).

Where it loads nothing that is models/model.safetensors, or models/model.pt. Two files for one network, a file that is
not there or lies elsewhere, and a loader that is switched off are refused.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from medseg.bundle.loads import Load, LoadsReader
from medseg.bundle.safe_config import TWINS, SafeConfig, inside
from medseg.errors import InvalidBundle

USUAL: Final = ("models/model.safetensors", "models/model.pt")
TORCHSCRIPT: Final = "TorchScript is not read: it can run code; save the state dict"


@dataclass(frozen=True)
class Weights:
    """file: absolute. twin: another file there that must hold the same. entry: of a checkpoint, where it has it."""

    file: Path
    twin: Path | None = None
    entry: str | None = None


def find_weights(
    bundle: str, root: Path, config: SafeConfig, network: str, *, trained: bool = True, trust: bool = False
) -> Weights:
    """network: the key of the network in the configuration. Raises InvalidBundle."""
    loads = LoadsReader(bundle, root, config, network, trust).loads()
    if not loads:
        return _usual(bundle, root, trained)
    on = [load for load in loads if load.on]
    if not on:
        first = loads[0]
        _named(bundle, root, _within(bundle, root, first), first, trained)  # perhaps off because the file is missing
        why = f"{first.path} is named, but as the configuration is set nothing is loaded: let it be loaded"
        raise InvalidBundle(bundle, first.key, why)
    files = {_within(bundle, root, load): load for load in on}
    if len(files) > 1:
        named = " and ".join(f"{file} ({load.key})" for file, load in files.items())
        why = f"the configuration loads {named} into the same network: leave the one that is meant"
        raise InvalidBundle(bundle, on[-1].key, why)
    file, load = next(iter(files.items()))
    return _named(bundle, root, file, load, trained)


def _usual(bundle: str, root: Path, trained: bool) -> Weights:
    files = [inside(bundle, root, file) for file in USUAL if _there(root, file)]
    if files:
        return Weights(files[0], files[1] if len(files) > 1 else None)
    if not trained:
        return Weights(root / USUAL[0])
    if (root / "models/model.ts").exists():
        raise InvalidBundle(bundle, "models/model.ts", TORCHSCRIPT)
    why = "no weights: a bundle has models/model.safetensors or models/model.pt, or its configuration names them"
    raise InvalidBundle(bundle, USUAL[0], why)


def _named(bundle: str, root: Path, file: str, load: Load, trained: bool) -> Weights:
    path = PurePosixPath(file)
    if path.suffix == ".ts":
        raise InvalidBundle(bundle, file, TORCHSCRIPT)
    names = [str(path.with_suffix(".safetensors")), file] if path.suffix in TWINS else [file]
    there = [inside(bundle, root, name) for name in names if _there(root, name)]
    if there:
        return Weights(there[0], there[1] if len(there) > 1 else None, load.entry)
    if not trained and names[0] == file and path.suffix != ".safetensors":
        why = f"{load.key} names it: training writes NAME.safetensors, which stands for NAME.pt too: name one of these"
        raise InvalidBundle(bundle, file, why)
    if not trained:
        return Weights(root / names[0], None, load.entry)
    if _there(root, str(path.with_suffix(".ts"))):
        raise InvalidBundle(bundle, str(path.with_suffix(".ts")), TORCHSCRIPT)
    why = f"no weights: {load.key} of the configuration loads this file, and it is not there: add it, or name another"
    raise InvalidBundle(bundle, file, why)


def _there(root: Path, file: str) -> bool:
    return os.path.lexists(root / file)  # also a link that leads nowhere, which is then refused as such


def _within(bundle: str, root: Path, load: Load) -> str:
    """The path that a configuration names, from the bundle's folder on."""
    path = posixpath.normpath(load.path)
    if path.startswith(f"{root.as_posix()}/"):
        path = path.removeprefix(f"{root.as_posix()}/")
    if path.startswith("/") or path.split("/")[0] == "..":
        why = f"{load.path} leads out of the bundle's folder: weights lie within it (@bundle_root + '/models/...')"
        raise InvalidBundle(bundle, load.key, why)
    return path
