"""Retention and purge in a service that runs, with rules that segment nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.gateway.phantoms import phantom
from tests.gateway.running import Serving, serving
from tests.waiting import wait_for

SETTINGS = """
[complete]
quiet_s = 0.2
quiet_late_s = 1
quiet_gap_s = 0.2
late_s = 0
[retain]
inputs_s = 1
results_s = 2
[[rule]]
name = "kept"
when = { series_description = "*keep*" }
mode = "hold"
[[rule]]
name = "off"
mode = "off"
"""


@pytest.mark.slow
def test_what_is_done_with_goes_even_when_the_director_is_killed_and_the_rest_stays(tmp_path: Path) -> None:
    with serving(tmp_path, SETTINGS) as service:
        kept = phantom(0, SeriesDescription="to keep")
        service.send(kept)
        killed = 0
        for seed in range(1, 4):
            gone = phantom(seed)
            service.send(gone)
            director = wait_for("a director", lambda before=killed: another_director(service, before))
            os.kill(director, signal.SIGKILL)
            killed = director
        wait_for("one series", lambda: len(service.rows("SELECT 1 FROM series")) == 1)
        wait_for("its files alone", lambda: len(files(service)) == 6)
        assert not service.rows("SELECT 1 FROM doomed")
        assert [job.state for job in service.rows("SELECT * FROM job")] == ["held"]
        service.send(gone)
        wait_for("a study that is new", lambda: len(service.rows("SELECT 1 FROM series")) == 2)
        service.medseg("purge", str(kept[0].StudyInstanceUID), "--yes")
        wait_for("an empty spool", lambda: not files(service) and not service.rows("SELECT 1 FROM series"))
        assert service.stop() == 0
        service.start()
        assert not files(service)


def another_director(service: Serving, before: int) -> int:
    """Its process id; 0 while none was started."""
    pid = service.pid_of("director") or 0
    return 0 if pid == before else pid


def files(service: Serving) -> list[Path]:
    return [path for path in (service.folder / "spool" / "studies").rglob("*") if path.is_file()]
