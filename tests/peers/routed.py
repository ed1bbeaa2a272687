"""medseg and Orthanc as docker-compose.yml joins them: the files of deploy/ with ports, hosts and folders changed.

with routed(folder) as pair:          Orthanc routes to medseg, medseg answers to Orthanc
    pair.send(files)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.dimse import scu
from gateway.settings.model import Destination
from tests.gateway.receiving import STORESCU
from tests.gateway.running import Serving
from tests.peers import missing, orthanc
from tests.ports import free_port
from tests.waiting import wait_for

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PLUGINS = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"  # Debian's; the container's image names its own


@dataclass
class Pair:
    """Both, running."""

    medseg: Serving
    orthanc: dict[str, Any]
    http_port: int  # of medseg

    def send(self, files: Sequence[Path]) -> None:
        """To Orthanc, by DCMTK."""
        if not Path(STORESCU).exists():
            missing("storescu")
        command = [STORESCU, "-xe", "-aec", "ORTHANC", "127.0.0.1", str(self.orthanc["dicom_port"]), *map(str, files)]
        subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, check=True, capture_output=True)

    def get(self, path: str) -> bytes:
        """From Orthanc's REST interface."""
        with urllib.request.urlopen(self.orthanc["rest"] + path, timeout=30) as answer:
            return bytes(answer.read())

    def ask(self, path: str, body: Any = None) -> Any:
        """JSON from Orthanc's REST interface, by GET or by POST of a JSON body."""
        if body is None:
            return json.loads(self.get(path))
        url = self.orthanc["rest"] + path
        with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=30) as answer:
            return json.load(answer)


@contextlib.contextmanager
def routed(folder: Path) -> Iterator[Pair]:
    """medseg serve and Orthanc in folders of their own."""
    dicom_port, orthanc_port, http_port = free_port(), free_port(), free_port()
    (folder / "medseg").mkdir()
    service = Serving(folder / "medseg", "")
    (service.folder / "medseg.toml").write_text(medseg_settings(service, http_port, dicom_port))
    service.start()
    wait_for("medseg to answer C-ECHO", lambda: _answers(service.port))
    try:
        started = orthanc.launch(
            folder / "orthanc", orthanc_configuration(folder / "orthanc", dicom_port, orthanc_port, service.port)
        )
        try:
            yield Pair(service, started, http_port)
        finally:
            orthanc.stop(folder / "orthanc")
    finally:
        if service.process.poll() is None:
            service.stop()


def _answers(port: int) -> bool:
    try:
        return scu.echo(Destination("MEDSEG", "127.0.0.1", port, "ORTHANC")) == 0x0000
    except scu.NoAssociation:
        return False


def medseg_settings(service: Serving, http_port: int, orthanc_port: int) -> str:
    """deploy/medseg.toml for loopback: only places change, and a test's disk may be full."""
    text = (DEPLOY / "medseg.toml").read_text("utf-8")
    for key, there, here in (
        ("host", '"0.0.0.0"', f'"127.0.0.1"\nport = {service.port}\nhttp_port = {http_port}'),
        ("host", '"orthanc"', '"127.0.0.1"'),
        ("port", "4242", str(orthanc_port)),
        ("spool", '"/var/lib/medseg/spool"', f'"{service.folder}/spool"'),
        ("database", '"sqlite:////var/lib/medseg/ledger.db"', f'"sqlite:///{service.folder}/ledger.db"'),
    ):
        text, count = re.subn(rf"(?m)^{key} = {re.escape(there)}", lambda _, k=key, h=here: f"{k} = {h}", text)
        assert count == 1, f"deploy/medseg.toml has {key} = {there} {count} times"
    return text + "\n[limits]\ndisk_used_percent = 100\ndisk_free_gb = 0\n"


def orthanc_configuration(folder: Path, dicom_port: int, http_port: int, medseg_port: int) -> dict[str, Any]:
    """deploy/orthanc.json and deploy/route.lua for loopback: only places change."""
    configuration: dict[str, Any] = json.loads((DEPLOY / "orthanc.json").read_text("utf-8"))
    assert configuration["LuaScripts"] == ["/etc/orthanc/route.lua"]
    configuration["DicomModalities"]["medseg"] |= {"Host": "127.0.0.1", "Port": medseg_port}
    places = {
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "LuaScripts": [str(DEPLOY / "route.lua")],
        "Plugins": [PLUGINS],
    }
    return configuration | places
