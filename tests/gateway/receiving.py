"""What the tests of the receive path share: small instances, a receiver, a sender, and hand-made PDUs."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from sqlalchemy import text

from gateway.dimse.command import elements, p_data
from gateway.dimse.reactor.requestor import no_answer_lost
from gateway.dimse.scp import AcceptorTimeouts, StorageScp
from gateway.dimse.store import AssociationLimits
from gateway.ledger.ledger import Ledger
from gateway.receive.spool import Spool, Watermark
from tests.gateway.ledgers import new_ledger
from tests.waiting import wait_for

STORESCU = "/usr/bin/storescu"  # DCMTK's, and not pynetdicom's of the same name
NEVER_FULL = Watermark(used_percent=100, free_bytes=0)
CT = str(CTImageStorage)
#: Of any pynetdicom that sends, also as an SCP: without, now and then its reactor takes an answer, or breaks into one.
CAREFUL: Final[list[Any]] = [(evt.EVT_CONN_OPEN, no_answer_lost)]


def make_ct(size: int = 16, *, seed: int = 0, **changes: Any) -> Dataset:
    """A small CT instance with UIDs of its own."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID, instance.SOPInstanceUID = CTImageStorage, generate_uid()
    instance.StudyInstanceUID, instance.SeriesInstanceUID = generate_uid(), generate_uid()
    instance.PatientID, instance.PatientName, instance.Modality = "P", "Test^Patient", "CT"
    instance.StudyID, instance.SeriesNumber, instance.InstanceNumber = "1", 1, 1
    instance.Rows = instance.Columns = size
    instance.BitsAllocated = instance.BitsStored = 16
    instance.HighBit, instance.PixelRepresentation, instance.SamplesPerPixel = 15, 1, 1
    instance.PhotometricInterpretation = "MONOCHROME2"
    pixels = np.random.default_rng(seed).integers(-1000, 2000, (size, size), dtype=np.int16)
    instance.PixelData = pixels.tobytes()
    instance["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        setattr(instance, keyword, value)
    return instance


def encode(instance: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set's bytes, as a sender would send them."""
    buffer = DicomBytesIO()
    syntax = UID(transfer_syntax)
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, instance)
    return buffer.getvalue()


def write_file(instance: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> Path:
    """A DICOM file for a foreign sender."""
    instance.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dcmwrite(path, instance, enforce_file_format=True)
    return path


def data_set_of(path: Path) -> bytes:
    """The data set's bytes in a DICOM file: what comes after its file meta information (PS3.10 7.1)."""
    content = path.read_bytes()
    (group_length,) = struct.unpack_from("<I", content, 140)
    return content[144 + group_length :]


@dataclass
class Receiver:
    """A running SCP with its spool and ledger."""

    scp: StorageScp
    spool: Spool
    ledger: Ledger

    def rows(self, table: str = "instance") -> list[Any]:
        with self.ledger.read() as db:
            return list(db.execute(text(f"SELECT * FROM {table}")))

    def files(self) -> list[Path]:
        return sorted(path for path in self.spool.studies.rglob("*") if path.is_file())

    def no_parts(self) -> bool:
        """Nothing that was begun is left, once associations are over."""
        wait_for("no part of an instance", lambda: not list(self.spool.incoming.iterdir()))
        return True

    def stored(self) -> dict[str, bytes]:
        """SOP Instance UID to data set, of what counts, with every row checked against its file."""
        found = {}
        for row in self.rows():
            data_set = data_set_of(self.spool.folder / row.path)
            assert hashlib.sha256(data_set).hexdigest() == row.sha256
            assert len(data_set) == row.size_bytes
            if row.state in ("current", "conflict"):
                found[row.sop_instance_uid] = data_set
        return found


@contextlib.contextmanager
def receiving(folder: Path, **settings: Any) -> Iterator[Receiver]:
    """An SCP on a free port of loopback."""
    watermark = settings.pop("watermark", NEVER_FULL)
    chosen: dict[str, Any] = {
        "ae_titles": ["MEDSEG"],
        "host": "127.0.0.1",
        "port": 0,
        "callers": None,
        "limits": AssociationLimits(associations=200, per_caller=200),
        "timeouts": AcceptorTimeouts(acse_s=5, dimse_s=5, network_s=20),
    } | settings
    with new_ledger(folder) as ledger:
        spool = Spool(folder / "spool", ledger, watermark)
        with StorageScp(spool, **chosen) as scp:
            yield Receiver(scp, spool, ledger)


def associate(
    port: int, contexts: Sequence[tuple[str, Sequence[str]]] = ((CT, (ExplicitVRLittleEndian,)),), **names: str
) -> Association:
    """Ask for an association as pynetdicom's SCU."""
    ae = AE(names.get("calling", "SENDER"))
    ae.acse_timeout = ae.dimse_timeout = 30
    ae.network_timeout = None  # a test may keep it open for as long as it waits for something else
    for abstract_syntax, transfer_syntaxes in contexts:
        ae.add_requested_context(abstract_syntax, list(transfer_syntaxes))
    return ae.associate("127.0.0.1", port, ae_title=names.get("called", "MEDSEG"), evt_handlers=CAREFUL)


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def store_request(sop_class: str, sop_instance: str, message_id: int = 1, *, data_set_type: int = 1) -> bytes:
    """The command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    body = (
        element(0x0002, padded(sop_class))
        + element(0x0100, struct.pack("<H", 0x0001))
        + element(0x0110, struct.pack("<H", message_id))
        + element(0x0700, struct.pack("<H", 0))
        + element(0x0800, struct.pack("<H", data_set_type))
        + element(0x1000, padded(sop_instance))
    )
    return element(0x0000, struct.pack("<I", len(body))) + body


def pdv(context_id: int, control: int, fragment: bytes) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment


def pdu(*pdvs: bytes) -> bytes:
    content = b"".join(pdvs)
    return struct.pack(">BxI", 4, len(content)) + content


def store_message(
    sop_class: str, sop_instance: str, data_set: bytes, *, fragment: int = 4096, context_id: int = 1
) -> bytes:
    """A whole C-STORE-RQ message as P-DATA-TF PDUs."""
    pieces = [data_set[start : start + fragment] for start in range(0, len(data_set), fragment)] or [b""]
    pdus = [pdu(pdv(context_id, 2 if number == len(pieces) else 0, piece)) for number, piece in enumerate(pieces, 1)]
    return p_data(context_id, store_request(sop_class, sop_instance), 0) + b"".join(pdus)


def associate_request(
    called: str = "MEDSEG",
    calling: str = "RAW",
    contexts: Sequence[tuple[int, str, str]] = ((1, CT, str(ExplicitVRLittleEndian)),),
) -> bytes:
    """An A-ASSOCIATE-RQ PDU (PS3.8 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    proposed = b"".join(
        item(0x20, bytes((context_id, 0, 0, 0)) + item(0x30, abstract.encode()) + item(0x40, transfer.encode()))
        for context_id, abstract, transfer in contexts
    )
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4"))
    body = (
        struct.pack(">HH", 1, 0)
        + called.ljust(16).encode()
        + calling.ljust(16).encode()
        + bytes(32)
        + item(0x10, b"1.2.840.10008.3.1.1.1")
        + proposed
        + user
    )
    return struct.pack(">BxI", 1, len(body)) + body


class RawPeer:
    """A peer that says exactly what it is told to, byte by byte."""

    def __init__(self, port: int, request: bytes | None = None, timeout_s: float = 15) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer_type: int | None = None
        if request is not None:
            self.send(request)
            self.answer_type, self.answer = self.read_pdu()

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_pdu(self) -> tuple[int | None, bytes]:
        """Type and content of the next PDU; (None, b"") at the end of the stream."""
        try:
            header = self._read(6)
            if len(header) < 6:
                return None, b""
            kind, length = struct.unpack(">BxI", header)
            return kind, self._read(length)
        except ConnectionError:
            return None, b""

    def read_status(self) -> int | None:
        """The status of the next response; None where something else came."""
        kind, content = self.read_pdu()
        if kind != 4:
            return None
        return int.from_bytes(elements(content[6:])[0x0900], "little")

    def release(self) -> None:
        self.send(struct.pack(">BxIxxxx", 5, 4))
        assert self.read_pdu()[0] == 6

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                break
            data += piece
        return data
