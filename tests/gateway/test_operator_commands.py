"""What an operator types, on the ledger and spool of a gateway that is not running."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.ledger import deliveries, events, jobs
from gateway.retry import Fault
from gateway.serve import supervisor
from gateway.settings.model import Deliver
from medseg.cli.app import make_app
from medseg.dicom.phantom import write_series
from medseg.errors import EmptyInput, MedsegError, UsageError
from tests.gateway.keep.kept import House, house
from tests.gateway.phantoms import phantom
from tests.medseg.bundle.zoo import spleen_like

PEERS = """
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
"""


@dataclass
class Desk:
    """A gateway and its command line."""

    here: House
    config: Path

    def run(self, *words: str, answer: str | None = None, code: int = 0) -> str:
        """What a command prints on stdout; raises what it ends in, as the shell's table of exit codes gets it."""
        done = CliRunner().invoke(make_app(), [*words, "--config", str(self.config)], input=answer)
        if isinstance(done.exception, MedsegError):
            raise done.exception
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout

    def records(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*words, "--json").splitlines()]

    def die(self, fault: Fault = Fault.NOT_ACCEPTED, peer: str = "pacs") -> None:
        """Every delivery to a peer is refused for good."""
        now, ledger = time.time() + 1e4, self.here.box.ledger
        for out in ledger.write(deliveries.claim_outgoing, peer, "sender", now, now + 30, 100):
            ledger.write(deliveries.fail, out, fault, now, Deliver(), 0.5, status=None, detail="no")  # type: ignore[misc]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (config := tmp_path / "medseg.toml").write_text(PEERS)
    with house(tmp_path) as here:
        yield Desk(here, config)


def test_dead_letters_are_listed_with_what_to_do_and_sent_again(desk: Desk) -> None:
    desk.here.take_in(phantom())
    desk.here.finish(desk.here.claim(), "pacs", "other")
    desk.die()
    text = desk.run("outbox")
    assert "pacs: 1 dead" in text and "other: 1 queued" in text
    assert "does not accept this kind of object" in text and "medseg outbox retry 1" in text
    (letter,) = desk.records("outbox", "--state", "dead")
    assert (letter["destination"], letter["error_code"], letter["kind"]) == ("pacs", "not_accepted", "seg")
    with pytest.raises(UsageError, match="expected one of ID"):
        desk.run("outbox", "retry")
    for wrong in (["2"], ["--peer", "other"]):
        with pytest.raises(UsageError, match="no dead letter"):
            desk.run("outbox", "retry", *wrong)
    for right in (["1"], ["--peer", "pacs"], ["--all"]):
        desk.run("outbox", "retry", *right)
        assert [one["state"] for one in desk.records("outbox")] == ["queued", "queued"]
        desk.die()
    with pytest.raises(UsageError, match="expected --state"):
        desk.run("outbox", "--state", "lost")


def test_a_failed_job_is_run_again_as_if_it_never_had(desk: Desk) -> None:
    here, series = desk.here, phantom(slices=7)
    here.take_in(series[:6])
    with pytest.raises(UsageError, match="is queued: only a failed job"):
        desk.run("jobs", "retry", "1")
    with pytest.raises(UsageError, match="is not there"):
        desk.run("jobs", "retry", "9")
    claim = here.claim()
    here.box.ledger.write(jobs.end_job, claim, "failed", time.time(), code="hung", error="", failed=2)
    desk.run("jobs", "retry", "1")
    (job,) = here.box.rows("job")
    assert (job.state, job.failures, job.tried_from, job.error_code) == ("queued", 0, None, None)
    claim = here.claim()
    here.box.ledger.write(jobs.end_job, claim, "failed", time.time(), code="hung", error="", failed=1)
    here.take_in(series[6:])
    with pytest.raises(UsageError, match="another job"):
        desk.run("jobs", "retry", "1")


def test_a_purge_asks_first(desk: Desk) -> None:
    series = phantom()
    desk.here.deliver(series)
    study = str(series[0].StudyInstanceUID)
    desk.run("purge", study, answer="n\n", code=1)
    assert desk.here.files("studies")
    assert f"purged study {study}: 1 series, 6 instances" in desk.run("purge", study, answer="y\n")
    assert not desk.here.files("studies")
    with pytest.raises(UsageError, match="is not in the ledger"):
        desk.run("purge", study, "--yes")


@pytest.mark.parametrize("uid", ["../../etc", "/etc", "1.2/../..", "*", ""])
def test_a_uid_is_never_a_path(desk: Desk, uid: str) -> None:
    desk.here.deliver(phantom())
    before = desk.here.files("")
    with pytest.raises(UsageError, match="is not in the ledger"):
        desk.run("purge", uid, "--yes")
    assert desk.here.files("") == before


