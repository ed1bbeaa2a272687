"""The spool: bytes as sent, named safely, kept through duplicates, full disks and restarts."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from gateway.dimse.status import Status, StoreRefused, refusal
from gateway.dimse.store import AssociationInfo, Ending, StoreRequest
from gateway.keep.deletion import sweep
from gateway.ledger.ledger import LedgerUnavailable
from gateway.receive.comparison import Comparison
from gateway.receive.reconcile import Reconciliation, reconcile
from gateway.receive.spool import Spool, Watermark
from medseg.errors import MedsegError, UnreadableInstance
from tests.gateway.ledgers import new_ledger
from tests.gateway.receiving import (
    CT,
    NEVER_FULL,
    RawPeer,
    Receiver,
    associate_request,
    data_set_of,
    encode,
    make_ct,
    receiving,
    store_message,
)

PEER = AssociationInfo("0" * 32, "CT01", "MEDSEG", "127.0.0.1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Receiver]:
    """A spool and a ledger without an SCP."""
    with new_ledger(tmp_path) as ledger:
        spool = Spool(tmp_path / "spool", ledger, NEVER_FULL)
        spool.opened(PEER)
        yield Receiver(None, spool, ledger)  # type: ignore[arg-type]


def put(
    spool: Spool,
    instance: object,
    data_set: bytes | None = None,
    syntax: str = ExplicitVRLittleEndian,
    peer: AssociationInfo = PEER,
) -> None:
    data_set = encode(instance, syntax) if data_set is None else data_set  # type: ignore[arg-type]
    uid, sop_class = str(instance.SOPInstanceUID), str(instance.SOPClassUID)  # type: ignore[attr-defined]
    reception = spool.begin(StoreRequest(peer, sop_class, uid, syntax, 0))
    for start in range(0, len(data_set), 1000):
        reception.write(memoryview(data_set)[start : start + 1000])
    reception.finish()


@pytest.mark.parametrize("uid", ["../../etc", "/etc/passwd", "1.2/3", "..", "1..2", ".1", "x", "1.2\n"])
def test_path_like_uids_are_hashed(store: Receiver, uid: str) -> None:
    instance = make_ct()
    data_set = encode(instance).replace(
        str(instance.SeriesInstanceUID).encode().ljust(64, b"\0")[: len(instance.SeriesInstanceUID)],
        uid.encode().ljust(len(instance.SeriesInstanceUID), b"\0"),
    )
    with contextlib.suppress(StoreRefused):
        put(store.spool, instance, data_set)
    assert all(path.parent.name.startswith("x") for path in store.files())
    root = store.spool.folder.parent
    assert {path.name for path in root.iterdir()} <= {"spool", "ledger.db", "ledger.db-wal", "ledger.db-shm"}


def test_the_file_is_dicom_and_the_data_set_as_sent(store: Receiver) -> None:
    instance = make_ct()
    put(store.spool, instance, syntax=ImplicitVRLittleEndian)
    (path,) = store.files()
    assert data_set_of(path) == encode(instance, ImplicitVRLittleEndian)
    read = dcmread(path)
    assert read.PatientName == instance.PatientName
    assert read.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert read.file_meta.SourceApplicationEntityTitle == "CT01"
    assert read.file_meta.MediaStorageSOPInstanceUID == instance.SOPInstanceUID
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (store.spool.folder, *path.parents[:2]))


def test_the_order_of_an_acknowledgement(store: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync, rename, fsync of the folder, commit: as `gateway.receive.spool` says."""
    put(store.spool, first := make_ct())  # its folders are made
    steps = []
    fsync, rename, write = os.fsync, os.rename, store.ledger.write

    def told(name: str, call: object) -> object:
        def tell(*arguments: object) -> object:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)  # type: ignore[arg-type]
            steps.append("fsync folder" if is_folder else name)
            return call(*arguments)  # type: ignore[operator]

        return tell

    monkeypatch.setattr(os, "fsync", told("fsync", fsync))
    monkeypatch.setattr(os, "rename", told("rename", rename))
    monkeypatch.setattr(store.ledger, "write", told("commit", write))
    second = make_ct(StudyInstanceUID=first.StudyInstanceUID, SeriesInstanceUID=first.SeriesInstanceUID)
    put(store.spool, second)
    assert steps == ["fsync", "rename", "fsync folder", "commit"]


def test_a_long_header_is_looked_up_in_the_file(store: Receiver) -> None:
    instance = make_ct()
    instance.add_new(0x00090010, "LO", "PRIVATE")
    instance.add_new(0x00091001, "OB", bytes(200_000))
    put(store.spool, instance)
    assert list(store.stored()) == [str(instance.SOPInstanceUID)]


