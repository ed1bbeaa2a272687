"""A result taken back: what its destination holds then, and what becomes of it when it is asked for again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from typer.testing import CliRunner

from gateway.ledger import jobs, withdrawals
from gateway.ledger.states import JobState
from gateway.show import studies, text
from gateway.work.withdrawal import withdraw
from medseg.cli.app import make_app
from medseg.errors import UsageError
from medseg.results.statement import REJECTED
from tests.gateway.phantoms import phantom
from tests.gateway.test_reasons import HERE, House, bundle, house, pacs, peer, texts  # noqa: F401 - fixtures
from tests.peers.programs import dciodvfy, dsrdump

WHY = "left and right are exchanged"


def taken_back(here: House, result_id: int = 1, why: str = WHY) -> list[str]:
    return withdraw(here.box.ledger, here.box.folder, result_id, why, time.time())


def ask_again(here: House) -> Any:
    """As `medseg jobs run` does. Returns the job that is over."""
    before = here.jobs()[0]
    new = jobs.NewJob(
        before.study_uid, str(before.series_uid), before.revision, before.bundle, before.rule, before.mode,
        JobState.QUEUED, time.time(), before.terms,
    )  # fmt: skip
    here.box.ledger.write(jobs.make_jobs, [new], time.time())
    while here.worker.step():
        pass
    return here.jobs()[0]


def command(folder: Path, *arguments: str) -> str:
    ran = CliRunner().invoke(make_app(), [*arguments, "--config", str(folder / "medseg.toml")])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def named_in(document: Dataset) -> set[str]:
    return {str(one.value) for one in document.iterall() if one.keyword == "ReferencedSOPInstanceUID"}


def test_a_result_is_withdrawn_where_it_is(
    house: Callable[[str], House],  # noqa: F811
    bundle: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    here, series = house(HERE.format(here=str(bundle))), phantom(slices=8)
    here.send(series[:6])
    here.deliver()
    here.send(series[6:])
    here.deliver()
    results = list(here.pacs.received)
    assert len(results) == 4  # the second names the first
    with pytest.raises(UsageError, match="result 1 was replaced by result 2: withdraw that"):
        taken_back(here)
    here.ahead_s += 1
    assert taken_back(here, 2) == ["pacs"]
    here.ahead_s += 1
    here.deliver()
    report, note = sorted(here.pacs.received[4:], key=lambda one: str(one.Modality), reverse=True)
    assert (report.Modality, note.Modality) == ("SR", "KO")
    assert texts(report)[-3:-1] == [
        f"Withdrawn: the result of bundle spleen_test 0.5.9 of series {series[0].SeriesInstanceUID} is wrong and must "
        "not be used.",
        WHY,
    ]
    (before,) = [one for one in results[2:] if one.Modality == "SR"]
    (item,) = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert note.ConceptNameCodeSequence[0].CodeValue == REJECTED.value == "113037"
    assert named_in(note) == {str(one.SOPInstanceUID) for one in results}  # and what was replaced, too
    for one in (report, note):
        assert (one.PatientID, one.StudyInstanceUID) == (series[0].PatientID, series[0].StudyInstanceUID)
        one.save_as(tmp_path / f"{one.Modality}.dcm", enforce_file_format=True)
        assert dciodvfy(tmp_path / f"{one.Modality}.dcm") == []
    assert "Rejected for Patient Safety Reasons" in dsrdump(tmp_path / "KO.dcm")
    with pytest.raises(UsageError, match="result 2 is withdrawn already"):
        taken_back(here, 2)
    with pytest.raises(UsageError, match="there is no result 9"):
        taken_back(here, 9)
    with here.box.ledger.read() as db:
        (study,) = studies.latest(db, 1)
        assert [withdrawals.state_of(db, row) for row in withdrawals.latest(db, 9)] == ["withdrawn", "withdrawn"]
    assert "withdrawn at" in " ".join(text.lines(study))


def test_a_withdrawn_result_that_is_asked_for_again_says_so(
    house: Callable[[str], House],  # noqa: F811
    bundle: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    here, series = house(HERE.format(here=str(bundle))), phantom(slices=8)
    here.send(series[:6])
    places = f'[gateway]\nspool = "{here.box.folder}"\ndatabase = "sqlite:///{tmp_path}/ledger.db"\n'
    (tmp_path / "medseg.toml").write_text(places)
    assert command(tmp_path, "results") == f"1 current spleen_test 0.5.9 of series {series[0].SeriesInstanceUID}\n"
    said = command(tmp_path, "results", "withdraw", "1", "--yes")
    assert said == "result 1 is withdrawn: it is nowhere else, so nobody is told\n"  # it was not sent yet, and is not
    assert '"state": "withdrawn"' in command(tmp_path, "results", "--json")
    here.deliver()
    assert here.holds() == []
    job = ask_again(here)
    assert (job.state, job.error_code) == ("cancelled", "withdrawn")
    assert job.error.startswith(f"series {job.series_uid}: its result of bundle spleen_test was withdrawn")
    here.reason()
    here.deliver()
    assert here.holds() == []  # the withdrawal is the answer
    here.send(series[6:])  # other images give another result, which names it
    here.deliver()
    assert sorted(here.holds()) == ["SEG", "SR for 1"]
