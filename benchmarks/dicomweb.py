"""A series by STOW-RS into `medseg serve`, and back by WADO-RS: how long, and how much memory its web process takes.

    python benchmarks/dicomweb.py --instances 2000 --size 512        2,000 CT images of 512 KiB: 1 GB

One request each way, streamed by the client, too; each instance is synced and in the ledger before the answer. One JSON
object for each line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

from pydicom import dcmwrite

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gateway.dicomweb.multipart import head, tail
from tests.gateway.receiving import make_ct
from tests.gateway.running import Serving
from tests.waiting import wait_for

STUDY, SERIES = "1.2.826.0.1.3680043.10.1.1", "1.2.826.0.1.3680043.10.1.2"
OFF = '[[rule]]\nname = "off"\nmode = "off"\n'


def files(instances: int, size: int) -> Iterator[bytes]:
    """The same pixels in each; names of the same length."""
    image = make_ct(size, StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=f"{SERIES}.100000")
    buffer = BytesIO()
    dcmwrite(buffer, image, enforce_file_format=True)
    for number in range(instances):
        yield buffer.getvalue().replace(b".100000", f".{100000 + number}".encode())


def body(instances: int, size: int) -> Iterator[bytes]:
    for content in files(instances, size):
        yield head("b", {"Content-Type": "application/dicom"}) + content + b"\r\n"
    yield tail("b")


def peak_mb(pid: int) -> float:
    """Since it was reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def told(what: str, pid: int, size_mb: float, begun_s: float, **more: float) -> None:
    seconds = time.monotonic() - begun_s
    facts = {"what": what, "seconds": round(seconds, 2), "MB": round(size_mb), "MB_per_s": round(size_mb / seconds)}
    print(json.dumps(facts | {"peak_MB": round(peak_mb(pid))} | more), flush=True)
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def get(port: int, path: str) -> int:
    """Bytes of an answer, which are not kept."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", f"/dicom-web{path}")
    answer, length = connection.getresponse(), 0
    assert answer.status == 200, answer.read(500)
    while piece := answer.read(1 << 20):
        length += len(piece)
    connection.close()
    return length


def main(instances: int, size: int) -> None:
    length = sum(map(len, body(instances, size)))
    with tempfile.TemporaryDirectory() as name:
        service = Serving(Path(name), OFF)
        service.start()
        try:
            wait_for("the web process", lambda: service.get("/healthz")[0] == 200)
            pid = service.pid_of("web")
            assert pid is not None
            get(service.http_port, "/studies")
            told("idle", pid, 0, time.monotonic() - 1)
            begun_s = time.monotonic()
            connection = HTTPConnection("127.0.0.1", service.http_port, timeout=600)
            headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
            connection.request(
                "POST", "/dicom-web/studies", body(instances, size), headers | {"Content-Length": str(length)}
            )
            answer = connection.getresponse()
            stored = json.loads(answer.read())["00081199"]["Value"]
            assert (answer.status, len(stored)) == (200, instances)
            per_s = round(instances / (time.monotonic() - begun_s))
            told("STOW-RS", pid, length / 1e6, begun_s, instances_per_s=per_s)
            series = f"/studies/{STUDY}/series/{SERIES}"
            for what, path in (("WADO-RS, series", series), ("WADO-RS, metadata", f"{series}/metadata"),
                               ("QIDO-RS, instances", f"{series}/instances")):  # fmt: skip
                begun_s = time.monotonic()
                told(what, pid, get(service.http_port, path) / 1e6, begun_s)
        finally:
            service.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--size", type=int, default=512)
    main(**vars(parser.parse_args()))
