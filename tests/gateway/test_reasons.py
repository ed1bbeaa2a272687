"""What a destination holds in the end of a study that was not segmented, at once or at all; over real sockets."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from highdicom.sr import srread
from pydicom import Dataset
from sqlalchemy import Connection

from gateway.decide import settle
from gateway.decide.jobs import ask_why
from gateway.deliver.outbox import Outbox
from gateway.files import RESULTS
from gateway.ledger import deliveries, events, jobs, replays, unanswered
from gateway.ledger import series as series_rows
from gateway.ledger.records import JobRow
from gateway.serve.processes import LedgerContext
from gateway.serve.reasoner import Reasoner
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings
from gateway.settings.read import read_settings
from gateway.show import studies, text
from gateway.work.worker import Worker
from medseg.results.statement import STATEMENT_CLASS
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import phantom
from tests.gateway.running import serving
from tests.gateway.spooling import Inbox, inbox
from tests.medseg.bundle.zoo import spleen_like
from tests.peers.programs import dciodvfy, dsrdump, tid1500reader
from tests.waiting import wait_for

QUIET_S = 60  # the longest quiet time


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)


@pytest.fixture(scope="module")
def peer() -> Iterator[FakePacs]:
    with listening(FakePacs()) as pacs:
        yield pacs


@pytest.fixture
def pacs(peer: FakePacs) -> FakePacs:
    peer.got.clear()
    peer.received.clear()
    peer.answer = lambda _: 0x0000
    return peer


class House:
    """A gateway in this process, a step at a time, with a destination that listens."""

    def __init__(self, box: Inbox, folder: Path, pacs: FakePacs, rule: str) -> None:
        self.box, self.pacs, self.clock = box, pacs, Clock()
        peer = f'[[peer]]\nname = "pacs"\nae_title = "SENDER"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
        settings = read_settings(f"[deliver]\ncommitment = false\n{peer}{rule}", folder)
        self.settings: GatewaySettings = replace(settings, gateway=replace(settings.gateway, spool=box.folder))
        self.director = Director(box.ledger, box.folder, self.settings)
        self.stop = threading.Event()
        context = LedgerContext(box.ledger, Live(self.settings))
        self.worker = Worker(box.ledger, box.folder, context, self.stop, owner="worker")
        self.reasoner = Reasoner(box.ledger, box.folder)
        self.ahead_s = 0.0
        self.outbox = Outbox(box.ledger, box.folder, clock=lambda: time.time() + self.ahead_s)

    def send(self, *series: list[Dataset]) -> None:
        """They come, are complete, and what can be done with them is done."""
        for one in series:
            self.box.send(one)
        self.work()

    def work(self) -> None:
        for seconds in (1, QUIET_S):
            self.director.step(self.clock.after(seconds)[0], time.time())
        while self.worker.step():
            pass

    def reason(self) -> None:
        self.ahead_s += QUIET_S
        self.reasoner.step(self.settings, time.time() + self.ahead_s)

    def deliver(self) -> None:
        self.outbox.serve(self.settings, "pacs")

    def jobs(self) -> list[JobRow]:
        with self.box.ledger.read() as db:
            return jobs.latest_jobs(db, 10)

    def holds(self) -> list[str]:
        """What the destination has: what each says, in a word."""
        return [_said(one) for one in self.pacs.received]


def _said(one: Dataset) -> str:
    if one.Modality != "SR":
        return str(one.Modality)
    words = "reason" if one.SOPClassUID == STATEMENT_CLASS else "SR"
    return f"{words} for {len(one.PredecessorDocumentsSequence)}" if "PredecessorDocumentsSequence" in one else words


def texts(report: Dataset) -> list[str]:
    return [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]


@pytest.fixture
def house(tmp_path: Path, pacs: FakePacs) -> Iterator[Callable[[str], House]]:
    with inbox(tmp_path) as box:
        yield lambda rule: House(box, tmp_path, pacs, f"[[rule]]\nname = 'ct'\n{rule}\n")


def gap(seed: int = 0) -> list[Dataset]:
    """A series that lacks slices in its middle."""
    series = phantom(seed, slices=9)
    return [*series[:3], *series[6:]]


def of_study(series: list[Dataset], other: list[Dataset]) -> list[Dataset]:
    for one in series:
        one.StudyInstanceUID = other[0].StudyInstanceUID
    return series


def localizer(seed: int = 0) -> list[Dataset]:
    series = phantom(seed, slices=1)
    series[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return series


def refused(house: House) -> None:
    house.send(gap())
    house.reason()


def failed(house: House) -> None:
    house.send(phantom())
    house.reason()


def cancelled(house: House) -> None:
    """Its failed job is dismissed, before anybody was told."""
    house.send(phantom())
    (job,) = house.jobs()
    house.box.ledger.write(replays.dismiss, job.id, time.time())
    house.reason()


def mend_and_retry(house: House, bundle: Path) -> None:
    (job,) = house.jobs()
    shutil.copytree(bundle, house.box.folder.parent / "absent")
    house.box.ledger.write(jobs.retry_job, job.id, time.time())
    house.work()


def fails_then_succeeds(house: House, bundle: Path) -> None:
    failed(house)
    house.deliver()
    mend_and_retry(house, bundle)


def succeeds_before_it_was_sent(house: House, bundle: Path) -> None:
    failed(house)
    mend_and_retry(house, bundle)


HERE, ABSENT = "bundle = {here!r}", "bundle = './absent'"
ENDS = {
    "refused": (HERE, refused, ["reason"]),
    "refused by fit": (
        HERE,
        lambda house: (house.send(phantom(Modality="MR")), house.reason()),
        ["reason"],
    ),
    "failed": (ABSENT, failed, ["reason"]),
    "cancelled": (ABSENT, cancelled, ["reason"]),
    "fails and then succeeds": (ABSENT, fails_then_succeeds, ["reason", "SEG", "SR for 1"]),
    "succeeds before it was told": (ABSENT, succeeds_before_it_was_sent, ["SEG", "SR for 1"]),
    "another series of it has a result": (
        HERE,
        lambda house: (house.send(phantom(1), of_study(gap(2), phantom(1))), house.reason()),
        ["SEG", "SR"],
    ),
    "a localizer": (HERE, lambda house: (house.send(localizer()), house.reason()), []),
    "no bundle fits, and none is named": ("", lambda house: (house.send(phantom()), house.reason()), []),
    "on the page alone": (f"{HERE}\non_failure = 'page'", refused, []),
    "not to be told": (f"{HERE}\non_failure = 'none'", refused, []),
    "in the shadow": (f"{HERE}\nmode = 'shadow'", refused, []),
}


LONGER = ("refused by fit", "succeeds before it was told", "another series of it has a result")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in LONGER else case for case in ENDS]
)
def test_what_a_destination_holds_in_the_end(house: Callable[[str], House], bundle: Path, case: str) -> None:
    rule, happens, expected = ENDS[case]
    here = house(rule.format(here=str(bundle)))
    happens(*[here, bundle][: happens.__code__.co_argcount])
    here.deliver()
    assert here.holds() == expected
    here.reason()
    here.deliver()
    assert here.holds() == expected  # and it is told once


def test_nothing_is_told_while_more_may_come(house: Callable[[str], House], bundle: Path) -> None:
    here = house(HERE.format(here=str(bundle)))
    here.send(gap())
    here.reasoner.step(here.settings, time.time() + QUIET_S / 2)
    assert not here.box.rows("result")  # another series may follow
    here.box.send(of_study(phantom(5)[:3], gap()))
    here.reason()
    assert not here.box.rows("result")  # one does
    here.work()
    here.reason()
    assert [row.kind for row in here.box.rows("result")] == ["segmented"]  # and has a result by now


def test_what_is_said_is_read_by_others(house: Callable[[str], House], bundle: Path, tmp_path: Path) -> None:
    here, series = house(HERE.format(here=str(bundle))), gap()
    here.send(series)
    here.reason()
    here.deliver()
    (report,) = here.pacs.received
    why, expected, research = texts(report)[-3:]
    assert why.startswith(f"Not segmented: series {series[0].SeriesInstanceUID}: ") and "missing" in why
    assert expected.startswith("Expected: CT") and expected.endswith("(bundle spleen_test).")
    assert research == "For research use only. Not for diagnosis."
    assert (report.PatientID, report.StudyInstanceUID) == (series[0].PatientID, series[0].StudyInstanceUID)
    with here.box.ledger.read() as db:
        (study,) = studies.latest(db, 1)
    assert list(study.reasons[0].why) == [why] and why in " ".join(text.lines(study))
    file = tmp_path / "reason.dcm"
    report.save_as(file, enforce_file_format=True)
    assert srread(file).SOPClassUID == STATEMENT_CLASS
    assert dciodvfy(file) == []
    assert f'"{why}"' in dsrdump(file)
    assert set(tid1500reader(file, tmp_path / "read.json")["imageLibrary"]) == {one.SOPInstanceUID for one in series}


@pytest.mark.parametrize("moment", ["before it is filed", pytest.param("before it is sent", marks=pytest.mark.slow)])
def test_a_kill_in_between_still_gives_one_reason(
    house: Callable[[str], House], bundle: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    here = house(HERE.format(here=str(bundle)))
    here.send(gap())
    if moment == "before it is filed":
        with monkeypatch.context() as patch:
            patch.setattr(unanswered, "drop", _killed)
            with pytest.raises(KeyboardInterrupt):
                here.reason()
        assert not here.box.rows("result") and len(list((here.box.folder / RESULTS).iterdir())) == 1
    else:
        here.reason()
        now = time.time() + here.ahead_s
        assert here.box.ledger.write(deliveries.claim_outgoing, "pacs", "one that died", now, now + 1.0, 16)
        here.ahead_s += 2.0
    here.reasoner = Reasoner(here.box.ledger, here.box.folder)
    here.reason()
    here.deliver()
    assert here.holds() == ["reason"]
    assert len(list((here.box.folder / RESULTS).iterdir())) == 1


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_series_that_is_held_is_told_and_another_reason_takes_its_place(
    house: Callable[[str], House], bundle: Path
) -> None:
    here, series = house(HERE.format(here=str(bundle))), gap()
    here.box.send(series)
    with here.box.ledger.read() as db:
        (row,) = series_rows.series_of(db, series[0].StudyInstanceUID)

    def hold(db: Connection) -> None:
        """As the director does where `cap_s` has passed."""
        assert series_rows.hold_series(db, row.study_uid, row.series_uid, row.revision)
        ask_why(db, row.study_uid, here.settings.rules[0])
        detail = {"why": "cap_s reached: pacs counts 11 instances, 6 are here", "rule": "ct"}
        events.record(db, events.HELD, time.time(), detail, study_uid=row.study_uid, series_uid=row.series_uid)

    here.box.ledger.write(hold)
    here.reason()
    here.deliver()
    assert "pacs counts 11 instances" in " ".join(texts(here.pacs.received[0]))
    here.send(gap())  # again, and no more
    here.reason()
    here.deliver()
    assert here.holds() == ["reason", "reason for 1"]
    first, second = here.pacs.received
    item = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert item.ReferencedSOPInstanceUID == first.SOPInstanceUID


@pytest.mark.slow
def test_a_study_of_two_patients_is_told_of_once_it_is_settled(house: Callable[[str], House], bundle: Path) -> None:
    here = house(HERE.format(here=str(bundle)))
    here.send(gap())
    here.reason()
    other = of_study(phantom(3, 1, PatientID="OTHER"), gap())
    here.box.send(other)
    here.reason()
    here.deliver()
    assert here.holds() == []  # nothing leaves a study that is stopped
    here.box.ledger.write(settle.merge, other[0].StudyInstanceUID, "B", time.time())
    here.work()
    here.reason()
    here.deliver()
    assert [(_said(one), one.PatientID) for one in here.pacs.received] == [("reason", "OTHER")]
    here.box.ledger.write(settle.merge, other[0].StudyInstanceUID, "B", time.time())  # once more
    here.reason()
    here.deliver()
    assert here.holds() == ["reason", "reason for 1"]


@pytest.mark.slow  # a service of its own, killed twice
def test_a_service_that_is_killed_tells_once_and_takes_it_back(bundle: Path, tmp_path: Path) -> None:
    with listening(FakePacs()) as pacs:
        peer = f'[[peer]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
        quiet = "".join(f"{key} = 1\n" for key in ("quiet_s", "quiet_gap_s", "quiet_open_s", "quiet_abort_s"))
        settings = f"[complete]\n{quiet}quiet_late_s = 4\n[deliver]\ncommitment = false\nfirst_retry_s = 0.2\n"
        rule = f'[[rule]]\nname = "ct"\nbundle = "{bundle}"\nsend_to = ["pacs"]\n'
        whole = phantom(slices=9)
        with serving(tmp_path, settings + peer + rule) as service:
            service.send([*whole[:3], *whole[6:]])
            wait_for("what is to be told", lambda: service.rows("SELECT 1 FROM unanswered"))
            service.stop(signal.SIGKILL)
            service.start()
            wait_for("the reason at the peer", lambda: pacs.received)
            service.stop(signal.SIGKILL)  # before anything is known of what became of it, perhaps
            service.start()
            assert "Not segmented: " in service.medseg("status", str(whole[0].StudyInstanceUID))
            service.send(whole[3:6])
            wait_for("the result at the peer", lambda: pacs.of("SEG") and len(pacs.of("SR")) > 1)
            assert "withdrawn: told to pacs" in service.medseg("results", "withdraw", "2", "--why", "a test", "--yes")
            wait_for("the rejection at the peer", lambda: pacs.of("KO"))
            assert "withdrawn at" in service.medseg("status", str(whole[0].StudyInstanceUID))
    held = {str(one.SOPInstanceUID): _said(one) for one in pacs.received}  # sent again, it is the same object
    assert sorted(held.values()) == ["KO", "SEG", "SR for 1", "reason", "reason for 1"]