def test_duplicates_are_kept_once_and_conflicts_both(store: Receiver) -> None:
    instance = make_ct()
    other = make_ct(
        seed=1,
        SOPInstanceUID=instance.SOPInstanceUID,
        StudyInstanceUID=instance.StudyInstanceUID,
        SeriesInstanceUID=instance.SeriesInstanceUID,
    )
    elsewhere = make_ct(SOPInstanceUID=instance.SOPInstanceUID)
    for _ in range(2):
        for one in (instance, instance, other, elsewhere):
            put(store.spool, one)
    while Comparison(store.ledger, store.spool.folder).step():
        pass
    assert [row.state for row in store.rows()] == ["superseded", "conflict", "current"]
    assert sorted(map(data_set_of, store.files())) == sorted(map(encode, (instance, other, elsewhere)))
    assert [row.kind for row in store.rows("event")] == ["instance.conflict"]


@pytest.mark.parametrize("left", [None, b"", b"half an instance"])
def test_what_is_sent_again_takes_the_place_of_a_file_that_is_gone_or_cut(store: Receiver, left: bytes | None) -> None:
    instance, another = make_ct(), AssociationInfo("1" * 32, "A_LONGER_TITLE", "MEDSEG", "127.0.0.1")
    store.spool.opened(another)
    put(store.spool, instance)
    (lost,) = store.files()
    lost.unlink()
    if left is not None:
        lost.write_bytes(left)
    for _ in range(3):  # once for the file, and then as a duplicate
        put(store.spool, instance, peer=another)  # whose file is longer than the first
    assert store.stored() == {str(instance.SOPInstanceUID): encode(instance)}
    sweep(store.ledger, store.spool.folder)
    (kept,) = store.files()
    assert kept != lost
    assert [row.kind for row in store.rows("event")] == ["instance.missing"]
    (series,) = store.rows("series")
    assert (series.instances, series.revision) == (1, 1)  # nothing about it has changed
    assert reconcile(store.spool, store.ledger).missing == ()


def test_many_who_send_a_lost_file_again_leave_one(tmp_path: Path) -> None:
    instance, statuses = make_ct(), list[int | None]()
    message = store_message(CT, str(instance.SOPInstanceUID), encode(instance))
    with receiving(tmp_path) as receiver:

        def send() -> None:
            with RawPeer(receiver.scp.port, associate_request(), timeout_s=60) as peer:
                peer.send(message)
                statuses.append(peer.read_status())

        send()
        receiver.files()[0].unlink()
        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [0] * 7
        assert receiver.stored() == {str(instance.SOPInstanceUID): encode(instance)}
        assert len(receiver.files()) == 1


