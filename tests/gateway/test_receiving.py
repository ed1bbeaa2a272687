"""The receive path with foreign senders, and killed in the middle of its work."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2K, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless
from pynetdicom import _config

from gateway.ledger.ledger import Ledger
from gateway.receive.reconcile import reconcile
from gateway.receive.spool import Spool
from tests.gateway.faults.report import report
from tests.gateway.receiving import (
    CT,
    NEVER_FULL,
    STORESCU,
    RawPeer,
    Receiver,
    associate,
    associate_request,
    data_set_of,
    encode,
    make_ct,
    receiving,
    store_message,
    write_file,
)
from tests.peers import missing, require

ROOT = Path(__file__).resolve().parents[2]

# DCMTK's tool, its options, what storescu must be told to propose the syntax (None: it cannot, pynetdicom sends).
MADE_BY_DCMTK = [
    pytest.param(["dcmconv", "+ti"], ["-xi"], id="implicit"),
    pytest.param(["dcmconv", "+te"], ["-xe"], id="explicit"),
    pytest.param(["dcmconv", "+tb"], ["-xb"], id="big endian"),
    pytest.param(["dcmconv", "+td"], ["-xd"], id="deflated"),
    pytest.param(["dcmcrle"], ["-xr"], id="RLE"),
    pytest.param(["dcmcjpeg", "+el"], None, id="JPEG lossless"),
    pytest.param(["dcmcjpeg", "+e1"], ["-xs"], id="JPEG lossless SV1"),
    pytest.param(["dcmcjpeg", "+eb"], ["-xy"], id="JPEG baseline"),
    pytest.param(["dcmcjpeg", "+ee"], ["-xx"], id="JPEG extended"),
    pytest.param(["dcmcjpls", "+el"], ["-xt"], id="JPEG-LS lossless"),
    pytest.param(["dcmcjpls", "+en"], ["-xu"], id="JPEG-LS near-lossless"),
]


def store_with_dcmtk(port: int, options: list[str], *files: Path) -> None:
    if not Path(STORESCU).exists():
        missing("storescu")
    command = [STORESCU, *options, "-aec", "MEDSEG", "127.0.0.1", str(port), *map(str, files)]
    sent = subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, text=True, check=False)
    assert sent.returncode == 0, sent.stderr


def send_as_it_is(port: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a file's data set by pynetdicom without decoding it."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    syntax = dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID
    assoc = associate(port, [(CT, [syntax])])
    assert assoc.send_c_store(file).Status == 0
    assoc.release()


@pytest.mark.parametrize(("convert", "options"), MADE_BY_DCMTK)
def test_what_dcmtk_makes_is_stored_byte_for_byte(
    tmp_path: Path, convert: list[str], options: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = write_file(make_ct(size=64), tmp_path / "original.dcm")
    made = tmp_path / "made.dcm"
    if "+eb" in convert or "+en" in convert:
        eight = make_ct(size=64, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)
        eight.PixelData = bytes(range(64)) * 64
        eight["PixelData"].VR = "OB"
        original = write_file(eight, original)
    subprocess.run([require(convert[0]), *convert[1:], original, made], check=True, capture_output=True)
    with receiving(tmp_path) as receiver:
        if options is None:
            send_as_it_is(receiver.scp.port, made, monkeypatch)
        else:
            store_with_dcmtk(receiver.scp.port, options, made)
        (row,) = receiver.rows()
        assert row.transfer_syntax_uid == dcmread(made, stop_before_pixels=True).file_meta.TransferSyntaxUID
        stored = receiver.spool.folder / row.path
        assert dcmread(stored) == dcmread(made)
        if "+td" not in convert:  # storescu deflates anew
            assert data_set_of(stored) == data_set_of(made)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
def test_what_cannot_be_decoded_is_stored_as_sent(tmp_path: Path, syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = make_ct()
    instance.PixelData = encapsulate([os.urandom(999)])
    instance["PixelData"].VR = "OB"
    instance["PixelData"].is_undefined_length = True
    sent = write_file(instance, tmp_path / "sent.dcm", syntax)
    with receiving(tmp_path) as receiver:
        send_as_it_is(receiver.scp.port, sent, monkeypatch)
        assert data_set_of(receiver.files()[0]) == data_set_of(sent)


def test_a_whole_folder_from_several_dcmtk_senders(tmp_path: Path) -> None:
    groups = [
        [write_file(make_ct(seed=number), tmp_path / f"{sender}-{number}.dcm") for number in range(5)]
        for sender in range(4)
    ]
    with receiving(tmp_path) as receiver:
        senders = [threading.Thread(target=store_with_dcmtk, args=(receiver.scp.port, [], *files)) for files in groups]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        sent = {dcmread(file).SOPInstanceUID: data_set_of(file) for files in groups for file in files}
        assert receiver.stored() == sent


RECEIVER = """
import sys
from pathlib import Path
from gateway.dimse.scp import StorageScp
from gateway.dimse.store import AssociationLimits
from gateway.ledger.ledger import Ledger
from gateway.receive.reconcile import reconcile
from gateway.receive.spool import Spool, Watermark
folder = Path(sys.argv[1])
with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
    spool = Spool(folder / "spool", ledger, Watermark(used_percent=100, free_bytes=0))
    found = reconcile(spool, ledger)
    assert not found.missing and not found.quarantined, found
    limits = AssociationLimits(associations=100, per_caller=100)
    scp = StorageScp(spool, ae_titles=["MEDSEG"], host="127.0.0.1", port=0, callers=None, limits=limits)
    with scp:
        print(scp.port, flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def receiver_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A receiver in a process of its own, which may be killed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RECEIVER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the receiver did not start"
            yield process, int(line)
        finally:
            process.kill()


def send_until_killed(port: int, acknowledged: dict[str, bytes], seed: int) -> None:
    """Send new instances, and now and then an old one again, until the connection breaks."""
    chance = random.Random(seed)
    with contextlib.suppress(OSError), RawPeer(port, associate_request(), timeout_s=30) as peer:
        while True:
            instance = make_ct(size=chance.choice([16, 64, 256]), seed=chance.randrange(100))
            uid, data_set = str(instance.SOPInstanceUID), encode(instance)
            peer.send(store_message(CT, uid, data_set, fragment=chance.choice([500, 16000, 100_000])))
            if peer.read_status() != 0:
                return
            acknowledged[uid] = data_set
            if chance.random() < 0.1:
                peer.send(store_message(CT, uid, data_set))
                if peer.read_status() != 0:
                    return


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.reliability)])
def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path, kills: int) -> None:
    began_s, chance = time.monotonic(), random.Random(kills)
    acknowledged: dict[str, bytes] = {}
    for kill in range(kills):
        with receiver_process(tmp_path) as (process, port):
            senders = [
                threading.Thread(target=send_until_killed, args=(port, acknowledged, 1000 * kill + number))
                for number in range(3)
            ]
            for sender in senders:
                sender.start()
            killer = threading.Timer(chance.uniform(0.02, 0.6), process.send_signal, (signal.SIGKILL,))
            killer.start()
            for sender in senders:
                sender.join()
            killer.join()
    assert acknowledged
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        spool = Spool(tmp_path / "spool", ledger, NEVER_FULL)
        found = reconcile(spool, ledger)
        assert (found.missing, found.quarantined) == ((), ())
        stored = Receiver(None, spool, ledger).stored()  # type: ignore[arg-type]
        assert acknowledged.items() <= stored.items()
        rows = Receiver(None, spool, ledger).rows()  # type: ignore[arg-type]
        assert {row.state for row in rows} == {"current"}
        assert len(rows) == len({row.sop_instance_uid for row in rows})
        assert not list(spool.incoming.iterdir())
    report(
        "kill -9 of the receiver while three send",
        began_s,
        injected=f"{kills} kills (seed {kills})",
        held=f"all {len(acknowledged)} instances answered 0000H are there byte for byte, each once",
    )


def test_a_receiver_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import json, sys, gateway.dimse.scp, gateway.receive.spool, gateway.receive.reconcile; "
        "print(json.dumps(sorted({'torch', 'monai', 'highdicom', 'scipy'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(out.stdout) == []
