"""`medseg doctor` looks at what `medseg serve` needs, and says what to do."""

from __future__ import annotations

import fcntl
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom.sop_class import StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind, Verification

from gateway.cli import doctor as gateway_checks
from gateway.cli.doctor import checks
from gateway.ledger.ledger import Ledger
from medseg.cli.doctor import Check
from tests.gateway.pacs import REASON, SEG, SR, FakePacs, listening
from tests.ports import free_port

ROOM = "[limits]\ndisk_used_percent = 100\ndisk_free_gb = 0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write(tmp_path)
    yield tmp_path


def write(folder: Path, more: str = "", port: int = 0, limits: str = ROOM) -> None:
    ports = f"[gateway]\nport = {port or free_port()}\nhttp_port = {free_port()}\n"
    (folder / "medseg.toml").write_text(ports + limits + more)


def found(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in checks(folder / "medseg.toml")}


def test_a_place_to_start_in_is_well(folder: Path) -> None:
    assert not [check for check in found(folder).values() if not check.ok]
    assert not (folder / "spool").exists() and not (folder / "ledger.db").exists()


def test_wrong_settings_are_named_line_by_line(folder: Path) -> None:
    (folder / "medseg.toml").write_text("[gateway]\nport = 0\n")
    (check,) = found(folder).values()
    assert not check.ok and "line 2: gateway.port: expected a port from 1 to 65535, found 0" in check.found


def test_a_port_is_free_ours_or_somebody_elses(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        write(folder, port=other.getsockname()[1])
        check = found(folder)["port"]
        assert not check.ok and "change gateway.port" in check.advice
        (folder / "spool").mkdir()
        with (folder / "spool" / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            assert "in use by medseg serve" in found(folder)["port"].found


def test_a_full_disk_and_a_spool_that_cannot_be_written_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, limits="[limits]\ndisk_free_gb = 1e9\n")
    assert not found(folder)["spool's disk"].ok

    def no_sync(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gateway_checks.os, "fsync", no_sync)
    assert "Input/output error" in found(folder)["spool"].found


def test_a_ledger_of_another_version_is_told(folder: Path) -> None:
    with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        assert found(folder)["ledger"].ok
        ledger.write(lambda db: db.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'").rowcount)
    check = found(folder)["ledger"]
    assert not check.ok and "revision 0001" in check.found


def test_too_few_file_descriptors_are_told(folder: Path) -> None:
    write(folder, limits=ROOM + "associations = 1000\nper_caller = 1000\n")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        assert "LimitNOFILE" in found(folder)["file descriptors"].advice
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


ALL = (SEG, SR, REASON, Verification)


@pytest.mark.parametrize(
    ("classes", "ok", "said"),
    [
        ((*ALL, StorageCommitmentPushModel), True, "confirms by storage commitment"),
        ((*ALL, StudyRootQueryRetrieveInformationModelFind), True, "confirms by C-FIND"),
        (ALL, True, "confirms by nothing"),
        ((SEG, SR, Verification), True, "takes no Enhanced SR"),
        ((SR, Verification), False, "takes no DICOM-SEG"),
        ((Verification,), False, "takes no DICOM-SEG and no structured reports"),
        ((SEG, SR), False, "no answer to C-ECHO"),
    ],
)
def test_what_a_peer_takes(folder: Path, classes: tuple[str, ...], ok: bool, said: str) -> None:
    with listening(FakePacs(), classes) as pacs:
        write(folder, f'[[peer]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {pacs.port}\n')
        check = found(folder)["peer pacs"]
    assert (check.ok, said in check.found) == (ok, True)


def test_a_peer_that_is_away_is_told(folder: Path) -> None:
    write(folder, f'[[peer]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {free_port()}\n')
    check = found(folder)["peer pacs"]
    assert not check.ok and "no connection" in check.found and "MEDSEG" in check.advice


def test_peers_are_asked_for_what_rules_send_to_them(folder: Path) -> None:
    with listening(FakePacs(), (SR, Verification)) as pacs:
        peer = f'[[peer]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
        write(folder, peer + '[[rule]]\nsend_to = ["pacs"]\nresults = ["sr"]\n')
        check = found(folder)["peer pacs"]
        assert check.ok and "takes structured reports" in check.found
        write(folder, peer + "[[rule]]\nsend_to = []\n")
        assert "no rule sends to it" in found(folder)["peer pacs"].found


def test_rules_are_shown_as_they_were_understood(folder: Path) -> None:
    write(folder, '[[rule]]\nname = "mr"\nwhen = { modality = "MR", StudyDate = ">=2026", not = { slices = "<9" } }\n')
    checks = {(check.name, check.doubtful): check for check in gateway_checks.checks(folder / "medseg.toml")}
    check = checks["rule mr", False]
    assert check.ok and check.found.startswith("mode on, by ")
    said = 'when modality is the text "MR" and StudyDate is the date >=2026 and not (slices is the number <9)'
    assert check.details == (said,)
    doubt = checks["rule mr", True]
    assert doubt.ok and "results stay here" in doubt.found and "send_to" in doubt.advice


@pytest.mark.parametrize(
    ("more", "name", "words"),
    [
        ('[[rule]]\nbundle = "liver_ct"\n', "rule 1", "no bundle 'liver_ct'"),
        ('[[rule]]\nname = "ct"\nwhen = { modality = "CT|MR" }\n', "rule ct", "can never hold"),
    ],
)
def test_what_cannot_work_is_told(folder: Path, more: str, name: str, words: str) -> None:
    write(folder, more)
    assert any(
        check.name == name and not check.ok and words in check.found and check.advice
        for check in checks(folder / "medseg.toml")
    )


def test_the_host_of_a_caller_can_be_looked_up(folder: Path) -> None:
    ports = f'[gateway]\nport = {free_port()}\nallow_callers = ["CT01@nowhere.invalid", "CT02@127.0.0.1"]\n'
    (folder / "medseg.toml").write_text(ports + ROOM)
    names = {check.name: check for check in checks(folder / "medseg.toml")}
    assert not names["caller CT01"].ok and "nowhere.invalid" in names["caller CT01"].found
    assert "caller CT02" not in names