def test_parallel_duplicates(tmp_path: Path) -> None:
    uids = {"SOPInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    versions = [encode(make_ct(seed=seed, **uids)) for seed in range(3)]
    statuses: list[int | None] = []
    with receiving(tmp_path) as receiver:

        def send(data_set: bytes) -> None:
            with RawPeer(receiver.scp.port, associate_request(), timeout_s=60) as peer:
                for _ in range(5):
                    peer.send(store_message(CT, uids["SOPInstanceUID"], data_set))
                    statuses.append(peer.read_status())

        threads = [threading.Thread(target=send, args=(versions[number % 3],)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [0] * 60
        assert sorted(map(data_set_of, receiver.files())) == sorted(versions)
        while Comparison(receiver.ledger, receiver.spool.folder).step():
            pass
        states = [row.state for row in receiver.rows()]
        assert sorted(states) == ["conflict", "superseded", "superseded"]
        assert states[-1] == "conflict"
        assert receiver.no_parts()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("a small file system cannot be mounted here: needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told_and_recovered_from(small_disk: Path) -> None:
    sent: dict[str, bytes] = {}
    with receiving(small_disk) as receiver, RawPeer(receiver.scp.port, associate_request(), timeout_s=60) as peer:

        def send() -> int | None:
            instance = make_ct(size=512)
            sent[str(instance.SOPInstanceUID)] = data_set = encode(instance)
            peer.send(store_message(CT, str(instance.SOPInstanceUID), data_set, fragment=16000))
            status = peer.read_status()
            if status:
                del sent[str(instance.SOPInstanceUID)]
            return status

        statuses = [send() for _ in range(40)]
        assert set(statuses) == {0, 0xA700}
        assert statuses.index(0xA700) >= 3
        assert receiver.stored() == sent
        assert not any(part.stat().st_size for part in receiver.spool.incoming.iterdir())
        for row in receiver.rows()[:2]:
            (receiver.spool.folder / row.path).unlink()
            del sent[row.sop_instance_uid]
        assert send() == 0
        assert len(reconcile(receiver.spool, receiver.ledger).missing) == 2
        there = {row.sop_instance_uid for row in receiver.rows() if row.state == "current"}
        assert there == set(sent)


def test_a_file_made_ready_takes_the_next_instance_or_goes_with_the_association(store: Receiver) -> None:
    store.spool.make_ready(PEER)
    store.spool.make_ready(PEER)
    (part,) = store.spool.incoming.iterdir()
    inode = part.stat().st_ino
    instance = make_ct()
    put(store.spool, instance)
    (file,) = store.files()
    assert file.stat().st_ino == inode
    assert store.stored() == {str(instance.SOPInstanceUID): encode(instance)}
    store.spool.make_ready(PEER)
    store.spool.closed(PEER, Ending.RELEASED)
    store.spool.make_ready(PEER)  # by a thread that had not heard
    assert not list(store.spool.incoming.iterdir())


def test_a_commit_that_is_done_and_seems_to_have_failed_keeps_its_file(store: Receiver) -> None:
    """As when the connection to a database server breaks at the end. The sender comes again, and is told 0000H."""
    instance, write = make_ct(), store.ledger.write

    def write_and_break(*operation: Any) -> None:
        write(*operation)
        raise LedgerUnavailable("the connection broke")

    store.ledger.write = write_and_break  # type: ignore[assignment]
    with pytest.raises(LedgerUnavailable):
        put(store.spool, instance)
    store.ledger.write = write  # type: ignore[method-assign]
    put(store.spool, instance)
    assert store.stored() == {str(instance.SOPInstanceUID): encode(instance)}
    assert len(store.files()) == 1


def test_the_watermark(tmp_path: Path) -> None:
    with new_ledger(tmp_path) as ledger:
        assert Spool(tmp_path / "spool", ledger, Watermark(100, 0)).has_room()
        assert not Spool(tmp_path / "spool", ledger, Watermark(0, 0)).has_room()
        full = Spool(tmp_path / "spool", ledger, Watermark(100, 1 << 60))
        assert not full.has_room()
        with pytest.raises(StoreRefused) as refused:
            full.begin(StoreRequest(PEER, CT, "1.2", ExplicitVRLittleEndian, 0))
        assert refused.value.status == Status.OUT_OF_RESOURCES


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(28, "full"), 0xA700),
        (OSError(5, "I/O"), 0xA700),
        (MemoryError(), 0xA700),
        (UnreadableInstance("x", "why"), 0xC000),
        (StoreRefused(Status.NOT_AUTHORIZED, "no"), 0x0124),
        (MedsegError("?"), 0x0110),
        (KeyError("bug"), 0x0110),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    assert refusal(error).status == status


def test_reconcile_finds_what_a_crash_leaves(store: Receiver) -> None:
    spool, ledger = store.spool, store.ledger
    kept, unfiled, damaged, lost, twice = (make_ct(seed=seed) for seed in range(5))
    for instance in (kept, damaged, lost, twice):
        put(spool, instance)
    paths = {row.sop_instance_uid: row.path for row in store.rows()}
    again = spool.folder / paths[str(twice.SOPInstanceUID)]
    again.with_name(again.name.replace(again.name.split(".")[-2], "f" * 16)).write_bytes(again.read_bytes())
    (spool.folder / paths[str(lost.SOPInstanceUID)]).unlink()
    with (spool.folder / paths[str(damaged.SOPInstanceUID)]).open("r+b") as file:
        file.truncate(600)
    (spool.incoming / "0123.part").write_bytes(b"half an instance")
    stray = spool.studies / "1.2" / "3" / "stray.dcm"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"not DICOM at all")
    write = ledger.write
    ledger.write = lambda *operation: (_ for _ in ()).throw(SystemExit)  # type: ignore[assignment]
    with pytest.raises(SystemExit):  # killed between rename and commit
        put(spool, unfiled)
    ledger.write = write  # type: ignore[method-assign]

    found = reconcile(spool, ledger)
    assert found.lost_associations == 1
    assert found.removed == ("incoming/0123.part",)
    assert [Path(path).name.startswith(str(unfiled.SOPInstanceUID)) for path in found.adopted] == [True]
    assert len(found.duplicates) == 1
    assert len(found.quarantined) == 2
    assert set(found.missing) == {paths[str(one.SOPInstanceUID)] for one in (damaged, lost)}
    with ledger.read() as db:
        states = {row.sop_instance_uid: row.state for row in db.exec_driver_sql("SELECT * FROM instance")}
    assert states == {
        str(kept.SOPInstanceUID): "current",
        str(unfiled.SOPInstanceUID): "current",
        str(twice.SOPInstanceUID): "current",
        str(damaged.SOPInstanceUID): "missing",
        str(lost.SOPInstanceUID): "missing",
    }
    assert reconcile(spool, ledger) == Reconciliation(0, (), (), (), (), ())
    put(spool, lost)  # sent again, it is there again
    assert reconcile(spool, ledger).missing == ()
    assert str(lost.SOPInstanceUID) in {row.sop_instance_uid for row in store.rows() if row.state == "current"}


def test_a_copy_that_was_not_filed_takes_the_place_of_a_lost_file(store: Receiver) -> None:
    """As when we died between the rename of what was sent again, since its file was gone, and the row."""
    instance = make_ct()
    put(store.spool, instance)
    (file,) = store.files()
    copy = file.with_name(f"{instance.SOPInstanceUID}.{'0' * 16}.dcm")
    file.rename(copy)
    found = reconcile(store.spool, store.ledger)
    assert (found.missing, found.adopted) == ((), (copy.relative_to(store.spool.folder).as_posix(),))
    assert store.stored() == {str(instance.SOPInstanceUID): encode(instance)}
