"""What was decided is decided again: after a change of the rules, a repetition, or by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import update
from typer.testing import CliRunner

from gateway.ledger import jobs as jobs_rows
from gateway.ledger.tables import series as series_table
from gateway.receive import spool
from gateway.settings.model import GatewaySettings
from gateway.settings.read import read_settings
from gateway.show.troubles import patient_digest
from medseg.cli.app import make_app
from medseg.errors import MedsegError, UsageError
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox

QUIET_S = 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the director and of the spool."""
    made = Clock()
    monkeypatch.setattr(spool, "time", SimpleNamespace(time=lambda: made.wall_s, monotonic=time.monotonic))
    return made


MR = '[[rule]]\nname = "mr"\nwhen = { modality = "MR" }\n'
CT = '[[rule]]\nname = "ct"\nwhen = { modality = "CT" }\nbundle = "one"\n'
CT_BY_ANOTHER = CT.replace('"one"', '"another"')


def settings(folder: Path, rules: str) -> GatewaySettings:
    return read_settings(rules, folder)


def decided(box: Inbox, director: Director, clock: Clock) -> list[tuple[str, str, str]]:
    """State, rule and bundle of the jobs, once all that has come is decided upon."""
    for wait_s in (0, QUIET_S, 0, QUIET_S):
        director.step(*clock.after(wait_s))
    return [(job.state, job.rule, job.bundle) for job in box.rows("job") if job.revision]


def done(box: Inbox) -> None:
    """The job that waits is claimed and comes to nothing new."""
    now = time.time() + 1e6
    claim = box.ledger.write(jobs_rows.claim_job, "worker", now, now + 30)
    assert claim is not None
    box.ledger.write(jobs_rows.end_job, claim, "done", now, code=None, error=None)


