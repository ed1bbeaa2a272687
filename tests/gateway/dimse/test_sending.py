"""What a program sends, and what it is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import NoAssociation, send
from medseg.errors import EmptyInput, NoSuchInput, UnreadableInstance, UsageError
from tests.gateway.pacs import SEG, FakePacs, listening
from tests.gateway.receiving import make_ct, write_file
from tests.ports import free_port


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as peer:
        yield peer


def test_each_file_has_its_answer(pacs: FakePacs, tmp_path: Path) -> None:
    objects = {name: make_ct(SOPClassUID=SEG) for name in ("a.dcm", "b.dcm", "c.dcm")}
    for name, dataset in objects.items():
        write_file(dataset, tmp_path / name)
    write_file(make_ct(), tmp_path / "ct.dcm")  # of a class that this peer does not take
    (tmp_path / "result.json").write_text("{}")
    statuses = {str(objects["b.dcm"].SOPInstanceUID): 0xA700, str(objects["c.dcm"].SOPInstanceUID): 0xB000}
    pacs.answer = lambda uid: statuses.get(uid, 0x0000)
    sending = send(str(tmp_path), f"PACS@127.0.0.1:{pacs.port}")
    assert [(each.file.path.name, each.answer.status, each.stored) for each in sending.sent] == [
        ("a.dcm", 0x0000, True),
        ("b.dcm", 0xA700, False),
        ("c.dcm", 0xB000, True),
        ("ct.dcm", None, False),
    ]
    assert [each.file.path.name for each in sending.not_stored] == ["b.dcm", "ct.dcm"]
    assert [Path(error.name).name for error in sending.left_out] == ["result.json"]
    assert pacs.associations == 1


def test_what_comes_after_a_broken_association_is_not_stored(pacs: FakePacs, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        write_file(make_ct(SOPClassUID=SEG), tmp_path / name)
    pacs.answer = lambda _: None
    sending = send(tmp_path, f"PACS@127.0.0.1:{pacs.port}")
    assert [(each.answer.status, each.stored) for each in sending.sent] == [(None, False)] * 2


def test_nobody_there(tmp_path: Path) -> None:
    file = write_file(make_ct(SOPClassUID=SEG), tmp_path / "a.dcm")
    with pytest.raises(NoAssociation):
        send(file, f"PACS@127.0.0.1:{free_port()}")


def test_nothing_to_send(tmp_path: Path) -> None:
    to = "PACS@127.0.0.1:104"
    with pytest.raises(NoSuchInput):
        send(tmp_path / "absent", to)
    with pytest.raises(EmptyInput):
        send(tmp_path, to)
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(UnreadableInstance):
        send(tmp_path / "notes.txt", to)
    with pytest.raises(UsageError, match="expected AE@HOST:PORT"):
        send(tmp_path, "127.0.0.1:104")
