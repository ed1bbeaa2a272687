"""Figures of the reliability runs, a line of JSON each, and the table of `docs/reliability.md` that is made of them.

`make reliability` sets MEDSEG_RELIABILITY to the folder of `runs.jsonl`; `python -m tests.gateway.faults.report` then
writes the table. A test holds the document against the figures.
"""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "reliability.md"
FIGURES = DOCUMENT.parent / "reliability" / "runs.jsonl"
#: Where curves and figures go; nowhere outside `make reliability`.
CURVES = Path(os.environ["MEDSEG_RELIABILITY"]) if "MEDSEG_RELIABILITY" in os.environ else None
BEGIN, END = "<!-- runs -->", "<!-- end of runs -->"


def report(run: str, began_s: float, injected: str, held: str, **figures: Any) -> None:
    """Tell what a run injected, how often, and what held. began_s: by the monotonic clock."""
    facts = {
        "run": run,
        "injected": injected,
        "held": held,
        **figures,
        "seconds": round(time.monotonic() - began_s),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }
    line = json.dumps(facts, ensure_ascii=False)
    print(line)
    if CURVES is not None:
        with (CURVES / "runs.jsonl").open("a") as file:
            file.write(line + "\n")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {model}, Linux {platform.release().partition('-')[0]}"


def table(figures: Path) -> str:
    """The runs as a table in Markdown, the latest of each."""
    runs: dict[str, dict[str, Any]] = {}
    for line in figures.read_text().splitlines():
        one = json.loads(line)
        runs[one["run"]] = one
    rows = ["| run | injected | held | took | on |", "| --- | --- | --- | --- | --- |"]
    for name, one in runs.items():
        took = f"{one['seconds'] // 60} min {one['seconds'] % 60} s"
        rows.append(f"| {name} | {one['injected']} | {one['held']} | {took} | {one['date']}, {one['machine']} |")
    return "\n".join(rows)


def with_table(document: str, rows: str) -> str:
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{rows}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(), table(FIGURES)))
