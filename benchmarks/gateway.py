"""From the last slice acknowledged to the SEG at another peer, through a running gateway.

    python benchmarks/gateway.py [--rounds 3] [--slices 476] [--rates 10,50] [--data PATIENT_DICOM.zip] > gateway.jsonl
    python benchmarks/gateway.py --plot gateway.jsonl docs/images/last-slice-to-seg.svg

The tall study and the network of `benchmarks/streaming.py`. A pynetdicom sender sends at a pace to `medseg serve`, as
anybody starts it, whose rule sends what it finds to a second SCP; the time runs from the answer to the last C-STORE
until that SCP has the SEG, which the gateway has verified before. With the count known, ImagesInAcquisition says how
many slices there are; without, the quiet time of the sender (the default, 3 s) must pass. The gateway runs all the
while, and has done one study before it is measured; each turn sends a study of its own.

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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import plots
import pydicom
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from streaming import (
    find_engine,
    make_bundle,
    make_study,
    unstreamed,
)  # beside this file; makes the checkout importable

from gateway.dimse.reactor.requestor import no_answer_lost
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.running import Serving
from tests.waiting import wait_for

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

    def opened(event: Any) -> None:
        no_answer_lost(event)  # as pynetdicom comes, one in some thousand is, and with it the association
        event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    ae = AE("SENDER")
    ae.add_requested_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)
    assoc = ae.associate("127.0.0.1", service.port, ae_title="MEDSEG", evt_handlers=[(evt.EVT_CONN_OPEN, opened)])
    begun = time.monotonic()
    for k, dataset in enumerate(datasets):
        time.sleep(max(0.0, begun + k / rate - time.monotonic()))
        if assoc.send_c_store(dataset).Status != 0:
            raise SystemExit("an instance was refused")
    last = time.monotonic()
    assoc.release()
    return last


def as_another(study: Path, *, count_known: bool) -> list[Dataset]:
    """The instances of a study, with identifiers that nobody has seen."""
    datasets = [pydicom.dcmread(path) for path in sorted(study.iterdir())]
    study_uid, series_uid, frame_uid = generate_uid(), generate_uid(), generate_uid()
    for dataset in datasets:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
            study_uid,
            series_uid,
            frame_uid,
        )
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.AcquisitionNumber = 1
        if count_known:
            dataset.ImagesInAcquisition = len(datasets)
    return datasets


def one_turn(service: Serving, pacs: FakePacs, study: Path, rate: float, *, count_known: bool) -> dict[str, Any]:
    datasets = as_another(study, count_known=count_known)
    before = len(pacs.of("SEG"))
    last = send(service, datasets, rate)
    wait_for("the SEG", lambda: len(pacs.of("SEG")) > before, 1800)
    seconds = time.monotonic() - last
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
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        bundle = make_bundle(work / "spleen", CHANNELS)
        instances = make_study(work / "study", chosen.data, chosen.slices)
        find_engine(bundle, work / "cache")
        unstreamed(bundle, instances, work / "first")
        pacs = stack.enter_context(listening(FakePacs()))
        (work / "gateway").mkdir()
        settings = SETTINGS.format(port=pacs.port, bundle=work / "spleen")
        service = Idle(work / "gateway", settings, "allow_any_caller = true\n")
        service.start()
        stack.callback(service.stop)
        one_turn(service, pacs, work / "study", 50.0, count_known=True)
        for turn in range(chosen.rounds):
            alone.append(unstreamed(bundle, instances, work / f"whole {turn}")["after_last_slice_s"])
            print(json.dumps({"unstreamed_s": alone[-1]}), flush=True)
            for rate in map(float, chosen.rates.split(",")):
                for known in (True, False):
                    found = one_turn(service, pacs, work / "study", rate, count_known=known)
                    times.setdefault((rate, known), []).append(found["last_ack_to_seg_s"])
                    print(json.dumps(found), flush=True)
    print(json.dumps({"median_of": "unstreamed", "median_s": round(statistics.median(alone), 2)}))
    for (rate, known), seconds in times.items():
        facts = {"median_of": "gateway", "rate": rate, "count_known": known}
        print(json.dumps(facts | {"median_s": round(statistics.median(seconds), 2)}))
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
