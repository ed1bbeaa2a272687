"""How fast instances are received: medseg beside pynetdicom, DCMTK and Orthanc, in turns, in one run.

    python benchmarks/receive.py [--rounds 5] [--instances 120] [--senders 8] [--rest 15] [--only 'medseg;dcmtk']

Every receiver gets the same 512x512 CT instances from DCMTK's `storescu`, first over one association, then over eight
at once; each turn starts the receiver anew on an empty folder, and turns alternate. Senders first send one instance
each, and what that takes (most of it `storescu` reading its dictionary) is taken off with that instance, since it is
none of the receiver's: `start_s`. `disk` is what the disk alone
allows one writer: write, fsync, rename, fsync of the folder. Many machines lend their disk speed for a while and then
slow it down: `--rest` is how many seconds it is left alone before each turn, after all that was written reached it, so
that none pays for what the turns before wrote. One JSON line per turn, and at the end one per receiver:
medians, instances per second, and the ratio of medseg to it.

fsynced: medseg (file, folder, ledger; two receivers on one socket, as `medseg serve` has) and Orthanc
(SyncStorageArea); not: pynetdicom (`event.dataset` saved, or the raw bytes), DCMTK storescp.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.peers import orthanc  # noqa: E402 - found from the checkout

STORESCU, STORESCP = "/usr/bin/storescu", "/usr/bin/storescp"  # DCMTK's, and not pynetdicom's of the same name
NO_NAGLE = os.environ | {"TCP_NODELAY": "1", "PYTHONPATH": str(ROOT)}

MEDSEG = """
import socket, sys
from pathlib import Path
from gateway.dimse.scp import StorageScp
from gateway.dimse.store import AssociationLimits
from gateway.ledger.ledger import Ledger
from gateway.receive.spool import Spool, Watermark
folder, listener = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
    spool = Spool(folder / "spool", ledger, Watermark(used_percent=99.9, free_bytes=0))
    settings = {"ae_titles": ["SCP"], "callers": None, "limits": AssociationLimits(associations=100, per_caller=100)}
    with StorageScp(spool, host="127.0.0.1", port=0, listener=listener, **settings):
        print("ready", flush=True)
        sys.stdin.read()
"""
PYNETDICOM = """
import socket, sys, uuid
from pathlib import Path
from pynetdicom import AE, AllStoragePresentationContexts, evt
folder, raw = Path(sys.argv[1]), sys.argv[2] == "raw"
def store(event):
    path = folder / uuid.uuid4().hex
    if raw:
        path.write_bytes(event.encoded_dataset())
    else:
        instance = event.dataset
        instance.file_meta = event.file_meta
        instance.save_as(path, enforce_file_format=True)
    return 0x0000
def no_nagle(event):
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
ae = AE("SCP")
ae.maximum_associations = 100
ae.maximum_pdu_size = 131072
ae.supported_contexts = AllStoragePresentationContexts
handlers = [(evt.EVT_C_STORE, store), (evt.EVT_CONN_OPEN, no_nagle)]
server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
print(server.server_address[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def python_process(program: str, *arguments: object, inherited: tuple[int, ...] = ()) -> Iterator[str]:
    """A program that says a line once it is ready, and ends with its input."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=NO_NAGLE, pass_fds=inherited, text=True) as receiver:
        assert receiver.stdin is not None
        assert receiver.stdout is not None
        yield receiver.stdout.readline()
        receiver.stdin.close()


@contextlib.contextmanager
def medseg_receiver(folder: Path, processes: int = 2) -> Iterator[int]:
    """Several processes that accept from one socket; one spool, one ledger."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, contextlib.ExitStack() as stack:
        for _ in range(processes):
            file = listener.fileno()
            stack.enter_context(python_process(MEDSEG, folder, file, inherited=(file,)))
        yield listener.getsockname()[1]


@contextlib.contextmanager
def pynetdicom_receiver(folder: Path, what: str) -> Iterator[int]:
    with python_process(PYNETDICOM, folder, what) as port:
        yield int(port)


@contextlib.contextmanager
def dcmtk_receiver(folder: Path) -> Iterator[int]:
    port = orthanc.free_port()
    receiver = subprocess.Popen([STORESCP, "--fork", "-od", str(folder), "-aet", "SCP", str(port)], env=NO_NAGLE)
    try:
        time.sleep(0.5)
        yield port
    finally:
        receiver.terminate()
        receiver.wait()


@contextlib.contextmanager
def orthanc_receiver(folder: Path) -> Iterator[int]:
    started = orthanc.start(folder, aet="SCP", sync=True)
    try:
        yield started["dicom_port"]
    finally:
        orthanc.stop(folder)


RECEIVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[int]]] = {
    "medseg": medseg_receiver,
    "medseg, one process": lambda folder: medseg_receiver(folder, 1),
    "pynetdicom raw": lambda folder: pynetdicom_receiver(folder, "raw"),
    "pynetdicom dataset": lambda folder: pynetdicom_receiver(folder, "dataset"),
    "dcmtk": dcmtk_receiver,
    "orthanc": orthanc_receiver,
}


