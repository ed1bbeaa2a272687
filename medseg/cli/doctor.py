"""`medseg doctor`: is everything here that medseg needs? Each line ok, or what to do.

Other packages add checks through the entry point group `medseg.checks`: functions that take the file of settings that
was named, or None, and give `Check`s.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.errors import BundleError
from medseg.job.exits import OK, RESOURCES

if TYPE_CHECKING:
    import torch

CHECKS = "medseg.checks"
_ENOUGH_MEMORY_GB = 4.0
_ENOUGH_DISK_GB = 5.0


@dataclass(frozen=True)
class Check:
    """One thing looked at. advice: what to do where it is not ok, or `doubtful`: it works, and may not be meant so.

    details: more about it, a line each.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""
    doubtful: bool = False
    details: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        return "FAIL" if not self.ok else "see " if self.doubtful else "ok  "


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings of `medseg serve`; default: medseg.toml where it is here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per check on stdout.")] = False,
) -> None:
    """Check device, memory, decoders, bundles and disk, and what the gateway needs: each line ok, or what to do."""
    checks = list(_own())
    for extension in entry_points(group=CHECKS):
        checks += extension.load()(config)
    for check in checks:
        if as_json:
            console.show_json(asdict(check))
        else:
            console.show(f"{check.verdict}  {check.name}: {check.found}")
            for line in (*check.details, *([check.advice] if not check.ok or check.doubtful else [])):
                console.show(f"      {line}")
    raise typer.Exit(OK if all(check.ok for check in checks) else RESOURCES)


def _own() -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or newer")
    yield from _device()
    yield _memory()
    yield from _decoders()
    yield from _bundles()
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Check("disk", free_gb >= _ENOUGH_DISK_GB, f"{free_gb:.0f} GB free here", "free some space for results")


def _device() -> Iterator[Check]:
    import torch

    from medseg.inference.engines.device import choose_device

    device = choose_device("auto")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield Check("device", True, f"{device} ({what}), torch {torch.__version__}")
    yield Check("engines", True, _engines(device))


def _engines(device: torch.device) -> str:
    """Those that can run here, and why others cannot."""
    from medseg.inference.engines.backends import BACKENDS

    found = {name: one.missing(device, "fp32") for name, one in BACKENDS.items() if name != "torch-channels-last"}
    able = ", ".join(name for name, why in found.items() if why is None)
    return able + "".join(f"; not {name} ({why})" for name, why in found.items() if why is not None)


def _memory() -> Check:
    total_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    advice = f"large CT series want {_ENOUGH_MEMORY_GB:g} GB"
    return Check("memory", total_gb >= _ENOUGH_MEMORY_GB, f"{total_gb:.0f} GB", advice)


def _decoders() -> Iterator[Check]:
    from pydicom.pixels.decoders.base import get_decoder

    from medseg.dicom.decode import PLUGINS

    for name in dict.fromkeys(PLUGINS.values()):
        syntaxes = [syntax for syntax, wanted in PLUGINS.items() if wanted == name]
        ok = all(name in get_decoder(syntax).available_plugins for syntax in syntaxes)
        advice = "reinstall medseg: its decoder packages are not all there"
        yield Check(f"decoder {name}", ok, ", ".join(syntax.keyword for syntax in syntaxes), advice)


def _bundles() -> Iterator[Check]:
    from medseg.bundle.catalog import bundle_folders
    from medseg.bundle.load import load_bundle

    folders = bundle_folders()
    if not folders:
        yield Check("bundles", False, "none installed", "name one with --bundle DIR, or set MEDSEG_BUNDLES")
    for name, folder in folders.items():
        try:
            bundle = load_bundle(folder)
        except BundleError as error:
            yield Check(f"bundle {name}", False, str(error), "reinstall the bundle")
        else:
            yield Check(f"bundle {name}", True, f"version {bundle.version}, {bundle.digest[:12]}")
