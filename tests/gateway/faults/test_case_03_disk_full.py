"""Case 3: the disk is full when a file is opened, in the middle of it, at commit, and while a SEG is written.

A700H each time, no partial file to be seen, and the service goes on alone once there is space.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset

from tests.gateway.faults.conftest import TIMES, rules
from tests.gateway.faults.faulty import Faulty, faulty, store_all
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import CT, RawPeer, associate_request, data_set_of, encode, make_ct, store_message
from tests.waiting import wait_for

OUT_OF_RESOURCES = 0xA700
TEMPORARY_CONGESTION = bytes((2, 3, 1))  # transient (PS3.8 table 9-21)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all of its space but so many bytes. Returns the file that has it."""
    ballast = disk / "ballast"
    left = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize - leave)
    return ballast


def spooled(service: Faulty) -> dict[str, bytes]:
    """What the ledger says is there, each file with its bytes; and nothing else is."""
    rows = service.rows("SELECT * FROM instance")
    spool = service.spool
    files = {path.relative_to(spool).as_posix() for path in (spool / "studies").rglob("*") if path.is_file()}
    assert files == {row.path for row in rows}
    assert not any(part.stat().st_size for part in (spool / "incoming").iterdir())
    return {row.sop_instance_uid: data_set_of(spool / row.path) for row in rows}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[tuple[Faulty, Path, Path, FakePacs]]:
    """A service with its spool and its ledger on small disks of their own."""
    folder = tmp_path_factory.mktemp("full")
    deliver = "[deliver]\ncommitment = false\nfirst_retry_s = 0.5\nlongest_retry_s = 0.5\n"
    with (
        listening(FakePacs()) as pacs,
        small_disk(folder / "spool_disk", "size=32m,nr_inodes=9000") as spool,
        small_disk(folder / "ledger_disk", "size=48m") as ledger,  # the log alone keeps 8 MB or more
        faulty(
            folder,
            TIMES + deliver + rules(bundle, pacs.port),
            spool=spool,
            ledger=ledger,
        ) as service,
    ):
        yield service, spool, ledger, pacs


def test_case_03_full_at_open(full: tuple[Faulty, Path, Path, FakePacs]) -> None:
    """There is no room for one more file."""
    service, disk, _, _ = full
    before, after = make_ct(), make_ct()
    assert store_all(service.port, [before]) == [0]
    taken = [disk / f"taken-{number}" for number in range(os.statvfs(disk).f_ffree)]
    for file in taken:
        file.touch()
    assert store_all(service.port, [after]) == [OUT_OF_RESOURCES]
    assert spooled(service) == {before.SOPInstanceUID: encode(before)}
    for file in taken:
        file.unlink()
    assert store_all(service.port, [after]) == [0]
    assert spooled(service) == {one.SOPInstanceUID: encode(one) for one in (before, after)}


def test_case_03_full_in_the_middle_of_a_file(full: tuple[Faulty, Path, Path, FakePacs]) -> None:
    service, disk, _, _ = full
    small, large = make_ct(), make_ct(size=512)
    there = spooled(service)
    ballast = fill(disk, leave=200_000)
    assert store_all(service.port, [large, small]) == [OUT_OF_RESOURCES, 0]
    assert spooled(service) == there | {small.SOPInstanceUID: encode(small)}
    ballast.unlink()
    assert store_all(service.port, [large]) == [0]
    assert spooled(service)[large.SOPInstanceUID] == encode(large)


def test_case_03_full_at_commit(full: tuple[Faulty, Path, Path, FakePacs]) -> None:
    """The file is there; the ledger cannot grow."""
    service, _, ledger, _ = full
    with RawPeer(service.port, associate_request(), timeout_s=60) as peer:

        def send(one: Dataset) -> int | None:
            peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
            return peer.read_status()

        one, stored = make_ct(size=8), dict[str, bytes]()
        ballast = fill(ledger)
        while (status := send(one)) == 0 and len(stored) < 5000:  # until the room that the ledger has is used up
            stored[one.SOPInstanceUID] = encode(one)
            one = make_ct(size=8)
        assert status == OUT_OF_RESOURCES
        there = spooled(service)
        assert stored.items() <= there.items() and one.SOPInstanceUID not in there
        with RawPeer(service.port, associate_request(calling="ANOTHER"), timeout_s=60) as another:
            assert another.answer_type == 2 or another.answer[1:4] == TEMPORARY_CONGESTION
        ballast.unlink()
        assert send(one) == 0
        peer.release()
    assert spooled(service) == there | {one.SOPInstanceUID: encode(one)}


def test_case_03_full_while_a_result_is_written(full: tuple[Faulty, Path, Path, FakePacs]) -> None:
    service, disk, _, pacs = full
    series = new_phantom(SeriesDescription="hold it")
    wait_for("the service to have recovered", lambda: store_all(service.port, series) == [0] * len(series))
    (job,) = wait_for("a held job", lambda: [one for one in service.jobs(series) if one.state == "held"])
    ballast = fill(disk)
    service.medseg("jobs", "release", str(job.id))
    wait_for("a failure", lambda: service.jobs(series)[0].error_code)
    assert service.jobs(series)[0].state in ("queued", "running")
    assert not service.current_results(series) and not pacs.of("SEG")
    assert not list((disk / "spool" / "results").glob("[!.]*"))
    ballast.unlink()
    assert service.ended(series).state == "done"
    wait_for("the result at the peer", lambda: pacs.of("SEG") and pacs.of("SR"))
    assert len(service.current_results(series)) == 1