def make_ct(folder: Path, count: int) -> None:
    """A CT series of noise, 512x512, 16 bits."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    study, series = generate_uid(), generate_uid()
    for number in range(count):
        instance = Dataset()
        instance.file_meta = FileMetaDataset()
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.SOPClassUID = instance.file_meta.MediaStorageSOPClassUID = CTImageStorage
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
        instance.PatientID, instance.PatientName, instance.Modality = "BENCH", "Bench^Mark", "CT"
        instance.StudyID, instance.SeriesNumber, instance.InstanceNumber = "1", 1, number + 1
        instance.Rows = instance.Columns = 512
        instance.BitsAllocated = instance.BitsStored = 16
        instance.HighBit, instance.PixelRepresentation, instance.SamplesPerPixel = 15, 1, 1
        instance.PhotometricInterpretation = "MONOCHROME2"
        instance.PixelData = noise.integers(-1000, 2000, (512, 512), dtype=np.int16).tobytes()
        instance.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def send(port: int, folders: list[Path]) -> float:
    """Seconds until every sender has got every answer."""
    begin = time.perf_counter()
    command = [STORESCU, "-aec", "SCP", "+sd", "127.0.0.1", str(port)]
    senders = [subprocess.Popen([*command, str(folder)], env=NO_NAGLE) for folder in folders]
    if any(sender.wait() for sender in senders):
        raise SystemExit("a sender failed")
    return time.perf_counter() - begin


def disk(folder: Path, instances: list[Path]) -> float:
    """Seconds for one writer that syncs every file and its folder."""
    contents = [path.read_bytes() for path in instances]
    opened = os.open(folder, os.O_RDONLY)
    begin = time.perf_counter()
    for number, content in enumerate(contents):
        part = folder / f"{number}.part"
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder / f"{number}.dcm")
        os.fsync(opened)
    seconds = time.perf_counter() - begin
    os.close(opened)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=120, help="per sender when alone; shared out when several")
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--rest", type=float, default=15.0, help="seconds before each turn in which the disk rests")
    parser.add_argument("--only", default=";".join(RECEIVERS))
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary one)")
    options = parser.parse_args()
    names = options.only.split(";")
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        make_ct(work / "alone", options.instances)
        several, first = (
            [work / kind / str(number) for number in range(options.senders)] for kind in ("several", "first")
        )
        for count, folders in ((max(options.instances // 2, 2), several), (1, first)):
            for folder in folders:
                make_ct(folder, count)

        def note(receiver: str, senders: int, instances: int, seconds: float, start_s: float = 0.0) -> None:
            rate = instances / (seconds - start_s)
            rates.setdefault((receiver, senders), []).append(rate)
            turn = {"receiver": receiver, "senders": senders, "instances": instances, "per_s": round(rate, 1)}
            print(json.dumps(turn | {"start_s": round(start_s, 3)}), flush=True)

        turns = itertools.count()

        def new_folder() -> Path:
            """Empty. The old ones stay to the end: what deleting costs must not be charged to the next turn."""
            folder = work / f"turn {next(turns)}"
            folder.mkdir()
            os.sync()
            time.sleep(options.rest)
            return folder

        for _ in range(options.rounds):
            note("disk", 1, options.instances, disk(new_folder(), sorted((work / "alone").iterdir())))
            for receiver in names:
                for folders in ([work / "alone"], several):
                    with RECEIVERS[receiver](new_folder()) as port:
                        start_s = send(port, first[: len(folders)])
                        more = sum(len(list(folder.iterdir())) - 1 for folder in folders)
                        note(receiver, len(folders), more, send(port, folders), start_s)
    print(json.dumps({"load": [round(load, 1) for load in os.getloadavg()], "cores": os.cpu_count()}))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    for (receiver, senders), rate in medians.items():
        ratio = round(medians["medseg", senders] / rate, 2) if ("medseg", senders) in medians else None
        print(
            json.dumps({"receiver": receiver, "senders": senders, "median_per_s": round(rate, 1), "medseg_is": ratio})
        )


if __name__ == "__main__":
    main()
