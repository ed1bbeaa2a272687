"""How long silence must last before a series is complete."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest import approx

from gateway.complete.decision import CompletionReason
from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
)
from tests.gateway.complete.traffic import (
    DEFAULTS,
    Timed,
    only,
    played,
    sent,
)


def test_released_without_a_gap() -> None:
    assert only(played(sent(range(10)))) == (approx(1.0 + 3), CompletionReason.QUIET, 10)


def test_a_slice_missing() -> None:
    assert only(played(sent([0, 1, 2, 4, 5]))) == (approx(0.5 + 30), CompletionReason.QUIET_GAP, 5)


def test_an_association_open() -> None:
    assert only(played(sent(range(10))[:-1])) == (approx(1.0 + 60), CompletionReason.QUIET_OPEN, 10)


def test_another_association_of_the_same_sender_open() -> None:
    events = [(0.0, AssociationOpened("other", "CT01")), *sent(range(10))]
    assert only(played(events)) == (approx(1.0 + 60), CompletionReason.QUIET_OPEN, 10)


def test_an_association_of_another_sender_does_not_matter() -> None:
    events = [(0.0, AssociationOpened("other", "CT02")), *sent(range(10))]
    assert only(played(events)) == (approx(1.0 + 3), CompletionReason.QUIET, 10)


def test_aborted() -> None:
    events = [*sent(range(10))[:-1], (1.5, AssociationAborted("a1"))]
    assert only(played(events)) == (approx(1.5 + 60), CompletionReason.QUIET_ABORT, 10)


def test_aborted_and_sent_again() -> None:
    events = [*sent(range(6))[:-1], (0.7, AssociationAborted("a1")), *sent(range(10), start_s=20, association="a2")]
    assert only(played(events)) == (approx(21 + 3), CompletionReason.QUIET, 10)


def test_a_release_of_an_association_opened_before_the_abort_heals_nothing() -> None:
    events = [
        *sent(range(0, 10, 2), association="a1")[:-1],
        *sent(range(1, 10, 2), association="a2")[:-1],
        (1.0, AssociationAborted("a1")),
        (1.2, AssociationReleased("a2")),
    ]
    assert only(played(events)) == (approx(1.2 + 60), CompletionReason.QUIET_ABORT, 10)


def test_an_abort_before_any_image_of_the_series_does_not_matter() -> None:
    events = [(0.0, AssociationOpened("a0", "CT01")), (0.1, AssociationAborted("a0")), *sent(range(4), start_s=1)]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_quiet_is_counted_from_the_release_and_not_only_from_the_last_instance() -> None:
    events = [*sent(range(10))[:-1], (20.0, AssociationReleased("a1"))]
    assert only(played(events)) == (approx(20 + 3), CompletionReason.QUIET, 10)


def test_each_instance_starts_the_quiet_time_anew() -> None:
    events: list[Timed] = []
    for k in range(6):
        events += sent([k], start_s=2.5 * k, association=f"a{k}")
    assert only(played(events)) == (approx(12.6 + 3), CompletionReason.QUIET, 6)


def test_a_repeated_instance_starts_the_quiet_time_anew() -> None:
    events = [*sent(range(10)), *sent([9], start_s=3, association="a2")]
    assert only(played(events)) == (approx(3.1 + 3), CompletionReason.QUIET, 10)


@pytest.mark.parametrize("key", ["quiet_s", "quiet_gap_s", "quiet_open_s", "quiet_abort_s"])
def test_the_settings_are_obeyed(key: str) -> None:
    traffic = {
        "quiet_s": sent(range(5)),
        "quiet_gap_s": sent([0, 1, 3]),
        "quiet_open_s": sent(range(5))[:-1],
        "quiet_abort_s": [*sent(range(5))[:-1], (0.5, AssociationAborted("a1"))],
    }[key]
    end_s = traffic[-1][0]
    longer = replace(DEFAULTS, **{key: 77.0})
    assert only(played(traffic, settings=longer))[0] == approx(end_s + 77)


def test_a_truncated_even_prefix_waits_for_its_quiet_time_and_no_longer() -> None:
    """Every prefix is even: the pause decides. Shorter than the quiet time: one job; longer: superseded."""
    tail = {"association": "a2", "start_s": 1.0}
    assert only(played([*sent(range(10)), *sent(range(10, 20), **tail | {"start_s": 3.8})]))[2] == 20  # type: ignore[arg-type]
    service = played([*sent(range(10)), *sent(range(10, 20), **tail | {"start_s": 8.0})])  # type: ignore[arg-type]
    assert [(job.generation, len(job.uids), job.at_s) for job in service.jobs] == [
        (1, 10, approx(4)),
        (2, 20, approx(9 + 2 * (8.1 - 1))),
    ]
