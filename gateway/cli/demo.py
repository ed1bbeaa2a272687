"""The gateway's half of `medseg demo`: the same study once more, this time by DICOM.

    small PACS ──C-STORE──> medseg serve ──> SEG, SR ──C-STORE──> small PACS ──storage commitment──> medseg serve

`medseg serve` runs as anybody would start it, on free ports of loopback, and is gone when this ends, however it ends.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli import console
from medseg.errors import MedsegError
from medseg.progress import Cancelled, check

if TYPE_CHECKING:
    from gateway.dimse.demo_pacs import SmallPacs
    from gateway.settings.model import Destination

OURS, PACS = "MEDSEG", "PACS"
PATIENCE_S = 300.0
STOP_S = 60.0
LOOK_S = 0.05

SETTINGS = """\
# Written by `medseg demo`. Look at what happened: medseg jobs --config {file}

[gateway]
ae_title = "{ours}"
port = {port}
http_port = {http_port}
allow_callers = ["{pacs}"]

[limits]                        # the demonstration is small, and the disk may be nearly full
disk_used_percent = 100
disk_free_gb = 0

[[peer]]
name = "pacs"
ae_title = "{pacs}"
host = "127.0.0.1"
port = {pacs_port}
"""


class DemoFailed(MedsegError):
    """The round trip did not come to its end."""

    code = "demo_failed"


def round_trip(study: Path, results: Path, folder: Path) -> None:
    """Send a study to `medseg serve`, and have its results back (entry point `medseg.demos`).

    study: a folder of DICOM series. results: what `medseg infer` made of it, to compare with. folder: for what this
    writes; emptied. Raises DemoFailed, Interrupted.
    """
    from gateway.dimse.demo_pacs import SmallPacs
    from gateway.settings.model import Destination

    if folder.exists():
        shutil.rmtree(folder)
    archive = folder / "pacs"
    archive.mkdir(parents=True)
    expected = _by_uid(results)
    with console.interruptible() as cancelled, SmallPacs(archive, PACS) as pacs:
        gateway = Destination(OURS, "127.0.0.1", _free_port(), PACS)
        settings = folder / "medseg.toml"
        values = {"port": gateway.port, "http_port": _free_port(), "pacs_port": pacs.port}
        settings.write_text(SETTINGS.format(file=settings, ours=OURS, pacs=PACS, **values), "utf-8")
        console.say(f"medseg serve starts on port {gateway.port}, beside a small PACS on port {pacs.port}")
        with _serving(settings, folder / "serve.log", cancelled) as until:
            until("medseg serve to answer C-ECHO", lambda: _answers(gateway))
            sent, first_s, last_s = _send(study, gateway)
            console.show(f"Sent {sent} images by C-STORE to {gateway} in {last_s - first_s:.2f} s")
            until("the results", lambda: pacs.received().keys() >= expected.keys())
            console.show(f"  last image in -> last result back: {max(pacs.received().values()) - last_s:.2f} s")
            _compare(pacs, expected)
            console.show(f"  {len(expected)} objects came back, the same as above; the SEGs voxel for voxel")
            until("storage commitment", lambda: pacs.committed() >= expected.keys())
            console.show(f"  storage commitment of all of them confirmed {time.monotonic() - last_s:.2f} s after it")
    console.show(f"  files: {archive}; what the gateway noted: medseg jobs --config {settings}")


@contextmanager
def _serving(settings: Path, log: Path, cancelled: Cancelled) -> Iterator[Callable[[str, Callable[[], bool]], None]]:
    """A running `medseg serve`, and what waits until something is so while it runs."""
    with log.open("wb") as out:
        command = [sys.executable, "-m", "medseg", "serve", "--config", str(settings)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def until(what: str, so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not so():
            check(cancelled)
            if process.poll() is not None or time.monotonic() > deadline_s:
                ended = f"medseg serve ended ({process.returncode})" if process.returncode is not None else "it is late"
                raise DemoFailed(f"waiting for {what}: {ended}: see {log}")
            time.sleep(LOOK_S)

    try:
        yield until
    except MedsegError:
        check(cancelled)  # a Ctrl-C reaches medseg serve, too, and what it breaks off is no failure
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _send(study: Path, gateway: Destination) -> tuple[int, float, float]:
    """Send all files of a study: their number, and when the first began and the last was answered (s, monotonic)."""
    from gateway.dimse import scu

    files = [scu.read_file(path) for path in sorted(study.rglob("*.dcm"))]
    with scu.associate(gateway, [file.proposal() for file in files]) as link:
        first_s = time.monotonic()
        for file in files:
            answer = link.store(file)
            if answer.status != 0x0000:
                raise DemoFailed(f"{gateway} does not store {file.path}: {answer}")
        return len(files), first_s, time.monotonic()


def _answers(gateway: Destination) -> bool:
    from gateway.dimse import scu

    try:
        return scu.echo(gateway) == 0x0000
    except scu.NoAssociation:
        return False


def _by_uid(results: Path) -> dict[str, Path]:
    from gateway.dimse import scu

    return {scu.read_file(path).sop_instance_uid: path for path in results.glob("*/*.dcm")}


def _compare(pacs: SmallPacs, expected: dict[str, Path]) -> None:
    """Raises DemoFailed where a segmentation is another one than `medseg infer` made."""
    from pydicom import dcmread

    for uid, path in expected.items():
        here, there = dcmread(path), dcmread(pacs.file(uid))
        if here.get("PixelData") != there.get("PixelData"):
            raise DemoFailed(f"{pacs.file(uid)} has other voxels than {path}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