def test_a_backup_is_made_beside_the_settings_of_the_gateway(desk: Desk, tmp_path: Path) -> None:
    desk.here.deliver(phantom())
    assert "8 files" in desk.run("backup", str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "medseg.toml").read_text() == PEERS
    with pytest.raises(UsageError, match="there already"):
        desk.run("backup", str(tmp_path / "saved"))


def test_rules_are_tried_on_files(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = spleen_like(tmp_path / "bundles" / "spleen_test")
    desk.config.write_text(
        PEERS
        + '[[rule]]\nname = "contrast"\nwhen = { series_description = "*contrast*", calling_ae = "CT01" }\n'
        + f'bundle = "{bundle}"\nsend_to = ["pacs"]\n'
        + '[[rule]]\nname = "thin"\nwhen = { modality = "CT" }\nselect = "thinnest"\n'
        + f'bundle = "{bundle}"\n'
        + '[[rule]]\nname = "nothing else"\nmode = "off"\n'
    )
    study = str(phantom()[0].StudyInstanceUID)
    thick, thin = phantom(1, SliceThickness=5), phantom(2, SliceThickness=1)
    contrast, mr, ours = (
        phantom(3, SeriesDescription="with contrast"), phantom(4, Modality="MR"), phantom(5, Manufacturer="medseg"),
    )  # fmt: skip
    for number, series in enumerate((thick, thin, contrast, mr, ours)):
        for one in series:
            one.StudyInstanceUID, one.SeriesNumber = study, number
        write_series(series, tmp_path / "study" / str(number))
    found = desk.records("rules", "test", str(tmp_path / "study"), "--calling-ae", "CT01")
    by_uid = {record["series_uid"]: record for record in found}
    seen = [by_uid[str(one[0].SeriesInstanceUID)] for one in (thick, thin, contrast, mr, ours)]
    assert [record["rule"] for record in seen] == [None, "thin", "contrast", None, None]
    assert [record["bundles"] for record in seen] == [[], ["spleen_test"], ["spleen_test"], [], []]
    assert [record["destinations"] for record in seen] == [[], [], ["pacs"], [], []]
    assert "1 mm" in seen[0]["passed_over"] and "made by medseg" in seen[4]["barred"]
    assert [one["verdict"] for one in seen[3]["rules"]] == ["fails", "fails", "holds"]
    text = desk.run("rules", "test", str(tmp_path / "study"))
    assert 'calling_ae: what is not known yet may become "CT01"' in text
    assert "bundle: spleen_test" in text and "to: pacs" in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyInput):
        desk.run("rules", "test", str(tmp_path / "empty"))


def test_a_bundle_that_is_not_there_is_told(desk: Desk, tmp_path: Path) -> None:
    desk.config.write_text('[[rule]]\nbundle = "nowhere"\n')
    write_series(phantom(), tmp_path / "study")
    (record,) = desk.records("rules", "test", str(tmp_path / "study"))
    assert record["bundles"] == [] and "nowhere" in record["refused"][0]


def test_status_tells_of_settings_that_were_refused(desk: Desk) -> None:
    told = ["line 3: gateway.port: expected a port from 1 to 65535, found 0"]
    desk.here.box.ledger.write(events.record_settings, told, ["gateway.host"], time.time())
    desk.here.box.ledger.write(events.record_doubts, ["rule ct: no bundle 'liver'"], time.time())
    text = desk.run("status")
    assert told[0] in text and "gateway.host stays as it was until a restart" in text and "no bundle 'liver'" in text
    settings = desk.records("status")[0]["settings"]
    assert settings == {"problems": told, "kept": ["gateway.host"], "doubts": ["rule ct: no bundle 'liver'"]}


def test_what_the_command_line_says_outlives_a_reload(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr(supervisor, "serve", lambda *arguments: served.extend(arguments))
    desk.config.write_text('[gateway]\nallow_callers = ["CT01"]\n')
    desk.run("serve", "--allow-any-caller")
    settings, reload = served
    assert settings.gateway.allow_any_caller
    desk.config.write_text('[gateway]\nallow_callers = ["CT02"]\n[limits]\nper_caller = 3\n')
    found = reload(settings)
    assert found.settings.gateway.allow_any_caller and found.settings.limits.per_caller == 3
    desk.config.write_text("[limits]\nper_caller = 0\n")
    assert reload(found.settings).settings == found.settings and reload(found.settings).problems
