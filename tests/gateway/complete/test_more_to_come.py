"""Somebody says that more is to come: no silence completes a series then."""

from __future__ import annotations

from dataclasses import replace

from pytest import approx

from gateway.complete.decision import CompletionReason
from gateway.complete.events import (
    InstancesListed,
)
from tests.gateway.complete.traffic import (
    DEFAULTS,
    SERIES,
    counted,
    only,
    played,
    sent,
    uids,
)


def test_no_silence_finishes_a_series_of_which_more_is_counted() -> None:
    service = played([*sent(range(10)), (0.5, counted(20))])
    assert not service.jobs
    assert service.capped == {SERIES: approx(0.1 + 1800)}


def test_a_count_that_goes_up_is_a_lower_bound() -> None:
    """A PACS that is still receiving: two agreeing answers that are too low prove nothing."""
    events = [
        *sent(range(30), pace_s=0.3),
        (0.5, counted(4)),
        (2.6, counted(4)),
        (6.0, counted(30)),
        (7.0, counted(30)),
    ]
    assert only(played(events)) == (approx(9.0 + 3), CompletionReason.QUIET, 30)


def test_a_count_that_goes_down_lets_go() -> None:
    events = [*sent(range(10)), (0.5, counted(20)), (100.0, counted(10)), (101.0, counted(10))]
    assert only(played(events)) == (approx(100), CompletionReason.QUIET, 10)


def test_a_count_may_be_known_before_the_first_instance() -> None:
    assert only(played([(-3.0, counted(10)), (-0.5, counted(10)), *sent(range(10))[:-1]])) == (
        approx(1.0),
        CompletionReason.COUNT,
        10,
    )
    assert not played([(-3.0, counted(11)), *sent(range(10))]).jobs


def test_the_cap_is_not_the_end() -> None:
    events = [*sent(range(10)), (0.5, counted(11)), *sent([10], start_s=2000, association="a2")]
    service = played(events)
    assert service.capped == {SERIES: approx(1800.1)}
    assert only(service)[2] == 11


def test_one_source_saying_more_outweighs_another() -> None:
    events = [*sent(range(10)), (0.1, counted(10)), (2.2, counted(10)), (0.2, counted(12, source="archive"))]
    assert not played(events).jobs


def test_a_commitment_list_with_more() -> None:
    listed = InstancesListed(uids(range(12)))
    assert not played([*sent(range(10)), (1.5, listed)]).jobs
    events = [*sent(range(10)), (1.5, listed), *sent([10, 11], start_s=40, association="a2")]
    assert only(played(events)) == (approx(40.2), CompletionReason.COMMITMENT, 12)


def test_cap_while_it_never_gets_quiet() -> None:
    settings_ = replace(DEFAULTS, cap_s=10)
    events = sent(range(40), pace_s=1.0)
    service = played(events, settings=settings_)
    assert service.capped == {SERIES: approx(11)}
    assert only(service) == (approx(43), CompletionReason.QUIET, 40)
