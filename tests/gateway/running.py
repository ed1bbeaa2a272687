"""A running `medseg serve` for tests, a sender, and a peer that takes results."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import create_engine, text

from tests.gateway.receiving import CT, associate
from tests.ports import free_port
from tests.waiting import PATIENCE_S, wait_for


class Serving:
    """`medseg serve` in a folder of its own."""

    before: Sequence[str] = ()  # of the command
    module = "medseg"
    environment: Mapping[str, str] = {}

    def __init__(self, folder: Path, settings: str, gateway: str = "") -> None:
        """settings: the file's, continuing its [limits]; gateway: more of its [gateway]."""
        self.folder, self.port, self.http_port = folder, free_port(), free_port()
        self.log = folder / "serve.log"
        (folder / "medseg.toml").write_text(
            f"[gateway]\nport = {self.port}\nhttp_port = {self.http_port}\n{gateway}"
            "[limits]\ndisk_used_percent = 100\ndisk_free_gb = 0\n" + settings
        )
        self.database = f"sqlite:///{folder}/ledger.db"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        command = [sys.executable, "-m", self.module, "serve", "--config", str(self.folder / "medseg.toml")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, *command],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment,
            )
        wait_for("the receiver", self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self._port_is_open()

    def _port_is_open(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code. A service that was killed leaves processes that end soon: whoever answers next is new."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        wait_for("the end of its processes", lambda: not self._port_is_open())
        return code

    def send(self, datasets: Sequence[Dataset]) -> None:
        """By pynetdicom, over one association; each is stored."""
        with self.sending(datasets[0].SOPClassUID) as send:
            send(datasets)

    @contextlib.contextmanager
    def sending(self, sop_class: str = CT) -> Iterator[Callable[[Sequence[Dataset]], None]]:
        """As `send`, piece by piece over an association that is released at the end."""
        assoc = associate(self.port, [(sop_class, (ExplicitVRLittleEndian,))])
        assert assoc.is_established

        def send(datasets: Sequence[Dataset]) -> None:
            assert [assoc.send_c_store(one).Status for one in datasets] == [0x0000] * len(datasets)

        yield send
        assoc.release()

    def told(self) -> list[dict[str, Any]]:
        """What was logged. Every line is an object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and body of an answer of the web process; status 0 where there is none."""
        connection = HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def rows(self, query: str) -> list[Any]:
        engine = create_engine(self.database)
        with engine.connect() as db:
            found = list(db.execute(text(query)))
        engine.dispose()
        return found

    def pid_of(self, name: str) -> int | None:
        """The process of that name, from its heartbeat; once it has started."""
        file = self.folder / "spool" / "processes" / name
        told: dict[str, Any] = wait_for(f"the {name}", lambda: file.exists() and json.loads(file.read_text() or "{}"))
        return int(told["pid"])

    def medseg(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "medseg", *arguments, "--config", str(self.folder / "medseg.toml")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def serving(folder: Path, settings: str) -> Iterator[Serving]:
    service = Serving(folder, settings)
    service.start()
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()