def test_sent_again_a_series_that_no_rule_wanted_gets_the_rules_of_now(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        director, sent = Director(box.ledger, box.folder, settings(tmp_path, MR)), phantom()
        box.send(sent)
        assert decided(box, director, clock) == []
        director.settings = settings(tmp_path, MR + CT)
        assert decided(box, director, clock) == []  # a reload alone makes no work of what is old
        box.send(sent)
        assert decided(box, director, clock) == [("queued", "ct", "one")]


def test_sent_again_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        sent = phantom()
        box.send(sent)
        decided(box, Director(box.ledger, box.folder, settings(tmp_path, MR)), clock)
        box.send(sent)
        assert decided(box, Director(box.ledger, box.folder, settings(tmp_path, CT)), clock) == [
            ("queued", "ct", "one")
        ]


def test_sent_again_a_done_job_stays_unless_the_rule_has_another_bundle(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        director, sent = Director(box.ledger, box.folder, settings(tmp_path, CT)), phantom()
        box.send(sent)
        decided(box, director, clock)
        done(box)
        box.send(sent)
        assert decided(box, director, clock) == [("done", "ct", "one")]
        director.settings = settings(tmp_path, CT_BY_ANOTHER)
        box.send(sent)
        assert decided(box, director, clock) == [("done", "ct", "one"), ("queued", "ct", "another")]


def test_a_repetition_is_looked_at_once(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        director, sent = Director(box.ledger, box.folder, settings(tmp_path, MR)), phantom()
        box.send(sent)
        decided(box, director, clock)
        box.send(sent)
        decided(box, director, clock)
        (row,) = box.rows("series")
        assert row.state == "complete" and row.taken_at > row.last_at
        assert [event.kind for event in box.rows("event")].count("series.passed_over") == 1


class Shell:
    """Commands on a ledger."""

    def __init__(self, folder: Path, box: Inbox, rules: str) -> None:
        text = f'[gateway]\nspool = "{box.folder}"\ndatabase = "sqlite:///{folder}/ledger.db"\n{rules}'
        (folder / "medseg.toml").write_text(text)
        self.config = folder / "medseg.toml"

    def run(self, *words: str) -> str:
        ended = CliRunner().invoke(make_app(), [*words, "--config", str(self.config)])
        if isinstance(ended.exception, MedsegError):
            raise ended.exception
        assert ended.exit_code == 0, (ended.output, ended.exception)
        return ended.stdout

    def errors(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("errors", "--json", *words).splitlines()]


def failing(box: Inbox, director: Director, clock: Clock, sent: list[Dataset]) -> None:
    box.send(sent)
    decided(box, director, clock)
    now = time.time() + 1e6
    claim = box.ledger.write(jobs_rows.claim_job, "worker", now, now + 30)
    assert claim is not None
    box.ledger.write(jobs_rows.end_job, claim, "failed", now, code="no_such_bundle", error="no such bundle")


def test_by_hand_a_study_is_asked_anew_or_run_by_a_rule_or_a_bundle(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        director, sent = Director(box.ledger, box.folder, settings(tmp_path, MR + CT)), phantom()
        shell, study = Shell(tmp_path, box, MR + CT), sent[0].StudyInstanceUID
        box.send(sent[:3])
        director.step(*clock.after(0))
        with pytest.raises(UsageError, match="none of its series"):
            shell.run("jobs", "run", study)  # it is still arriving
        box.send(sent[3:])
        decided(box, director, clock)
        done(box)
        assert "the rules are asked" in shell.run("jobs", "run", study)
        assert decided(box, director, clock)[-1] == ("queued", "ct", "one")
        assert "queued" in shell.run("jobs", "run", study, "--rule", "mr")
        assert decided(box, director, clock)[-2:] == [("cancelled", "ct", "one"), ("queued", "mr", "")]
        shell.run("jobs", "run", study, "--bundle", "hippocampus_t1_unet3d", "--series", sent[0].SeriesInstanceUID)
        assert decided(box, director, clock)[-1] == ("queued", "mr", "hippocampus_t1_unet3d")
        for wrong, why in (
            (["1.2.3"], "nothing of study 1.2.3 is here"),
            ([study, "--series", "1.2"], "nothing of series 1.2"),
            ([study, "--rule", "none"], "the rules are mr, ct"),
            ([study, "--rule", "ct", "--bundle", "one"], "not both"),
        ):
            with pytest.raises(UsageError, match=why):
                shell.run("jobs", "run", *wrong)


def test_images_that_retention_deleted_are_not_run(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        director, sent = Director(box.ledger, box.folder, settings(tmp_path, CT)), phantom()
        shell, study = Shell(tmp_path, box, CT), sent[0].StudyInstanceUID
        box.send(sent)
        decided(box, director, clock)
        box.ledger.write(lambda db: db.exec_driver_sql("UPDATE instance SET deleted_at = 1"))
        for words in ([], ["--rule", "ct"]):
            with pytest.raises(UsageError, match="none of its series"):
                shell.run("jobs", "run", study, *words)


def test_errors_are_listed_found_and_dismissed(tmp_path: Path, clock: Clock) -> None:
    with inbox(tmp_path) as box:
        director = Director(box.ledger, box.folder, settings(tmp_path, CT))
        shell = Shell(tmp_path, box, CT)
        assert "nothing waits" in shell.run("errors")
        sent = phantom(AccessionNumber="A17", PatientID="P 4711", StudyDate="20260214")
        failing(box, director, clock, sent)
        other = phantom(seed=1)
        box.send(other[:2] + other[4:])
        director.step(*clock.after(0))
        box.ledger.write(
            lambda db: db.execute(update(series_table).where(series_table.c.state == "arriving").values(state="held"))
        )
        found = {trouble["kind"]: trouble for trouble in shell.errors()}
        assert found.keys() == {"job", "series"}
        assert (found["job"]["code"], found["job"]["study_uid"]) == ("no_such_bundle", sent[0].StudyInstanceUID)
        assert found["job"]["patient"] == patient_digest("p4711") and "4711" not in json.dumps(found)
        assert "medseg jobs retry" in found["job"]["next_step"]
        for words in (
            ["--accession", "A17"], ["--patient", "P 4711"], ["--patient", patient_digest("P4711")],
            ["--date", "202602"], ["--date", ">=20260214"], ["--code", "no_such_bundle"],
        ):  # fmt: skip
            assert [one["kind"] for one in shell.errors(*words)] == ["job"], words
        assert shell.errors("--accession", "A1") == [] and shell.errors("--date", "2027") == []
        text = shell.run("errors", "--code", "no_such_bundle")
        assert "no such bundle" in text and "4711" not in text
        with pytest.raises(UsageError, match="--date"):
            shell.run("errors", "--date", "yesterday")
        shell.run("jobs", "dismiss", str(found["job"]["id"]))
        assert [one["kind"] for one in shell.errors()] == ["series"]
        with pytest.raises(UsageError, match="has not failed"):
            shell.run("jobs", "dismiss", str(found["job"]["id"]))
        jobs = [json.loads(line) for line in shell.run("jobs", "--json").splitlines()]
        assert [job["state"] for job in jobs if job["id"] == found["job"]["id"]] == ["cancelled"]
