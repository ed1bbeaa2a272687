"""`medseg studies`: what a person is shown of a study with images of two patients, and what they type to settle it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli.app import make_app
from medseg.errors import MedsegError, UsageError
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    (tmp_path / "medseg.toml").write_text('[gateway]\nspool = "spool"\n')
    with inbox(tmp_path) as opened:
        yield opened


def run(box: Inbox, *words: str) -> str:
    done = CliRunner().invoke(make_app(), ["studies", *words, "--config", str(box.folder.parent / "medseg.toml")])
    if isinstance(done.exception, MedsegError):
        raise done.exception
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def two_patients(box: Inbox) -> str:
    """A study of which half names another patient; its UID."""
    series = phantom(PatientID="SECRET-ONE", PatientName="Secret^One")
    box.send(series[:4], calling_ae="CT01")
    for one in series[4:]:
        one.PatientID, one.PatientName, one.IssuerOfPatientID = "SECRET-TWO", "Secret^Two", "CLINIC"
    box.send(series[4:], calling_ae="PACS")
    return str(series[0].StudyInstanceUID)


def test_what_is_shown(box: Inbox) -> None:
    assert run(box) == ""
    study = two_patients(box)
    for said in (run(box), run(box, "show", study)):
        assert f"study {study}" in said and "images of 2 patients" in said and "SECRET" not in said
        assert "patient A: 4 images that count, first sent by CT01" in said
        assert "patient B: 2 images that count, first sent by PACS" in said
    (record,) = map(json.loads, run(box, "--json").splitlines())
    assert record["conflict"]["state"] == "open" and "SECRET" not in json.dumps(record)
    named = run(box, "show", study, "--names")
    assert "patient A: PatientID SECRET-ONE, IssuerOfPatientID -, PatientName Secret^One" in named
    assert "patient B: PatientID SECRET-TWO, IssuerOfPatientID CLINIC, PatientName Secret^Two" in named


def test_what_is_settled(box: Inbox) -> None:
    study = two_patients(box)
    with pytest.raises(UsageError, match="expected the letter of a patient, A or B: `medseg"):
        run(box, "merge", study, "--patient", "SECRET-ONE")
    run(box, "merge", study, "--patient", "b")
    assert run(box) == "" and "merged to patient B" in run(box, "show", study)
    run(box, "split", study)
    assert "split" in run(box, "show", study)
    for word in ("show", "split"):
        with pytest.raises(UsageError, match="here"):
            run(box, word, "1.2.3")
