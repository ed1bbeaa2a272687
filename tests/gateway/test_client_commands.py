"""`medseg send` and `medseg echo` against a peer on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli import client
from gateway.dimse.scu import NoAssociation
from medseg.job.exits import exit_code
from tests.gateway.pacs import SEG, FakePacs, listening
from tests.gateway.receiving import make_ct, write_file
from tests.ports import free_port

app = typer.Typer()
client.register(app)


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as one:
        yield one


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two objects that may be sent, and a file that is none."""
    folder = tmp_path / "study"
    (folder / "b").mkdir(parents=True)
    for name in ("a.dcm", "b/c.dcm"):
        write_file(make_ct(SOPClassUID=SEG), folder / name)
    (folder / "notes.txt").write_text("not DICOM")
    return folder


def test_echo(pacs: FakePacs) -> None:
    said = CliRunner().invoke(app, ["echo", f"PACS@127.0.0.1:{pacs.port}"])
    assert (said.exit_code, said.stdout) == (0, f"PACS@127.0.0.1:{pacs.port}: 0000H\n")


def test_echo_to_nobody(pacs: FakePacs) -> None:
    said = CliRunner().invoke(app, ["echo", f"PACS@127.0.0.1:{free_port()}"])
    assert isinstance(said.exception, NoAssociation)
    assert exit_code(said.exception) == 1


def test_send_a_folder(pacs: FakePacs, study: Path) -> None:
    said = CliRunner().invoke(app, ["send", str(study), "--to", f"PACS@127.0.0.1:{pacs.port}", "--json"])
    assert said.exit_code == 0, said.output
    records = [json.loads(line) for line in said.stdout.splitlines()]
    assert [record["stored"] for record in records] == [True, True]
    assert [record["sop_instance_uid"] for record in records] == pacs.uids()
    assert pacs.associations == 1
    assert "notes.txt" in said.stderr


def test_send_one_file_of_a_kind_that_is_not_taken(pacs: FakePacs, tmp_path: Path) -> None:
    file = write_file(make_ct(), tmp_path / "ct.dcm")
    good = write_file(make_ct(SOPClassUID=SEG), tmp_path / "seg.dcm")
    said = CliRunner().invoke(app, ["send", str(tmp_path), "--to", f"PACS@127.0.0.1:{pacs.port}"])
    assert said.exit_code == 1
    assert f"{file}: not stored (not accepted)" in said.stdout
    assert f"{good}: stored (0000H)" in said.stdout


@pytest.mark.parametrize(
    "address", ["PACS", "PACS@host", "PACS@host:x", "PACS@host:99999", "@host:104", "P\\CS@host:1"]
)
def test_addresses_that_are_none(address: str) -> None:
    said = CliRunner().invoke(app, ["echo", address])
    assert said.exception is not None
    assert exit_code(said.exception) == 2


@pytest.mark.parametrize("name", ["absent", "study/notes.txt", "empty"])
def test_nothing_to_send(pacs: FakePacs, study: Path, name: str) -> None:
    (study.parent / "empty").mkdir()
    said = CliRunner().invoke(app, ["send", str(study.parent / name), "--to", f"PACS@127.0.0.1:{pacs.port}"])
    assert said.exception is not None
    assert exit_code(said.exception) == 3


def test_the_commands_load_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pydicom", "pynetdicom", "sqlalchemy"}
    program = f"import sys, gateway.cli.client; print(sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
