"""A backup is the gateway at one moment, and a service can go on from it."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from gateway.keep import backup as saving
from gateway.keep.backup import BackupFailed, backup, verify
from gateway.keep.purge import purge
from gateway.ledger.ledger import Ledger
from gateway.receive.reconcile import reconcile
from gateway.receive.spool import Spool
from medseg.errors import UsageError
from tests.gateway.keep.kept import House, house
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import NEVER_FULL


def restored(saved: Path) -> tuple[list[str], int]:
    """What a service that starts on a backup finds: files under their names, and what is missing or adopted."""
    with Ledger(f"sqlite:///{saved}/ledger.db") as ledger:
        found = reconcile(Spool(saved / "spool", ledger, NEVER_FULL), ledger)
    files = sorted(path.name for path in (saved / "spool").rglob("*") if path.is_file())
    return files, len(found.missing) + len(found.adopted) + len(found.quarantined)


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_backup_is_all_there(tmp_path: Path, other_disk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if other_disk:
        monkeypatch.setattr(os, "link", other_file_system)
    with house(tmp_path) as here:
        here.deliver(phantom(1))
        here.take_in(phantom(2))
        (settings := tmp_path / "settings.toml").write_text("[gateway]\n")
        made = backup(here.box.ledger, here.box.folder, tmp_path / "saved", settings)
        assert (made.files, made.linked) == (14, 0 if other_disk else 14)
        expected = sorted(path.name for path in here.files("studies") + here.files("results"))
    shutil.rmtree(here.box.folder)
    files, trouble = restored(tmp_path / "saved")
    assert (files, trouble) == (expected, 0)
    assert (tmp_path / "saved" / "medseg.toml").read_text() == "[gateway]\n"


def test_a_study_that_is_purged_meanwhile_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with house(tmp_path) as here:
        first, second = phantom(1), phantom(2)
        here.deliver(first)
        here.deliver(second)
        save, begun = saving._save, threading.Event()

        def purged_then_saved(source: Path, target: Path) -> bool:
            if not begun.is_set():
                begun.set()
                purge(here.box.ledger, here.box.folder, str(first[0].StudyInstanceUID), here.clock.wall_s)
            return save(source, target)

        monkeypatch.setattr(saving, "_save", purged_then_saved)
        assert backup(here.box.ledger, here.box.folder, tmp_path / "saved").files == 8
    files, trouble = restored(tmp_path / "saved")
    assert (len(files), trouble) == (8, 0)


def test_writers_go_on_meanwhile(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        here.take_in(phantom(0))
        over = threading.Event()
        writer = threading.Thread(target=keep_sending, args=(here, over))
        writer.start()
        try:
            for number in range(5):
                backup(here.box.ledger, here.box.folder, tmp_path / f"saved{number}")
        finally:
            over.set()
            writer.join()
    for number in range(5):
        files, trouble = restored(tmp_path / f"saved{number}")
        assert trouble == 0 and len(files) >= 6


def keep_sending(here: House, over: threading.Event) -> None:
    for seed in range(1, 200):
        if over.is_set():
            return
        here.box.send(phantom(seed))


def test_damage_is_told(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        here.take_in(phantom())
        backup(here.box.ledger, here.box.folder, tmp_path / "saved")
        (tmp_path / "saved" / "spool" / here.box.rows("instance")[0].path).unlink()
        with pytest.raises(BackupFailed, match="found None"):
            verify(tmp_path / "saved")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    with house(tmp_path) as here:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(UsageError, match="there already"):
            backup(here.box.ledger, here.box.folder, tmp_path / "full")
        with pytest.raises(UsageError, match="lies in the spool"):
            backup(here.box.ledger, here.box.folder, here.box.folder / "saved")
