"""A whole study, for rules that choose among its series."""

from __future__ import annotations

from typing import Any

import pytest
from pytest import approx

from gateway.complete.arrivals import Arrivals, forget
from gateway.complete.decision import CapReached, Complete, CompletionReason, Settled, Waiting, decide
from gateway.complete.events import (
    Decided,
)
from tests.gateway.complete.traffic import (
    DEFAULTS,
    SERIES,
    STUDY,
    counted,
    from_acquisitions,
    sent,
    state_of,
)


def whole(arrivals: Arrivals, now_s: float) -> Any:
    return decide(arrivals, STUDY, None, now_s, DEFAULTS)


def test_a_study_waits_for_the_last_of_its_series() -> None:
    arrivals = state_of([*sent(range(5)), *sent(range(5), start_s=2, series="1.2.2", association="a2")])
    assert decide(arrivals, STUDY, SERIES, 4.0, DEFAULTS) == Complete(CompletionReason.QUIET)
    assert whole(arrivals, 4.0) == Waiting(approx(5.5), "quiet")
    assert whole(arrivals, 5.6) == Complete(CompletionReason.QUIET)


def test_the_number_of_one_series_says_nothing_of_the_study() -> None:
    arrivals = state_of([*from_acquisitions(*((k, "4", 5) for k in range(5))), (0.1, counted(5)), (2.2, counted(5))])
    assert decide(arrivals, STUDY, SERIES, 2.3, DEFAULTS) == Complete(CompletionReason.ACQUISITION)
    assert isinstance(whole(arrivals, 2.3), Waiting)


def test_a_study_is_counted_as_a_whole() -> None:
    two = [*sent(range(5)), *sent(range(5), series="1.2.2", association="a2")]
    agreed = state_of([*two, (0.6, counted(10, None)), (2.6, counted(10, None))])
    assert whole(agreed, 2.7) == Complete(CompletionReason.COUNT)
    more = state_of([*two, (0.6, counted(11, None))])
    assert isinstance(whole(more, 100), Waiting)
    assert whole(more, 2000) == CapReached("pacs counts 11 instances, 10 are here")
    for series in (SERIES, "1.2.3"):  # one that is here in part, one that has not begun
        assert isinstance(whole(state_of([*two, (0.6, counted(6, series))]), 100), Waiting)


def test_a_study_of_which_all_is_taken_is_settled() -> None:
    arrivals = state_of([*sent(range(5)), (9.0, Decided(STUDY, SERIES))])
    assert whole(arrivals, 10) == decide(arrivals, STUDY, SERIES, 10, DEFAULTS) == Settled()


def test_forget() -> None:
    arrivals = state_of(sent(range(3)))
    assert not forget(arrivals, STUDY).studies
    with pytest.raises(KeyError):
        decide(forget(arrivals, STUDY), STUDY, SERIES, 0.0, DEFAULTS)
