"""A soak: studies without a pause, and memory, descriptors and waiting rows of every process looked at all the while.

Its curve goes into `docs/reliability/soak.jsonl` where `make reliability` runs it.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.gateway.faults.conftest import TIMES, rules
from tests.gateway.faults.faulty import Faulty, faulty, store_all
from tests.gateway.faults.report import CURVES, report
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.waiting import wait_for

LOOK_S = 5.0
BACKLOG = 2
WAITING = """
SELECT (SELECT count(*) FROM series WHERE state <> 'complete') AS series,
       (SELECT count(*) FROM job WHERE state IN ('waiting', 'queued', 'running')) AS jobs,
       (SELECT count(*) FROM delivery WHERE state IN ('queued', 'sending')) AS deliveries
"""


def look(service: Faulty, began_s: float) -> dict[str, Any]:
    """Memory (MB), descriptors and threads of each process; rows that wait."""
    processes = {}
    for name, pid in service.pids().items():
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        processes[name] = {
            "mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
            "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            "threads": int(status["Threads"]),
        }
    (waiting,) = service.rows(WAITING)
    return {"at_s": round(time.monotonic() - began_s, 1), "processes": processes, "waiting": dict(waiting._mapping)}


def thirds(curve: list[dict[str, Any]], name: str, what: str) -> tuple[float, float]:
    """The median of the second third, when all is loaded, and of the last."""
    values = [one["processes"][name][what] for one in curve if name in one["processes"]]
    return median(values[len(values) // 3 : 2 * len(values) // 3]), median(values[2 * len(values) // 3 :])


@pytest.mark.parametrize(
    "seconds", [pytest.param(30, marks=pytest.mark.slow), pytest.param(600, marks=pytest.mark.reliability)]
)
def test_soak(tmp_path: Path, bundle: Path, seconds: int) -> None:
    sent, stop = [0, 0], threading.Event()
    deliver = "[deliver]\ncommitment = false\n"
    with (
        listening(FakePacs()) as pacs,
        faulty(tmp_path, TIMES + deliver + rules(bundle, pacs.port)) as service,
    ):

        def send() -> None:
            while not stop.is_set():
                if sent[0] - len(pacs.of("SR")) < BACKLOG:
                    series = new_phantom(sent[0])
                    assert store_all(service.port, series) == [0] * len(series)
                    sent[0] += 1
                    sent[1] += len(series)
                stop.wait(0.05)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        wait_for("the first result", lambda: pacs.of("SR"))
        began_s, curve = time.monotonic(), []
        while time.monotonic() < began_s + seconds:
            time.sleep(min(LOOK_S, seconds / 12))
            curve.append(look(service, began_s))
        stop.set()
        sender.join()
        wait_for("the last result", lambda: len(pacs.of("SR")) == sent[0])
    figures = {}
    for name in curve[-1]["processes"]:
        (before_mb, after_mb), (before, after) = thirds(curve, name, "mb"), thirds(curve, name, "descriptors")
        figures[name] = {"mb": [before_mb, after_mb], "descriptors": [before, after]}
        assert after_mb <= before_mb * 1.1 + 10, (name, figures)
        assert after <= before + 5, (name, figures)
    most = {what: max(one["waiting"][what] for one in curve) for what in curve[0]["waiting"]}
    assert most["series"] <= 2 * BACKLOG and most["jobs"] <= 2 * BACKLOG and most["deliveries"] <= 4 * BACKLOG
    if CURVES is not None:
        with (CURVES / "soak.jsonl").open("w") as file:
            file.writelines(json.dumps(one) + "\n" for one in curve)
    growth = ", ".join(
        f"{name} {one['mb'][0]:.0f} → {one['mb'][1]:.0f} MB, {one['descriptors'][0]:.0f} → {one['descriptors'][1]:.0f}"
        for name, one in figures.items()
    )
    report(
        "soak",
        began_s,
        injected=f"{sent[0]} series ({sent[1]} instances) without a pause, all delivered",
        held=f"memory and descriptors, middle third → last third: {growth}; at most {most['jobs']} jobs and "
        f"{most['deliveries']} deliveries waited at any look",
    )
