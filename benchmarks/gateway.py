"""From the last slice acknowledged to the SEG at another peer, through a running gateway.

    python benchmarks/gateway.py [--rounds 3] [--slices 476] [--rates 10,50] [--data PATIENT_DICOM.zip] > gateway.jsonl
    python benchmarks/gateway.py --plot gateway.jsonl docs/images/last-slice-to-seg.svg

The tall study and the network of `benchmarks/streaming.py`. A pynetdicom sender sends at a pace to `medseg serve`, as
anybody starts it, whose rule sends what it finds to a second SCP; the time runs from the answer to the last C-STORE
until that SCP has the SEG, which the gateway has verified before. With the count known, ImagesInAcquisition says how
many slices there are; without, the quiet time of the sender (the default, 3 s) must pass.

Beside these stands what a gateway needs that begins when it has waited for all: medseg's own time for the whole study
(`unstreamed`, in the same run), after a quiet time of 5 s and of 60 s.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plots
import pydicom
from pydicom import Dataset
from pynetdicom import AE, evt
from streaming import make_bundle, make_study, unstreamed  # beside this file; makes the checkout importable

from tests.gateway.running import Pacs, Serving, wait_for

CHANNELS = [16, 32, 64, 128, 256]
QUIET_S = (5.0, 60.0)
SETTINGS = """
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}

[[rule]]
when = {{ modality = "CT" }}
bundle = "{bundle}"
send_to = ["pacs"]
"""


class Idle(Serving):
    """Nothing else runs: every core is the worker's."""

    environment: Mapping[str, str] = {"OMP_NUM_THREADS": str(os.cpu_count())}


def send(service: Serving, datasets: Sequence[Dataset], rate: float) -> float:
    """Send at a pace over one association; the moment of the last answer."""

    def no_nagle(event: Any) -> None:
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    ae = AE("SENDER")
    ae.add_requested_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", service.port, ae_title="MEDSEG", evt_handlers=[(evt.EVT_CONN_OPEN, no_nagle)])
    begun = time.monotonic()
    for k, dataset in enumerate(datasets):
        time.sleep(max(0.0, begun + k / rate - time.monotonic()))
        if assoc.send_c_store(dataset).Status != 0:
            raise SystemExit("an instance was refused")
    last = time.monotonic()
    assoc.release()
    return last


def one_turn(folder: Path, bundle: Path, study: Path, rate: float, *, count_known: bool) -> dict[str, Any]:
    datasets = [pydicom.dcmread(path) for path in sorted(study.iterdir())]
    for dataset in datasets:
        dataset.AcquisitionNumber = 1
        if count_known:
            dataset.ImagesInAcquisition = len(datasets)
    folder.mkdir()
    pacs = Pacs()
    service = Idle(folder, SETTINGS.format(port=pacs.port, bundle=bundle), "allow_any_caller = true\n")
    service.start()
    try:
        last = send(service, datasets, rate)
        wait_for("the SEG", lambda: pacs.of("SEG"), 1800)
        seconds = time.monotonic() - last
    finally:
        service.stop()
        pacs.close()
    return {"rate": rate, "count_known": count_known, "slices": len(datasets), "last_ack_to_seg_s": round(seconds, 2)}


def plot(lines: Path) -> str:
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    (base,) = [row["median_s"] for row in rows if row.get("median_of") == "unstreamed"]
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("median_of") == "gateway":
            what = "count known" if row["count_known"] else "count unknown"
            groups.setdefault(f"{row['rate']:g} slices/s", {})[what] = row["median_s"]
    for values in groups.values():
        values |= {f"quiet {quiet_s:g} s, then all": base + quiet_s for quiet_s in QUIET_S}
    return plots.bars("Last slice acknowledged to SEG at the peer", "s", groups)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--slices", type=int, default=476)
    options.add_argument("--rates", default="10,50", help="slices per second")
    options.add_argument("--data", type=Path)
    options.add_argument("--plot", nargs=2, type=Path, metavar=("LINES", "SVG"), help="draw what was measured")
    chosen = options.parse_args()
    if chosen.plot:
        lines, picture = chosen.plot
        picture.write_text(plot(lines))
        return
    times: dict[tuple[float, bool], list[float]] = {}
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bundle = make_bundle(work / "spleen", CHANNELS)
        instances = make_study(work / "study", chosen.data, chosen.slices)
        for turn in range(chosen.rounds):
            alone.append(unstreamed(bundle, instances, work / f"whole {turn}")["after_last_slice_s"])
            print(json.dumps({"unstreamed_s": alone[-1]}), flush=True)
            for rate in map(float, chosen.rates.split(",")):
                for known in (True, False):
                    folder = work / f"{rate:g} {known} {turn}"
                    found = one_turn(folder, work / "spleen", work / "study", rate, count_known=known)
                    times.setdefault((rate, known), []).append(found["last_ack_to_seg_s"])
                    print(json.dumps(found), flush=True)
    print(json.dumps({"median_of": "unstreamed", "median_s": round(statistics.median(alone), 2)}))
    for (rate, known), seconds in times.items():
        facts = {"median_of": "gateway", "rate": rate, "count_known": known}
        print(json.dumps(facts | {"median_s": round(statistics.median(seconds), 2)}))
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
