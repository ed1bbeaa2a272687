"""Senders that open an association for each image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from gateway.complete.decision import CompletionReason
from gateway.complete.events import (
    AssociationOpened,
    AssociationReleased,
)
from gateway.settings.model import Completion as Settings
from tests.gateway.complete.traffic import (
    SERIES,
    Service,
    Timed,
    arrived,
    counted,
    image,
    played,
    sent,
)


def one_by_one(slices: range, pace_s: float, *, start_s: float = 0.0, **more: str) -> list[Timed]:
    """Each image over an association of its own, at a pace."""
    name = more.get("series", SERIES)
    return [
        one
        for n, k in enumerate(slices)
        for one in sent([k], start_s=start_s + n * pace_s, association=f"{name} {k}", **more)
    ]


@pytest.mark.parametrize(
    ("pace_s", "most"),
    [(0.5, 1), (2.9, 1), (3.5, 2), (5, 2), (6, 2), (12, 2), (20, 2), (29, 2), (45, 2), (59, 2), (70, 20)],
)
def test_a_series_of_which_each_image_has_an_association(pace_s: float, most: int) -> None:
    """With the default settings: one result, or one that was too early and one of the whole."""
    jobs = played(one_by_one(range(20), pace_s)).jobs
    assert len(jobs) == most and len(jobs[-1].uids) == 20


@given(st.lists(st.floats(0.2, 29.0), min_size=3, max_size=40))
def test_pauses_of_any_length_give_few_results(pauses_s: list[float]) -> None:
    """Each result that was too early shows a pause twice as long as any before it."""
    events, at_s = [], 0.0
    for k, pause_s in enumerate(pauses_s):
        at_s += pause_s
        events += sent([k], start_s=at_s, association=f"a{k}")
    jobs = played(events).jobs
    assert len(jobs) <= 5 and len(jobs[-1].uids) == len(pauses_s)


def test_the_next_series_of_such_a_sender_waits_from_the_start() -> None:
    later = one_by_one(range(20), 6, start_s=1000, series="1.2.2")
    elsewhere = one_by_one(range(5), 6, start_s=2000, series="1.2.3", sender="CT02")
    jobs = played([*one_by_one(range(20), 6), *later, *elsewhere]).jobs
    assert [(job.series, len(job.uids)) for job in jobs] == [
        (SERIES, 1), (SERIES, 20), ("1.2.2", 20), ("1.2.3", 1), ("1.2.3", 5)
    ]  # fmt: skip


def test_a_series_in_one_association_waits_no_longer_for_its_sender(pace_s: float = 6) -> None:
    at_once = sent(range(10), start_s=1000, series="1.2.2", association="whole")
    assert played([*one_by_one(range(5), pace_s), *at_once]).jobs[-1].at_s == approx(1001 + 3)


def test_who_sent_one_image_late_is_not_taken_for_such_a_sender() -> None:
    events = [*sent(range(10)), *sent([10], start_s=9, association="a2")]
    single = sent([0], start_s=1000, series="1.2.2", association="a3")
    assert played([*events, *single]).jobs[-1].at_s == approx(1000.1 + 3)


def test_the_wait_ends_where_the_settings_say(longest_s: float = 10) -> None:
    some = Settings(quiet_late_s=longest_s)
    jobs = played(one_by_one(range(4), 20), settings=some).jobs
    assert [job.at_s for job in jobs] == [approx(3.1), *(approx(20.1 + 20 * k + longest_s) for k in range(3))]
    assert played(one_by_one(range(1), 6), settings=Settings(quiet_s=90)).jobs[0].at_s == approx(90.1)


def test_a_count_ends_the_longer_wait() -> None:
    service = Service()
    service.play(one_by_one(range(5), 6), until_s=24.5)
    events: list[Timed] = [(25.0, counted(5)), (27.5, counted(5))]
    assert service.play(events)[-1].reason is CompletionReason.COUNT and service.jobs[-1].at_s == approx(27.5)


def test_a_correction_is_no_pace() -> None:
    other = {"what": image(3, digest="corrected")}
    again: list[Timed] = [
        (9.0, AssociationOpened("a2", "CT01")),
        (9.1, arrived(3, "a2", **other)),
        (9.1, AssociationReleased("a2")),
    ]  # type: ignore[arg-type]
    service = played([*sent(range(10)), *again])
    assert [job.at_s for job in service.jobs] == [approx(4), approx(9.1 + 6)] and not service.arrivals.paces_s
