"""A running service with faults at exact moments and clocks that leap; what its ledger and its peer say."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset

from tests.gateway.faults.launch import CLOCK
from tests.gateway.receiving import CT, RawPeer, associate_request, encode, store_message
from tests.gateway.running import Serving
from tests.waiting import wait_for

#: Pauses of the service that would only make tests long.
QUICK: Mapping[str, Mapping[str, Any]] = {
    "gateway.serve.supervisor": {"FIRST_PAUSE_S": 0.1, "LONGEST_PAUSE_S": 0.1},
    "gateway.serve.processes": {"GRACE_S": 1.0, "ORPHAN_S": 1.0},
    "gateway.deliver.outbox": {"ASK_AFTER_S": 0.1},
}
_SCP_TIMEOUTS = "StorageScp.__init__.__kwdefaults__.timeouts"
QUICK_TO_LET_GO = QUICK | {
    "gateway.dimse.scp": {f"{_SCP_TIMEOUTS}.acse_s": 2, f"{_SCP_TIMEOUTS}.dimse_s": 2, f"{_SCP_TIMEOUTS}.network_s": 4}
}


class Faulty(Serving):
    """`medseg serve` under `tests.gateway.faults.launch`."""

    module = "tests.gateway.faults.launch"

    def __init__(
        self, folder: Path, settings: str, constants: Mapping[str, Mapping[str, Any]], spool: Path, ledger: Path
    ) -> None:
        """spool, ledger: folders for them."""
        gateway = f'spool = "{spool}/spool"\ndatabase = "sqlite:///{ledger}/ledger.db"\n'
        super().__init__(folder, settings, gateway)
        self.spool, self.database = spool / "spool", f"sqlite:///{ledger}/ledger.db"
        self.faults = folder / "faults"
        self.faults.mkdir()
        clock = folder / "clock"
        clock.write_bytes(CLOCK.pack(0.0, 0.0))
        with clock.open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), CLOCK.size)
        self.environment = {
            "MEDSEG_FAULTS": str(self.faults),
            "MEDSEG_CLOCK": str(clock),
            "MEDSEG_CONSTANTS": json.dumps(constants),
        }

    def start(self) -> None:
        for file in self.faults.glob("*.pid"):
            file.unlink()
        super().start()
        wait_for("its processes", lambda: {"receiver", "worker"} <= self.pids().keys())

    def arm(self, point: str, action: str, times: int = 1) -> None:
        """Let the next process that reaches a point come to harm there."""
        (self.faults / f"{point}.taken").unlink(missing_ok=True)
        part = self.faults / f"{point}.part"
        part.write_text(f"{action} {times}")
        part.rename(self.faults / point)

    def happened(self, point: str) -> bool:
        return (self.faults / f"{point}.taken").exists()

    def disarm(self) -> None:
        for file in self.faults.iterdir():
            if file.suffix != ".pid":
                file.unlink()

    def leap(self, seconds: float) -> None:
        """Let time pass: for both clocks."""
        wall, monotonic = CLOCK.unpack_from(self._clock)
        CLOCK.pack_into(self._clock, 0, wall + seconds, monotonic + seconds)

    def _set_wall_clock(self, seconds: float) -> None:
        wall, monotonic = CLOCK.unpack_from(self._clock)
        CLOCK.pack_into(self._clock, 0, wall + seconds, monotonic)

    @contextlib.contextmanager
    def wall_clock_set(self, seconds: float) -> Iterator[None]:
        """While somebody has set the wall clock forward, or back."""
        self._set_wall_clock(seconds)
        try:
            yield
        finally:
            self._set_wall_clock(-seconds)

    def wall_clock(self) -> float:
        """What the service takes for the time, in seconds since 1970."""
        return time.time() + float(CLOCK.unpack_from(self._clock)[0])

    def pid_of(self, name: str) -> int | None:
        file = self.faults / f"{name}.pid"
        return int(file.read_text()) if file.exists() else None

    def pids(self) -> dict[str, int]:
        """Each process of the service that lives, itself too."""
        found = {file.stem: int(file.read_text()) for file in self.faults.glob("*.pid")}
        return {name: pid for name, pid in (found | {"service": self.process.pid}).items() if alive(pid)}

    def kill(self, name: str) -> None:
        pid = self.pid_of(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def jobs(self, series: Sequence[Dataset]) -> list[Any]:
        return self.rows(f"SELECT * FROM job WHERE series_uid = '{series[0].SeriesInstanceUID}' ORDER BY id")

    def series_row(self, series: Sequence[Dataset]) -> Any:
        (row,) = self.rows(f"SELECT * FROM series WHERE series_uid = '{series[0].SeriesInstanceUID}'")
        return row

    def complete(self, *several: Sequence[Dataset]) -> None:
        """Let time pass until all of these series are complete."""

        def each() -> bool:
            if all(self.series_row(series).state == "complete" for series in several):
                return True
            self.leap(1)
            return False

        wait_for("the series to be complete", each)

    def instances(self, series: Sequence[Dataset]) -> list[Any]:
        return self.rows(f"SELECT * FROM instance WHERE series_uid = '{series[0].SeriesInstanceUID}' ORDER BY id")

    def current_results(self, series: Sequence[Dataset]) -> list[Any]:
        """Those that no other names as predecessor."""
        return self.rows(
            f"SELECT * FROM result WHERE series_uid = '{series[0].SeriesInstanceUID}'"
            " AND id NOT IN (SELECT predecessor_id FROM result WHERE predecessor_id IS NOT NULL)"
        )

    def deliveries(self, series: Sequence[Dataset]) -> list[Any]:
        return self.rows(
            "SELECT d.*, o.kind, o.sop_instance_uid FROM delivery d JOIN result_object o ON o.id = d.object_id"
            f" JOIN result r ON r.id = o.result_id WHERE r.series_uid = '{series[0].SeriesInstanceUID}' ORDER BY d.id"
        )

    def ended(self, series: Sequence[Dataset]) -> Any:
        """Its last job, once that is over."""

        def over() -> Any:
            jobs = self.jobs(series)
            return jobs and jobs[-1].state in ("done", "failed", "cancelled") and jobs[-1]

        return wait_for("the end of a job", over)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def store_all(port: int, instances: Sequence[Dataset], calling: str = "SENDER") -> list[int | None]:
    """Send by hand-made PDUs over one association and release; the status of each, None from where it broke."""
    statuses: list[int | None] = []
    with contextlib.suppress(OSError), RawPeer(port, associate_request(calling=calling), timeout_s=60) as peer:
        for one in instances:
            peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
            statuses.append(peer.read_status())
            if statuses[-1] is None:
                return statuses
        peer.release()
    return statuses


@contextlib.contextmanager
def faulty(
    folder: Path,
    settings: str,
    constants: Mapping[str, Mapping[str, Any]] = QUICK,
    *,
    spool: Path | None = None,
    ledger: Path | None = None,
) -> Iterator[Faulty]:
    """A running service, stopped at the end. constants: values of constants by module and name."""
    service = Faulty(folder, settings, constants, spool or folder, ledger or folder)
    service.start()
    try:
        yield service
    finally:
        service.disarm()
        if service.process.poll() is None:
            service.stop()
