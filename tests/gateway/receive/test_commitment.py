"""Commitment lists and counts, from the ledger to the director and back to the sender; the test moves the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from gateway.complete import commitment
from gateway.complete.commitment import failures
from gateway.complete.queries import AGAIN_S, LONGEST_S, Inquiry, Pace, Subject, paced, subjects
from gateway.dimse.scu import RequestorTimeouts
from gateway.dimse.store import Ending
from gateway.keep.purge import purge
from gateway.ledger import commitments, counts
from gateway.ledger.commitments import Item
from gateway.ledger.series import UndecidedSeries
from gateway.settings.model import GatewaySettings, Peer
from gateway.settings.read import read_settings
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox
from tests.waiting import wait_for

QUIET_S, OPEN_S, CAP_S = 3, 60, 1000
TIMES = f"[complete]\nquiet_open_s = {OPEN_S}\ncap_s = {CAP_S}\n"
CLASS = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(tmp_path) as opened:
        yield opened


def director(box: Inbox, clock: Clock) -> Director:
    """One that has just started."""
    made = Director(box.ledger, box.folder, settings(box))
    made.step(*clock.after(0))
    return made


def settings(box: Inbox, more: str = "") -> GatewaySettings:
    return read_settings(TIMES + more, box.folder)


def ask(box: Inbox, datasets: list[Dataset], clock: Clock, association: str = "a") -> None:
    items = [Item(str(one.SOPClassUID), str(one.SOPInstanceUID)) for one in datasets]
    box.ledger.write(commitments.ask, "SENDER", "1.2.3", association, items, clock.wall_s)


def by(box: Inbox) -> list[str | None]:
    return [row.complete_by for row in box.rows("series")]


def test_a_list_completes_while_the_association_is_open(box: Inbox) -> None:
    clock = Clock()
    directs, peer, series = director(box, clock), box.open(), phantom()
    box.store(peer, series)
    ask(box, series, clock)
    directs.step(*clock.after(0.1))
    assert by(box) == ["storage commitment list"]


def test_a_list_that_names_more_waits_beyond_the_quiet_time_and_a_restart(box: Inbox) -> None:
    clock, series = Clock(), phantom()
    directs = director(box, clock)
    box.send(series[:4])
    directs.step(*clock.after(0.1))
    ask(box, series, clock)
    for seconds in (0.1, 2 * QUIET_S, 2 * OPEN_S):
        directs.step(*clock.after(seconds))
        assert by(box) == [None]
    directs = director(box, clock)
    directs.step(*clock.after(2 * QUIET_S))
    assert by(box) == [None]
    box.send(series[4:])
    directs.step(*clock.after(0.1))
    assert by(box) == ["storage commitment list"]


def test_a_list_of_other_studies_is_no_matter(box: Inbox) -> None:
    """Instances that are here, and whose study is not observed any more, are not waited for."""
    clock, old, new = Clock(), phantom(1), phantom(2)
    directs = director(box, clock)
    box.send(old)
    directs.step(*clock.after(0.1))
    directs.step(*clock.after(QUIET_S))
    directs = director(box, clock)
    box.send(new)
    ask(box, [*old, *new], clock)
    directs.step(*clock.after(0.1))
    assert set(by(box)) == {"quiet", "storage commitment list"}


def answer(box: Inbox, series: list[Dataset], value: int, clock: Clock, source: str = "pacs") -> None:
    uids = str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID)
    box.ledger.write(counts.answer, *uids, source, value, clock.wall_s)


def test_a_count_forbids_and_proves(box: Inbox) -> None:
    clock, series = Clock(), phantom()
    directs, peer = director(box, clock), box.open()
    box.store(peer, series[:5])
    answer(box, series, 6, clock)
    directs.step(*clock.after(0.1))
    box.spool.closed(peer, Ending.RELEASED)
    directs.step(*clock.after(2 * QUIET_S))
    directs.step(*clock.after(2 * QUIET_S))
    assert by(box) == [None]
    answer(box, series, 6, clock)
    directs = director(box, clock)
    directs.step(*clock.after(2 * QUIET_S))
    assert by(box) == [None]
    box.store(box.open(), series[5:])
    directs.step(*clock.after(0.1))
    assert by(box) == ["count"]  # two answers agree, though one was heard before the restart


def test_one_answer_proves_nothing(box: Inbox) -> None:
    clock, series = Clock(), phantom()
    directs = director(box, clock)
    box.store(box.open(), series)
    answer(box, series, 6, clock)
    directs.step(*clock.after(1))
    answer(box, series, 6, clock)
    directs.step(*clock.after(0.1))
    assert by(box) == [None]
    directs.step(*clock.after(0.9))
    answer(box, series, 6, clock)
    directs.step(*clock.after(0.1))
    assert by(box) == ["count"]


uids = st.integers(0, 5).map(str)


@given(st.sets(uids), st.sets(uids), st.sets(uids), st.booleans())
def test_what_is_reported(asked: set[str], here: set[str], other: set[str], overdue: bool) -> None:
    """Nothing is reported as stored that is not, and nothing as failed that may still come."""
    stored = [(CLASS if uid not in other else "1.2.9", uid) for uid in here]
    failed = failures([Item(CLASS, uid) for uid in asked], stored, overdue=overdue)
    if failed is None:
        assert not overdue and not asked <= here
        return
    assert overdue or asked <= here
    assert asked - failed.keys() == (asked & here) - other
    assert {uid for uid, reason in failed.items() if reason == 0x0119} == asked & here & other


def known(box: Inbox) -> list[tuple[str, int | None]]:
    return [(row.sop_instance_uid, row.reason) for row in box.rows("commitment_item")]


def test_a_file_that_is_gone_or_cut_is_not_committed(box: Inbox) -> None:
    clock, series = Clock(), phantom(slices=3)
    box.send(series)
    ask(box, series, clock)
    gone, cut, whole = (box.folder / row.path for row in box.rows("instance"))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    commitment.settle(box.ledger, box.folder, clock.wall_s)
    assert box.rows("commitment")[0].state == "waiting"
    commitment.settle(box.ledger, box.folder, clock.wall_s + commitment.WAIT_S)
    assert box.rows("commitment")[0].state == "known"
    lost = {str(one.SOPInstanceUID) for one in series[:2]}
    assert {uid for uid, reason in known(box) if reason == 0x0112} == lost
    assert whole.exists()


def test_a_purge_takes_the_lists_and_counts_along(box: Inbox) -> None:
    clock, series = Clock(), phantom(slices=3)
    box.send(series)
    ask(box, series, clock)
    answer(box, series, 3, clock)
    commitment.settle(box.ledger, box.folder, clock.wall_s)
    purge(box.ledger, box.folder, str(series[0].StudyInstanceUID), clock.wall_s)
    assert {reason for _, reason in known(box)} == {0x0112}  # it is still to be reported, truthfully
    assert not box.rows("count")
    box.ledger.write(lambda db: db.exec_driver_sql("UPDATE commitment SET state = 'reported', reported_at = 1"))
    box.send(series)
    purge(box.ledger, box.folder, str(series[0].StudyInstanceUID), clock.wall_s)
    assert not box.rows("commitment_item") and not box.rows("commitment")


# Asking.


def test_who_is_asked_about_what() -> None:
    arriving = [
        UndecidedSeries("1", "1.1", 4, frozenset({"CT01"})),
        UndecidedSeries("1", "1.2", 2, frozenset({"PACS"})),
    ]
    peer = Peer("one", "PACS", "host", 104)
    assert subjects(peer, arriving) == {Subject("1", "1.2"): 2}
    assert subjects(replace(peer, query=False), arriving) == {}
    everything = {Subject("1", "1.1"): 4, Subject("1", "1.2"): 2, Subject("1", None): 6}
    assert subjects(replace(peer, query=True), arriving) == everything


def test_the_pace_slows_down_and_quickens_with_what_comes() -> None:
    pace, pauses = Pace(), []
    for instances in (1, 1, 1, 1, 1, 1, 2):
        pace = paced(pace, instances, 100.0)
        pauses.append(pace.due_s - 100.0)
    assert pauses == pytest.approx([AGAIN_S, *(min(2**n * AGAIN_S, LONGEST_S) for n in range(1, 6)), AGAIN_S])


class Archive:
    """Answers C-FIND with how many instances it has; None: with no match. While it does not go on, it answers nothing.

    status: of the last response.
    """

    def __init__(self, title: str, count: int | None, status: int = 0x0000) -> None:
        self.count, self.status, self.asked, self.goes_on = count, status, 0, threading.Event()
        self.goes_on.set()
        ae = AE(title)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, self._find)])
        self.port = int(self._server.server_address[1])

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        self.asked += 1
        self.goes_on.wait(60)
        found = event.identifier
        assert found.QueryRetrieveLevel == "SERIES"
        if self.count is not None:
            found.NumberOfSeriesRelatedInstances = self.count
            yield 0xFF00, found
        yield self.status, None

    def close(self) -> None:
        self.goes_on.set()
        self._server.shutdown()


@pytest.fixture
def archives() -> Iterator[tuple[Archive, Archive]]:
    both = Archive("GOOD", 6), Archive("BAD", None, status=0xC000)
    yield both
    for one in both:
        one.close()


Step: TypeAlias = Callable[[ThreadPoolExecutor], frozenset[str]]


def inquiry_of(box: Inbox, now_s: list[float], **archives: Archive) -> Step:
    """The step of one that asks these peers, with pauses of 1000 s where they do not answer."""
    peers = "".join(
        f'[[peer]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "127.0.0.1"\nport = {one.port}\n'
        for name, one in archives.items()
    )
    asking = settings(box, f"[deliver]\nfirst_retry_s = 1000\nlongest_retry_s = 1000\n{peers}")
    timeouts = RequestorTimeouts(connect_s=5, acse_s=5, dimse_s=30)
    inquiry = Inquiry(box.ledger, box.folder, clock=lambda: now_s[0], chance=lambda: 0.5, timeouts=timeouts)
    return partial(inquiry.step, asking)


def test_who_hangs_or_fails_is_left_in_peace(box: Inbox, archives: tuple[Archive, Archive]) -> None:
    """Its own questions wait; the others' are answered."""
    good, bad = archives
    now_s = [100.0]
    step = inquiry_of(box, now_s, good=good, bad=bad)
    box.send(phantom(1), calling_ae="GOOD")
    box.send(phantom(2), calling_ae="BAD")
    bad.goes_on.clear()
    with ThreadPoolExecutor(4) as pool:

        def asked(one: Archive, times: int) -> bool:
            step(pool)
            return one.asked >= times

        def idle(name: str) -> bool:
            return name not in step(pool)

        wait_for("both to be asked", lambda: asked(good, 1) and asked(bad, 1))
        wait_for("an answer", lambda: idle("good"))
        now_s[0] += AGAIN_S
        wait_for("the second question to who answers", lambda: asked(good, 2) and idle("good"))
        assert bad.asked == 1
        bad.goes_on.set()
        wait_for("the end of the other call", lambda: idle("bad"))
        now_s[0] += 100
        wait_for("a third question", lambda: asked(good, 3) and idle("good"))
        assert bad.asked == 1
        now_s[0] += 1000
        wait_for("another chance", lambda: asked(bad, 2))
    assert [(row.source, row.value) for row in box.rows("count")] == [("good", 6)]


def test_who_does_not_know_a_series_has_answered(box: Inbox, archives: tuple[Archive, Archive]) -> None:
    good, _ = archives
    good.count = None
    now_s = [100.0]
    step = inquiry_of(box, now_s, good=good)
    box.send(phantom(1), calling_ae="GOOD")
    with ThreadPoolExecutor(1) as pool:

        def asked(times: int) -> bool:
            calling = step(pool)
            return good.asked >= times and not calling

        wait_for("a question", lambda: asked(1))
        assert not box.rows("count")
        good.count = 6  # it has come there, too
        now_s[0] += AGAIN_S
        wait_for("the next question", lambda: asked(2), 20)
    assert [(row.source, row.value) for row in box.rows("count")] == [("good", 6)]


def test_a_report_to_nobody_is_given_up(box: Inbox) -> None:
    """Who asked is no peer, and its association is over."""
    clock, series = Clock(), phantom()
    clock.wall_s = time.time()
    peer = box.open()
    box.store(peer, series)
    ask(box, series, clock, peer.id)
    inquiry, asking = Inquiry(box.ledger, box.folder), settings(box)
    with ThreadPoolExecutor(1) as pool:
        inquiry.step(asking, pool)
        assert box.rows("commitment")[0].state == "known"  # the receiver may still report it
        box.spool.closed(peer, Ending.RELEASED)
        inquiry.step(asking, pool)
    assert box.rows("commitment")[0].state == "dead"
